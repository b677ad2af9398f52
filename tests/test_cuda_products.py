"""The calls of cuBLAS, on a stand-in for its library: for every way in which two factors and a result can lie."""

import sys
from collections.abc import Callable, Iterator
from itertools import product as combinations
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minihra.kernels.cuda import biased_product, linear, products
from minihra.kernels.cuda.products import Cublas, allow_tf32, product
from minihra.layers.linear import LinearParams
from tests.cuda_twins import emulated
from tests.fake_cublas import WORKSPACE, Library, LtLibrary, Numpy


@pytest.fixture
def xp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Numpy]:
    """Products of NumPy arrays go to the stand-in, as those of CuPy go to cuBLAS."""
    library = Library()
    xp, handle = Numpy(library), Cublas(library, WORKSPACE)
    monkeypatch.setattr(products, "cublas", lambda: handle)
    monkeypatch.setattr(products, "is_cupys", lambda x: True)
    monkeypatch.setattr(products, "array_module", lambda x: xp)
    monkeypatch.setattr(products, "contiguous", xp.copy)
    yield xp
    allow_tf32(False)


def plain(made, *shape):
    return made(*shape)


def transposed(made, *shape):
    return made(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)


def padded(made, *shape):
    """Rows with a gap between them, as of some columns of a wider matrix."""
    return made(*shape[:-1], shape[-1] + 3)[..., 1:-2]


def padded_transposed(made, *shape):
    return made(*shape[:-2], shape[-1], shape[-2] + 2)[..., 1:-1].swapaxes(-1, -2)


def apart(made, *shape):
    """Matrices with a gap between them."""
    return made(*shape[:-2], shape[-2] + 2, shape[-1])[..., 1:-1, :]


def interleaved(made, *shape):
    """Matrices between whose rows stand those of the others, as the heads of (T, A, D)."""
    return made(shape[-2], *shape[:-2], shape[-1]).transpose(*range(1, len(shape) - 1), 0, -1)


def every_second(made, *shape):
    return made(*shape[:-1], 2 * shape[-1])[..., ::2]


def backwards(made, *shape):
    return made(*shape)[..., ::-1, ::-1]


def repeated(made, *shape):
    return np.broadcast_to(made(*shape[:-2], 1, shape[-1]), shape)


LAYOUTS = (plain, transposed, padded, padded_transposed, apart, interleaved)
COPIED = (every_second, backwards, repeated)
SIZES = ((3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 5), (1, 4, 1), (3, 1, 1), (1, 1, 1))


def count(xp: Numpy, call: str) -> int:
    return sum(call in name for name in xp.cublas.calls)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (1, 3)])
@pytest.mark.parametrize("size", SIZES)
def test_products_of_every_layout(size: tuple[int, int, int], lead: tuple[int, ...], xp: Numpy) -> None:
    (N, K, M), made = size, xp.random
    leads = [(lead, lead), (lead, ()), ((), lead)] if lead else [((), ())]
    for (of_a, of_b), lie_a, lie_b in combinations(leads, LAYOUTS, LAYOUTS):
        for lie_out, add in ((None, False), *combinations((plain, padded, interleaved), (False, True))):
            xp.cublas.memory.clear()
            a, b = lie_a(made, *of_a, N, K), lie_b(made, *of_b, K, M)
            out = lie_out(made, *lead, N, M) if lie_out else None
            wanted = a @ b + (out if add else 0)
            if out is not None and not add:
                out[...] = np.nan
            xp.cublas.calls.clear()
            y = product(a, b, out, add=add)
            assert y.shape == wanted.shape and (out is None or y is out)
            assert abs(y - wanted).max() < 1e-13  # and no NaN
            assert count(xp, "Gemm") == 1 and count(xp, "copy") == 0


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("other", LAYOUTS[:2])
@pytest.mark.parametrize("lie", COPIED)
def test_what_cublas_cannot_be_told_is_copied(lie: Callable, other: Callable, lead: tuple[int, ...], xp: Numpy) -> None:
    for lie_a, lie_b in ((lie, other), (other, lie)):
        a, b = lie_a(xp.random, *lead, 3, 4), lie_b(xp.random, *lead, 4, 5)
        xp.cublas.calls.clear()
        np.testing.assert_allclose(product(a, b), a @ b, rtol=1e-12)
        assert count(xp, "copy") == 1


def test_leading_axes_that_do_not_merge_are_copied(xp: Numpy) -> None:
    heads = xp.random(2, 4, 3, 5).swapaxes(1, 2)  # (B, A, T, D) of (B, T, A, D)
    np.testing.assert_allclose(product(heads, heads.swapaxes(2, 3)), heads @ heads.swapaxes(2, 3), rtol=1e-12)
    assert count(xp, "copy") == 2
    downwards = xp.random(3, 4, 4)[::-1]
    np.testing.assert_allclose(product(downwards, downwards), downwards @ downwards, rtol=1e-12)
    assert count(xp, "copy") == 4
    one = xp.random(3, 2, 4, 4)[:, :1].swapaxes(0, 1)  # along an axis of length 1 nobody steps
    np.testing.assert_allclose(product(one, one), one @ one, rtol=1e-12)
    assert count(xp, "copy") == 4
    with pytest.raises(ValueError, match="row by row"):
        product(heads, heads.swapaxes(2, 3), xp.random(2, 4, 4, 3).transpose(0, 3, 1, 2))


def test_rows_of_all_matrices_are_one_factor(xp: Numpy) -> None:
    a, W = xp.random(2, 3, 4, 5), xp.random(5, 6)
    product(a, W)
    product(a, xp.random(6, 5).T)
    assert count(xp, "cublasGemmEx") == 2 and count(xp, "Strided") == 0


def test_types_and_tf32(xp: Numpy) -> None:
    assert_computes(xp, "float32", 68)
    assert_computes(xp, "float64", 70)
    allow_tf32(True)
    assert_computes(xp, "float32", 77)
    assert_computes(xp, "float64", 70)
    allow_tf32(False)
    assert_computes(xp, "float32", 68)


def assert_computes(xp: Numpy, dtype: str, compute: int) -> None:
    a, b = xp.random(3, 4, dtype=dtype), xp.random(4, 5, dtype=dtype)
    y = product(a, b)
    assert y.dtype == dtype and xp.cublas.compute == compute
    np.testing.assert_allclose(y, a @ b, rtol=1e-5)


def test_without_elements_nothing_is_called(xp: Numpy) -> None:
    xp.cublas.calls.clear()
    for a, b in (((0, 4), (4, 5)), ((3, 4), (4, 0)), ((0, 3, 4), (0, 4, 5)), ((0, 3, 4), (4, 5))):
        y = product(xp.random(*a), xp.random(*b))
        assert y.size == 0 and y.shape == (np.zeros(a) @ np.zeros(b)).shape
    assert np.all(product(xp.random(2, 3, 0), xp.random(2, 0, 5)) == np.zeros((2, 3, 5)))
    out = xp.random(3, 5)
    before = out.copy()
    assert np.all(product(xp.random(3, 0), xp.random(0, 5), out, add=True) == before)
    assert np.all(product(xp.random(3, 0), xp.random(0, 5), out) == 0)
    assert xp.cublas.calls == []


def test_a_stream_is_set_once_and_the_workspace_with_it(xp: Numpy) -> None:
    a = xp.random(3, 3)
    xp.cublas.calls.clear()
    product(a, a)
    product(a, a)
    assert xp.cublas.calls == ["cublasSetStream_v2", "cublasSetWorkspace_v2", "cublasGemmEx", "cublasGemmEx"]


def test_a_status_is_an_error(xp: Numpy) -> None:
    a, b = xp.random(2, 3, 4), xp.random(2, 4, 5)
    xp.cublas.fails["cublasGemmStridedBatchedEx"] = 3
    with pytest.raises(
        MemoryError, match=r"cublasGemmStridedBatchedEx .*\(2, 3, 4\) @ \(2, 4, 5\).*ALLOC_FAILED \(3\)"
    ):
        product(a, b)
    xp.cublas.fails = {"cublasGemmEx": 15}
    with pytest.raises(RuntimeError, match=r"cublasGemmEx .*\(3, 4\) @ \(4, 5\).*NOT_SUPPORTED \(15\)"):
        product(a[0], b[0])
    xp.cublas.fails = {"cublasCreate_v2": 99}
    with pytest.raises(RuntimeError, match=r"cublasCreate_v2 failed: CUBLAS_STATUS_UNKNOWN \(99\)"):
        Cublas(xp.cublas, WORKSPACE)


@pytest.mark.parametrize("on_gpu", [True, False])
def test_refusals(on_gpu: bool, xp: Numpy, monkeypatch: pytest.MonkeyPatch) -> None:
    if not on_gpu:
        monkeypatch.undo()
    z = np.zeros
    for a, b in (((3,), (3, 4)), ((3, 4), (4,)), ((3, 4), (5, 6)), ((2, 3, 4), (3, 4, 5)), ((2, 2, 3, 4), (2, 4, 5))):
        with pytest.raises(ValueError, match="no product of the shapes"):
            product(z(a), z(b))
    with pytest.raises(ValueError, match=r"has shape \(3, 5\), `out` has \(5, 3\)"):
        product(z((3, 4)), z((4, 5)), z((5, 3)))
    with pytest.raises(ValueError, match="needs `out`"):
        product(z((3, 4)), z((4, 5)), add=True)
    for types in (("f4", "f8", "f4"), ("f4", "f4", "f8"), ("i4", "i4", "i4"), ("f2", "f2", "f2")):
        with pytest.raises(TypeError, match="float32 or of float64"):
            product(*(z(shape, t) for shape, t in zip(((3, 4), (4, 5), (3, 5)), types, strict=True)))


def test_too_large_a_product_is_refused(xp: Numpy) -> None:
    far_apart = np.lib.stride_tricks.as_strided(xp.random(1), (2, 1), (8 << 31, 8))
    with pytest.raises(ValueError, match="too large for cuBLAS"):
        product(far_apart, xp.random(1, 3))


def test_products_of_numpy_are_its_own() -> None:
    a, b, out = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4), np.ones((2, 4))
    np.testing.assert_array_equal(product(a, b), a @ b)
    assert product(a, b, out, add=True) is out
    np.testing.assert_array_equal(out, a @ b + 1)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class DynamicLibNotFoundError(RuntimeError):
        pass

    def load(name: str) -> None:
        raise DynamicLibNotFoundError(name)

    pathfinder = SimpleNamespace(load_nvidia_dynamic_lib=load, DynamicLibNotFoundError=DynamicLibNotFoundError)
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace(pathfinder=pathfinder))
    with pytest.raises(OSError, match="pip install nvidia-cublas-cu12 for CUDA 12"):
        products.cublas()


@pytest.fixture
def lt(xp: Numpy, monkeypatch: pytest.MonkeyPatch) -> LtLibrary:
    """Products with a bias go to a stand-in for cublasLt, which may touch what that for cuBLAS may."""
    library = LtLibrary(xp.cublas)
    handle = biased_product.CublasLt(library, products.cublas())
    monkeypatch.setattr(biased_product, "cublas_lt", lambda: handle)
    monkeypatch.setattr(biased_product, "array_module", lambda x: xp)
    monkeypatch.setattr(biased_product, "WORKSPACE", WORKSPACE.nbytes)
    monkeypatch.setattr(linear, "is_cupys", lambda x: True)
    return library


def mapped(x: np.ndarray, W: np.ndarray, b: np.ndarray) -> np.ndarray:
    return linear.linear_forward(x, LinearParams(W, b))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_products_with_a_bias(size: tuple[int, int, int], dtype: str, lt: LtLibrary, xp: Numpy) -> None:
    (N, K, M), made = size, lambda *shape: xp.random(*shape, dtype=dtype)
    for lie_x, lie_W in combinations((*LAYOUTS[:4], *COPIED), LAYOUTS[:4]):
        x, W, b = lie_x(made, N, K), lie_W(made, K, M), made(M)
        np.testing.assert_allclose(mapped(x, W, b), x @ W + b, rtol=1e-5, atol=1e-5)
    assert lt.calls.count("cublasLtMatmul") == 7 * 4 and count(xp, "Gemm") == 0


def test_a_plan_is_made_once_for_its_sizes(lt: LtLibrary, xp: Numpy, monkeypatch: pytest.MonkeyPatch) -> None:
    """And anew for other alignments, layouts and sizes, and where tensor cores are allowed."""
    monkeypatch.setattr(biased_product, "WELL_ALIGNED", 16)  # which all of NumPy's arrays are
    room, W, b = (xp.random(*shape, dtype="float32") for shape in ((41,), (4, 5), (5,)))
    apart, close = room[:12].reshape(3, 4), room[1:13].reshape(3, 4)

    def plans(x: np.ndarray, W: np.ndarray = W) -> int:
        np.testing.assert_allclose(mapped(x, W, b), x @ W + b, rtol=1e-5, atol=1e-5)
        return lt.calls.count("cublasLtMatmulAlgoGetHeuristic")

    assert plans(apart) == plans(xp.copy(apart)) == 1
    assert plans(close) == plans(close) == 2
    assert plans(apart[:2]) == 3
    assert plans(apart, xp.copy(W.T).T) == 4
    allow_tf32(True)
    mapped(apart, W, b)
    assert lt.compute == 77 and lt.calls.count("cublasLtMatmulAlgoGetHeuristic") == 5


def test_plans_are_forgotten_when_they_are_many(lt: LtLibrary, xp: Numpy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(biased_product, "MOST_PLANS", 3)
    monkeypatch.setattr(biased_product, "WELL_ALIGNED", 8)
    x, W, b = xp.random(9, 4), xp.random(4, 5), xp.random(5)
    for n, described in ((1, 4), (2, 8), (3, 12), (3, 12), (4, 4), (1, 8)):
        np.testing.assert_allclose(mapped(x[:n], W, b), x[:n] @ W + b, rtol=1e-12)
        assert len(lt.descriptions) == described


def test_without_a_kernel_of_cublas_lt_the_bias_is_added(lt: LtLibrary, xp: Numpy) -> None:
    x, W, b = xp.random(3, 4), xp.random(4, 5), xp.random(5)
    plans = biased_product.cublas_lt().plans
    for lt.proposes, lt.fails in ((0, {}), (1, {"cublasLtMatmulAlgoGetHeuristic": 15})):
        plans.clear()
        with emulated():
            np.testing.assert_allclose(mapped(x, W, b), x @ W + b, rtol=1e-12)
        assert "cublasLtMatmul" not in lt.calls
    lt.fails = {"cublasLtMatmulAlgoGetHeuristic": 13}
    plans.clear()
    with pytest.raises(RuntimeError, match="cublasLtMatmulAlgoGetHeuristic failed: CUBLAS_STATUS_EXECUTION_FAILED"):
        mapped(x, W, b)


def test_a_bias_that_does_not_fit_is_refused(lt: LtLibrary, xp: Numpy) -> None:
    x, W = xp.random(3, 4), xp.random(4, 5)
    for b in (xp.random(4), xp.random(5, dtype="float32"), xp.random(10)[::2], xp.random(5, 1)):
        with pytest.raises(ValueError, match="a bias of shape"):
            mapped(x, W, b)
    with pytest.raises(ValueError, match="no product of the shapes"):
        mapped(xp.random(3, 5), W, xp.random(5))
    lt.fails = {"cublasLtMatmul": 14}
    with pytest.raises(RuntimeError, match=r"cublasLtMatmul failed for \(3, 4\) @ \(4, 5\)"):
        mapped(x, W, xp.random(5))
