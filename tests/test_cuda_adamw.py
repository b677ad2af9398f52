"""The optimiser's step for the GPU: more leaves than a table holds, of all sizes, against one leaf after another."""

from collections.abc import Callable
from inspect import signature
from unittest.mock import patch

import numpy as np
import pytest

from minihra import optim
from minihra.arrays import Array
from minihra.blocks.subsampling import subsample
from minihra.kernels.cuda import adamw
from minihra.kernels.cuda.launch import layout_of
from minihra.ops import CUDA_UNPAIRED, references, twins_in
from minihra.optim import AdamW, Moments, clip_by_global_norm
from minihra.tree import leaves, map_leaves
from tests import standin
from tests.cuda_twins import emulated, gpu_of_stand_ins
from tests.test_twins import TOLERANCE, assert_same

SHAPES = [(3,), (5, 7), (2,), (64,), (2, 3, 4), (0,), (0, 3), (1,), (16,), (33, 1)]
LR, RATES = np.array(0.03), {"beta1": 0.8, "beta2": 0.95, "eps": 1e-4}


def arrays(number: int, dtype: type, seed: int) -> list[Array]:
    """So many arrays of all shapes."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(SHAPES[i % len(SHAPES)]).astype(dtype) for i in range(number)]


def inputs(number: int, dtype: type = np.float64) -> tuple[list[Array], list[Array], list[Moments], list[float]]:
    """Parameters, gradients, moments and decays; each leaf has its own count of steps."""
    ps, gs, ms, vs = (arrays(number, dtype, seed) for seed in range(4))
    moments = [Moments(m, v * v, np.array(float(i % 5))) for i, (m, v) in enumerate(zip(ms, vs, strict=True))]
    return ps, gs, moments, [0.1 * (i % 2) for i in range(number)]


def after(function: Callable, number: int, dtype: type = np.float64) -> tuple[Array, ...]:
    """Parameters, moments and counts of steps after one step."""
    ps, gs, moments, decays = inputs(number, dtype)
    with references():
        assert function(ps, gs, moments, LR, **RATES, decays=decays) is None
    return tuple(ps), tuple(moments)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("number", [1, 10, 64, 65, 140])
@pytest.mark.parametrize("piece", [8, adamw.PIECE])
def test_leaves_move_as_one_after_another(number: int, piece: int, dtype: type) -> None:
    wanted = after(optim.adamw_update_leaves, number, dtype)
    with emulated(), patch.object(adamw, "PIECE", piece):
        found = after(adamw.adamw_update_leaves, number, dtype)
    assert_same(found, wanted, dtype)
    assert [moment.step for moment in found[1]] == [i % 5 + 1 for i in range(number)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("number", [1, 10, 64, 65, 140])
@pytest.mark.parametrize("piece", [8, adamw.PIECE])
def test_sums_of_leaves(number: int, piece: int, dtype: type) -> None:
    """To the bit, in the arrays of the first, at addresses of any alignment."""
    totals, others = arrays(number, dtype, 1), arrays(number, dtype, 2)
    wanted = [total + other for total, other in zip(totals, others, strict=True)]
    buffers = [np.full(total.size + 2, np.nan, dtype) for total in totals]
    places = [buffer[1:-1].reshape(total.shape) for buffer, total in zip(buffers, totals, strict=True)]
    for place, total in zip(places, totals, strict=True):
        place[...] = total
    with emulated(checked=True, threads=64), patch.object(adamw, "PIECE", piece):
        assert adamw.add_leaves(places, others) is None
    assert [place.tobytes() for place in places] == [sum_.tobytes() for sum_ in wanted]
    assert all(np.isnan(buffer[[0, -1]]).all() for buffer in buffers)


def test_sums_that_are_left_to_the_reference() -> None:
    a = np.ones((4, 6))
    assert adamw.add_leaves([a[:, ::2]], [a[:, ::2]]) is NotImplemented
    assert adamw.add_leaves([a], [a.astype(np.float32)]) is NotImplemented
    with pytest.raises(ValueError, match="a sum of the shapes"):
        adamw.add_leaves([a], [a[0]])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("number", [1, 10, 64, 65, 140])
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clipping(number: int, limit: float, dtype: type) -> None:
    gs = arrays(number, dtype, 0)
    with references():
        wanted, wanted_norm = optim.clip_leaves(gs, limit)
    for piece in (8, adamw.PIECE):
        with emulated(), patch.object(adamw, "PIECE", piece):
            found, norm = adamw.clip_leaves(gs, limit)
        assert_same((tuple(found), norm), (tuple(wanted), np.asarray(wanted_norm)), dtype)
        if limit == 1e6:
            assert all((a == b).all() for a, b in zip(found, gs, strict=True)), "below the limit nothing moves"


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_norms_that_are_no_numbers(value: float) -> None:
    gs = [np.array([value, 1.0]), np.zeros(3)]
    for limit in (0.0, 2.0):
        with references(), np.errstate(invalid="ignore"):
            wanted, wanted_norm = optim.clip_leaves(gs, limit)
        with emulated():
            found, norm = adamw.clip_leaves(gs, limit)
        for a, b in ((norm, wanted_norm), *zip(found, wanted, strict=True)):
            assert np.array_equal(a, b, equal_nan=True)


def test_leaves_without_elements() -> None:
    with emulated():
        (found,), norm = adamw.clip_leaves([np.zeros((0, 3))], 1.0)
    assert found.shape == (0, 3) and norm == 0


def test_checked_and_in_any_order() -> None:
    results = []
    for order in (0, 1, 2):
        with emulated(order=order, seed=1, checked=True, threads=64), patch.object(adamw, "PIECE", 8):
            moved = after(adamw.adamw_update_leaves, 70, np.float32)
            clipped, norm = adamw.clip_leaves(arrays(70, np.float32, 0), 0.5)
        results.append([leaf.tobytes() for _, leaf in leaves((moved, tuple(clipped), norm))])
    assert results[0] == results[1] == results[2]


def test_leaves_that_lie_at_odd_addresses() -> None:
    """Views into one buffer, as of a tensor that was cut; they cannot be loaded 16 bytes at once."""
    ps, gs, moments, decays = (list(some) for some in inputs(10, np.float32))
    wanted = after(optim.adamw_update_leaves, 10, np.float32)
    buffer = np.concatenate([np.zeros(1, np.float32), *(p.reshape(-1) for p in ps)])
    places = np.cumsum([1, *(p.size for p in ps)])
    ps = [buffer[at : at + p.size].reshape(p.shape) for at, p in zip(places, ps, strict=False)]
    with emulated(checked=True):
        adamw.adamw_update_leaves(ps, gs, moments, LR, **RATES, decays=decays)
    assert_same((tuple(ps), tuple(moments)), wanted, np.float32)


def test_gradients_in_another_order_of_memory() -> None:
    p, g, m, v = (np.random.default_rng(k).random((6, 5)) for k in range(4))
    results = []
    for order in ("C", "F"):
        moved = [p.copy(), Moments(m.copy(), v.copy(), np.array(0.0))]
        with emulated():
            adamw.adamw_update_leaves([moved[0]], [np.asarray(g, order=order)], moved[1:], LR, **RATES, decays=[0.1])
            clipped, _ = adamw.clip_leaves([np.asarray(g, order=order)], 0.5)
        results.append((*moved, clipped[0]))
    assert_same(*results, np.float64)


def test_what_is_left_to_the_reference_or_refused() -> None:
    ps, gs, moments, decays = inputs(2)
    other = np.asarray(np.ones((5, 7)), order="F")

    def update(ps: list[Array], gs: list[Array], moments: list[Moments]) -> object:
        return adamw.adamw_update_leaves(ps, gs, moments, LR, **RATES, decays=decays)

    assert update([ps[0], other], gs, moments) is NotImplemented
    assert update(ps, gs, [moments[0], moments[1]._replace(m=other)]) is NotImplemented
    assert update(ps, [gs[0], gs[1].astype(np.float32)], moments) is NotImplemented
    assert adamw.clip_leaves([gs[0], gs[1].astype(np.float32)], 1.0) is NotImplemented
    with pytest.raises(ValueError, match=r"\(5, 7\), \(7, 5\)"):
        update(ps, [gs[0], gs[1].T], moments)
    assert [moment.step for moment in moments] == [0, 1], "nothing was counted"


def test_a_table_fits_into_the_parameters_of_a_kernel() -> None:
    for kernel, parameters in adamw.KERNELS.kernels.items():
        structs = [layout_of(adamw.KERNELS.structs[p.type]) for p in parameters.values() if p.type[-1] == "s"]
        assert sum(struct.itemsize for struct in structs) + 8 * len(parameters) <= 4096, kernel
        for struct in structs:
            assert {field.shape for field, _ in struct.fields.values()} == {(adamw.LEAVES,)}


def test_the_switchboard_takes_the_twins() -> None:
    """For stand-ins, which refuse NumPy; a step as a user calls it, also with a rate that lies on the GPU."""
    trees = [{"a": (array, None), "b": {"c": np.ones(3)}} for array in arrays(2, np.float32, 1)[1:] * 2]
    trees = [map_leaves(lambda a: a.astype(np.float32), tree) for tree in trees]

    def run(lr: float | Array) -> tuple:
        params, grads = (map_leaves(lambda a: asarray(a.copy()), tree) for tree in trees)
        optimiser = AdamW(decay=0.1)
        for _ in range(2):
            clipped, norm = clip_by_global_norm(grads, 0.5)
            optimiser.update(params, clipped, lr)
        return params, optimiser.moments, norm

    asarray = np.asarray
    wanted = run(0.01)
    with gpu_of_stand_ins(), patch.object(adamw.KERNELS, "run", wraps=adamw.KERNELS.run) as started:
        asarray = standin.asarray
        for lr in (0.01, standin.asarray(np.array(0.01))):
            found = map_leaves(lambda a: a.hidden, run(lr))
            assert_same(found, wanted, np.float32)
    assert started.call_count == 2 * 2 * 5


@pytest.mark.parametrize("function", [optim.adamw_update_leaves, optim.clip_leaves, subsample])
def test_signature_is_that_of_the_reference(function: Callable) -> None:
    wanted, name = signature(function.__wrapped__), function.__name__
    found = signature(getattr(twins_in(CUDA_UNPAIRED[name], "cuda"), name))
    assert [(p.name, p.kind, p.default) for p in found.parameters.values()] == [
        (p.name, p.kind, p.default) for p in wanted.parameters.values()
    ]
