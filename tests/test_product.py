"""Products in tiles: those of integers, whose sums are exact, are NumPy's; and nothing is written beside them."""

from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("numba", reason="the twins for the CPU need numba")

from minihra.arrays import Array
from minihra.cases import numbers
from minihra.kernels.cpu import conv2d
from minihra.kernels.cpu import product as file
from minihra.kernels.cpu.compiled import compiled, largest
from minihra.kernels.cpu.gru import gru_backward, gru_forward
from minihra.kernels.cpu.indrnn import indrnn_backward, indrnn_forward
from minihra.kernels.cpu.linear import linear_backward, linear_forward
from minihra.kernels.cpu.product import (
    COLUMNS,
    LEAST_ROWS,
    MOST_SIZE,
    NARROW,
    ROWS,
    TERMS,
    WORTH_SHARING,
    matrix,
    multiply,
    panels_of,
    product,
    turned_product,
)
from minihra.layers.conv2d import Conv2dParams
from minihra.layers.gru import GRUParams
from minihra.layers.indrnn import IndRNNParams
from minihra.layers.linear import LinearParams
from minihra.ops import PAIRS
from minihra.tree import leaves


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a thread that has no others for its products."""
    monkeypatch.setattr(file, "alone", lambda: True)


def whole(*shape: int, seed: int, dtype: type = np.float32) -> Array:
    """Whole numbers, so small that no sum of their products is rounded."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("K", [1, 7, 8, 13, 144])
@pytest.mark.parametrize("O", [NARROW, NARROW + 1, COLUMNS, COLUMNS + 1, 29, 96, COLUMNS + NARROW + 3])
@pytest.mark.parametrize("most", [MOST_SIZE, 0], ids=["all panels", "one by one"])
@pytest.mark.usefixtures("alone")
def test_product_is_exact(
    most: int, O: int, K: int, turned: bool, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file, "MOST_SIZE", most)
    W = whole(O, K, seed=1, dtype=dtype).T if turned else whole(K, O, seed=1, dtype=dtype)
    b = whole(O, seed=2, dtype=dtype)
    for N in (LEAST_ROWS, LEAST_ROWS + 1, 2 * LEAST_ROWS + ROWS - 1):
        x = whole(N, K, seed=N, dtype=dtype)
        for given in (x, np.asfortranarray(x)):
            assert np.array_equal(product(given, W, b), x @ W + b)
            assert np.array_equal(product(given, W), x @ W)
        assert np.array_equal(product(x, W[:, ::-1]), x @ W[:, ::-1])  # lies neither by rows nor by columns


@pytest.fixture(params=[2, 3, 7])
def several(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """So many threads, which share products of any size, and have to: BLAS is not there."""
    monkeypatch.setattr(file, "alone", lambda: False)
    monkeypatch.setattr(file, "threads", lambda: request.param)
    monkeypatch.setattr(file, "WORTH_SHARING", 0)
    return request.param


class WithoutBlas(np.ndarray):
    """An array that cannot be multiplied by `@`."""

    __array_priority__ = 1

    def __matmul__(self, other: Array) -> Array:
        raise AssertionError("BLAS makes the product")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("K", [1, 8, 13])
@pytest.mark.parametrize("O", [NARROW, 29, COLUMNS, COLUMNS + 1, 2 * COLUMNS + NARROW + 3])
@pytest.mark.parametrize("most", [MOST_SIZE, 0], ids=["rows", "columns"])
def test_a_product_that_threads_share_is_exact(
    most: int, O: int, K: int, turned: bool, dtype: type, several: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More threads than panels, and tiles that end where a portion does."""
    monkeypatch.setattr(file, "MOST_SIZE", most)
    W = whole(O, K, seed=1, dtype=dtype).T if turned else whole(K, O, seed=1, dtype=dtype)
    b = whole(O, seed=2, dtype=dtype)
    for N in (4 * ROWS, 4 * ROWS + 1, 14 * ROWS + 3, 100):
        x = whole(N, K, seed=N, dtype=dtype)
        assert np.array_equal(product(x.view(WithoutBlas), W, b), x @ W + b), N
        assert np.array_equal(product(x.view(WithoutBlas), W), x @ W), N


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "I", "O"), [(1, 7 * ROWS, NARROW), (TERMS, 9 * ROWS + 5, 3 * NARROW), (300, 96, 144)])
def test_a_turned_product_that_threads_share_is_exact(N: int, I: int, O: int, dtype: type, several: int) -> None:
    x, dy = whole(N, I, seed=1, dtype=dtype), whole(N, O, seed=2, dtype=dtype)
    assert np.array_equal(turned_product(x.T.copy().T.view(WithoutBlas), dy[:, ::-1]), x.T @ dy[:, ::-1])
    assert np.array_equal(turned_product(x[:, : 2 * ROWS - 1], dy), x[:, : 2 * ROWS - 1].T @ dy)  # rows for BLAS alone
    assert np.array_equal(turned_product(x, dy[:, 1:]), x.T @ dy[:, 1:])  # and columns that no tiles divide
    with pytest.raises(ValueError, match="shape"):
        turned_product(x, dy[:0])


@pytest.mark.parametrize(
    ("is_alone", "rows", "width", "shared"),
    [
        (False, 4 * ROWS, WORTH_SHARING // (4 * ROWS * 5) + 1, 1),
        (False, 4 * ROWS, WORTH_SHARING // (4 * ROWS * 5), 0),
        (False, 4 * ROWS - 1, 2 * WORTH_SHARING // (4 * ROWS * 5), 0),
        (False, WORTH_SHARING, NARROW - 1, 0),
        (True, 4 * ROWS, WORTH_SHARING // (4 * ROWS * 5) + 1, 0),
    ],
)
def test_threads_share_what_is_worth_it(
    is_alone: bool, rows: int, width: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, loop = [], file._shared_product
    monkeypatch.setattr(file, "alone", lambda: is_alone)
    monkeypatch.setattr(file, "threads", lambda: 2)
    monkeypatch.setattr(file, "_shared_product", lambda *arrays: (calls.append(True), loop(*arrays)))
    x, W, b = whole(rows, 5, seed=0), whole(5, width, seed=1), whole(width, seed=2)
    assert np.array_equal(product(x, W, b), x @ W + b)
    assert len(calls) == shared


@compiled
def largest_of(row: Array) -> float:
    return largest(row)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_of_a_row(dtype: type) -> None:
    """Of any signs and sizes: a softmax, which any number near it serves as well, would not show it."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 8, 33, 100):
        for row in (rng.standard_normal(n), -np.exp(3 * rng.standard_normal(n)), 1e-40 * rng.standard_normal(n)):
            assert largest_of(row.astype(dtype)) == row.astype(dtype).max()
    assert largest_of(np.array([-np.inf, -3, -np.inf], dtype)) == -3
    assert largest_of(np.array([-np.inf, np.inf, 3], dtype)) == np.inf
    for n in (3, 40):  # NaN is passed over, in strips and in what is left of them
        row = np.arange(n, dtype=dtype)
        row[[0, n // 2, n - 1]] = np.nan
        assert largest_of(row) == np.nanmax(np.append(row, -np.inf))
    assert largest_of(np.zeros(0, dtype)) == -np.inf


@compiled
def multiply_arrays(x: Array, w: Array, start: Array, y: Array) -> None:
    N, O = y.shape
    multiply(x.dtype.type(0), N, x.shape[1], O, matrix(x), matrix(w), matrix(start), matrix(y))


@pytest.mark.parametrize("O", [NARROW, COLUMNS, 2 * COLUMNS + 3, COLUMNS + 2 * NARROW])
def test_multiply_takes_any_number_of_rows(O: int) -> None:
    w = whole(5, O, seed=0)
    for N in range(5 * ROWS):  # tiles with all their rows, with some of them, and of a single one
        x, room, bias = whole(N, 5, seed=N), np.full((N + ROWS, O), np.float32(0.5)), whole(O, seed=1)
        multiply_arrays(x, w, bias, room[:N])
        assert np.array_equal(room[:N], x @ w + bias) and np.all(room[N:] == 0.5), N
    sums = np.ones((23, COLUMNS), np.float32)  # no column is made twice, so that a sum may go on
    x, w = whole(23, 5, seed=2), whole(5, COLUMNS, seed=3)
    multiply_arrays(x, w, sums, sums)
    assert np.array_equal(sums, 1 + x @ w)


@pytest.mark.parametrize("O", [3, COLUMNS, COLUMNS + 3, 3 * COLUMNS])
def test_panels_hold_all_columns(O: int) -> None:
    W = whole(4, O, seed=0)
    panels = panels_of(W)
    assert panels.shape == (-(-O // COLUMNS), 4, COLUMNS)
    for p, panel in enumerate(panels):
        left = max(0, min(p * COLUMNS, O - COLUMNS))
        assert np.array_equal(panel[:, : min(O, COLUMNS)], W[:, left : left + COLUMNS])
        assert not panel[:, O:].any()


@pytest.mark.parametrize(
    ("is_alone", "rows", "width", "tiles", "one_by_one"),
    [
        (True, LEAST_ROWS, NARROW, 1, 0),
        (True, LEAST_ROWS, MOST_SIZE // 5, 1, 0),
        (True, LEAST_ROWS, MOST_SIZE // 5 + 1, 0, 1),
        (True, LEAST_ROWS - 1, 99, 0, 0),
        (True, LEAST_ROWS, NARROW - 1, 0, 0),
        (False, LEAST_ROWS, 99, 0, 0),
    ],
)
def test_blas_has_the_others(
    is_alone: bool, rows: int, width: int, tiles: int, one_by_one: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for which neither loop is called: of all panels at once, or of one panel of a large W after the other."""
    calls, many, one = [], file._product, file._panel_by_panel
    monkeypatch.setattr(file, "alone", lambda: is_alone)
    monkeypatch.setattr(file, "_product", lambda *arrays: (calls.append("many"), many(*arrays)))
    monkeypatch.setattr(file, "_panel_by_panel", lambda *arrays: (calls.append("one"), one(*arrays)))
    x, W, b = whole(rows, 5, seed=0), whole(5, width, seed=1), whole(width, seed=2)
    assert np.array_equal(product(x, W, b), x @ W + b)
    assert calls == ["many"] * tiles + ["one"] * one_by_one


@pytest.mark.parametrize(("W", "b"), [((6, 32), (32,)), ((5, 32), (31,)), ((5, 32), (1,))])
@pytest.mark.usefixtures("alone")
def test_arrays_that_do_not_fit_are_refused(W: tuple[int, int], b: tuple[int]) -> None:
    """A loop would read what lies beside them."""
    with pytest.raises(ValueError, match=r"an array of shape .* is needed"):
        product(np.zeros((LEAST_ROWS, 5), np.float32), np.zeros(W, np.float32), np.zeros(b, np.float32))


@pytest.mark.parametrize("wide", [5, NARROW, COLUMNS, COLUMNS + 5, COLUMNS + NARROW + 1, 2 * COLUMNS])
def test_convolutions_of_more_channels_than_a_tile(wide: int) -> None:
    """Channels in and out, whose last tiles begin where those before end, or further left; sums are exact."""
    x, dy = whole(2, 9, 12, wide, seed=0, dtype=np.float64), whole(2, 5, 6, wide, seed=1, dtype=np.float64)
    p = Conv2dParams(whole(3, 3, wide, wide, seed=2, dtype=np.float64), whole(wide, seed=3, dtype=np.float64))
    valid = np.arange(9) < np.array([[9], [6]])
    y, cache = conv2d.conv2d_forward(x, valid, p)
    wanted, wanted_cache = PAIRS["conv2d"].forward.__wrapped__(x, valid, p)
    assert np.array_equal(y, wanted)
    dx, dp = conv2d.conv2d_backward(dy, cache)
    wanted_dx, wanted_dp = PAIRS["conv2d"].backward.__wrapped__(dy, wanted_cache)
    assert np.array_equal(dx, wanted_dx) and np.array_equal(dp.W, wanted_dp.W) and np.array_equal(dp.b, wanted_dp.b)


N, C, H = LEAST_ROWS + 5, 21, COLUMNS + 3
GRU = GRUParams(numbers(C, 3 * H), numbers(H, 3 * H, k=1), numbers(3 * H, k=2), numbers(H, k=3))
INDRNN = IndRNNParams(numbers(C, H), numbers(H, k=1), numbers(H, k=2))
LINEAR = LinearParams(numbers(C, H), numbers(H, k=1))
PAIRS_WITH_PRODUCTS = {
    "linear": (linear_forward, linear_backward, {"x": numbers(N, C, k=5), "p": LINEAR}),
    "gru": (gru_forward, gru_backward, {"x": numbers(N, C, k=5), "h": numbers(N, H, k=6), "p": GRU}),
    "indrnn": (indrnn_forward, indrnn_backward, {"x": numbers(N, C, k=5), "h": numbers(N, H, k=6), "p": INDRNN}),
}


@pytest.mark.parametrize("params", [True, False])
@pytest.mark.parametrize("name", PAIRS_WITH_PRODUCTS)
@pytest.mark.usefixtures("alone")
def test_twins_with_products_in_tiles(name: str, params: bool) -> None:
    """Rung 5 for what a thread of several computes; in float64, where both are exact to 1e-12."""
    forward, backward, arguments = PAIRS_WITH_PRODUCTS[name]
    reference: tuple[Callable, ...] = tuple(function.__wrapped__ for function in PAIRS[name])
    y, cache = forward(**arguments, params=params)
    wanted, wanted_cache = reference[0](**arguments, params=params)
    found = y, backward(numbers(*y.shape, k=9), cache)
    wanted = wanted, reference[1](numbers(*y.shape, k=9), wanted_cache)
    wanted_arrays = dict(leaves(wanted))
    for name, array in leaves(found):
        assert np.abs(array - wanted_arrays[name]).max() <= 1e-12 * np.abs(wanted_arrays[name]).max(), name
    again = backward(numbers(*y.shape, k=9), cache)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(leaves(again), leaves(found[1]), strict=True))
