"""A pair is a pure function: parameters may lie in any way in memory, or be frozen; inputs and cache stay unchanged."""

from collections.abc import Callable
from inspect import signature
from typing import Any

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.cases import Case, layer_cases
from minihra.model_cases import all_cases
from minihra.tree import Tree, leaves, map_leaves

CASES = {case.name: case for case in all_cases()}
PAIR_CASES = [case.name for case in layer_cases()]
TOLERANCE = 1e-12  # of the largest element: a matrix product of another layout may add in another order


def fixed(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


def strided(a: Array) -> Array:
    """A view of every second element along each axis."""
    wide = np.zeros(tuple(2 * size for size in a.shape), a.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in a.shape)]
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {"read-only": fixed, "strided": strided, "Fortran": np.asfortranarray}


def run(case: Case, arguments: dict[str, Tree]) -> tuple[tuple, Any]:
    """The differentiated outputs, for which the gradient of each is itself, and the cache."""
    *ys, cache = case.pair.forward(**arguments, **case.constants)
    return tuple(ys[: case.outputs]), cache


def laid_out(name: str, tree: Tree, layout: str) -> Tree:
    """Parameters in any layout; activations are contiguous by convention, and read-only at the most."""
    takes_it = name in ("p", "heads") or layout == "read-only"
    return map_leaves(LAYOUTS[layout], tree) if takes_it else tree


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_parameters_may_lie_in_any_way(name: str, layout: str) -> None:
    case = CASES[name]
    ys, cache = run(case, case.arguments)
    wanted = dict(leaves((ys, case.pair.backward(*ys, cache))))
    ys, cache = run(case, {key: laid_out(key, tree, layout) for key, tree in case.arguments.items()})
    found = dict(leaves((ys, case.pair.backward(*ys, cache))))
    assert found.keys() == wanted.keys()
    for key, leaf in wanted.items():
        assert np.abs(found[key] - leaf).max(initial=0) <= TOLERANCE * np.abs(leaf).max(initial=0), key


@pytest.mark.parametrize("name", CASES)
def test_a_backward_can_be_taken_twice(name: str) -> None:
    case = CASES[name]
    ys, cache = run(case, case.arguments)
    dys = map_leaves(fixed, ys)
    first, second = (dict(leaves(case.pair.backward(*dys, cache))) for _ in range(2))
    assert {key: leaf.tobytes() for key, leaf in first.items()} == {key: leaf.tobytes() for key, leaf in second.items()}


FREEZABLE = [name for name in PAIR_CASES if "params" in signature(CASES[name].pair.forward).parameters]


@pytest.mark.parametrize("name", FREEZABLE)
def test_frozen_parameters_change_no_other_gradient(name: str) -> None:
    case = CASES[name]
    *ys, cache = case.pair.forward(**case.arguments, **case.constants)
    *frozen_ys, frozen_cache = case.pair.forward(**case.arguments, **case.constants, params=False)
    *given, dp = case.pair.backward(*ys, cache)
    *frozen_given, frozen_dp = case.pair.backward(*ys, frozen_cache)
    assert list(leaves(dp)) and not list(leaves(frozen_dp))
    for (_, a), (_, b) in zip(leaves((*ys, *given)), leaves((*frozen_ys, *frozen_given)), strict=True):
        assert a.tobytes() == b.tobytes()
    # What only dp needs is not kept: a field is None, or a flag says so.
    kept, frozen_kept = (dict(leaves(tree)) for tree in (cache, frozen_cache))
    assert frozen_kept.keys() < kept.keys() or frozen_cache.params is False


def test_every_pair_with_parameters_can_be_frozen() -> None:
    """But batch norm: a frozen one is a running norm."""
    with_parameters = {name.partition(",")[0] for name in PAIR_CASES if CASES[name].arguments.keys() & {"p", "heads"}}
    assert with_parameters - {"batch_norm"} == {name.partition(",")[0] for name in FREEZABLE}
