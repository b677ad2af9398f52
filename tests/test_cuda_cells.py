"""The twins of the controller's cells for the GPU: what the cases of the switchboard do not have."""

from typing import Any

import numpy as np
import pytest

from minihra.adapters.parts import CELLS
from minihra.arrays import Array
from minihra.cases import filled_cell, numbers
from minihra.kernels.cuda import cells as twins
from minihra.tree import Tree, map_leaves
from tests.cuda_twins import emulated
from tests.test_twins import assert_same, reference_of


def step(cell: str, x: Array, h: Array, dh_next: Array, of: Any, **how: Any) -> list[Tree]:
    """The next state, the cache, and the gradients, of the reference or of twins."""
    forward, backward = (of(function) for function in CELLS[cell].pair)
    p = map_leaves(lambda leaf: leaf.astype(x.dtype), filled_cell(cell, x.shape[1], h.shape[1]))
    h_next, cache = forward(x, h, p, **how)
    return [h_next, cache, *backward(dh_next, cache)]


def twin_of(function: Any) -> Any:
    return getattr(twins, function.__name__)


@pytest.mark.parametrize("params", [True, False])
@pytest.mark.parametrize(("N", "C", "H"), [(0, 3, 2), (1, 1, 1), (131, 9, 17)])
@pytest.mark.parametrize("cell", CELLS)
def test_sizes(cell: str, N: int, C: int, H: int, params: bool) -> None:
    inputs = [numbers(N, width, k=k).astype(np.float32) for k, width in enumerate((C, H, H))]
    wanted = step(cell, *inputs, reference_of, params=params)
    with emulated(threads=64):
        assert_same(tuple(step(cell, *inputs, twin_of, params=params)), tuple(wanted), np.float32)


@pytest.mark.parametrize("cell", CELLS)
def test_arrays_that_do_not_lie_row_by_row(cell: str) -> None:
    x, h, dh_next = (np.repeat(numbers(5, width, k=k), 2, axis=1)[:, ::2] for k, width in enumerate((6, 7, 7)))
    wanted = step(cell, x, h, dh_next, reference_of)
    with emulated():
        assert_same(tuple(step(cell, x, h, dh_next, twin_of)), tuple(wanted), np.float64)
        assert_same(twin_of(CELLS[cell].pair.backward)(dh_next, wanted[1]), tuple(wanted[2:]), np.float64)


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_not_a_number_stays_so(cell: str) -> None:
    """In its frame, and in no other."""
    x, h, dh_next = (numbers(5, width, k=k) for k, width in enumerate((6, 7, 7)))
    x[2] = np.nan
    with emulated():
        h_next, *_ = step(cell, x, h, dh_next, twin_of)
    assert np.isnan(h_next[2]).all() and np.isfinite(np.delete(h_next, 2, axis=0)).all()
