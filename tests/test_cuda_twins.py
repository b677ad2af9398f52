"""Rung 5 for the GPU: every twin of `kernels/cuda` against its reference, its kernels run on the CPU by an emulation.

The twins are given stand-ins, which refuse what CuPy's arrays refuse. In other orders of the threads the bits are the
same, and a checked build finds no race and no access outside of an array.
"""

from collections.abc import Callable, Iterator
from inspect import signature
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minihra.cases import Case
from minihra.ops import CUDA_TWINS, PAIRS, twins_in
from minihra.tree import Tree, map_leaves
from tests import standin
from tests.cuda_twins import emulated
from tests.test_twins import (
    ALL,
    TOLERANCE,
    arguments_of,
    as_tuple,
    assert_same,
    named,
    output_gradient,
    reference_of,
)

CASES = {case.name: case for case in ALL if case.name.partition(",")[0] in CUDA_TWINS}


@pytest.fixture(autouse=True)
def xp() -> Iterator[ModuleType]:
    with standin.installed() as module:
        yield module


def twin_of(function: Callable) -> Callable:
    """The twin for the GPU of a function of the switchboard; where only its partner has one, the reference."""
    name = function.__name__
    return getattr(twins_in(CUDA_TWINS[name.rpartition("_")[0]], "cuda"), name, reference_of(function))


def moved(tree: Tree) -> Tree:
    """The tree with stand-ins for its arrays, contiguous ones, as they come to a GPU."""
    return map_leaves(lambda a: standin.asarray(np.ascontiguousarray(a)) if isinstance(a, np.ndarray) else a, tree)


def back(tree: Tree) -> Tree:
    """The tree with the arrays that its stand-ins hide; an array that is no stand-in has no place in it."""

    def one(leaf: Any) -> Any:
        assert not isinstance(leaf, np.ndarray), "an array on the host among those of the GPU"
        return leaf.hidden if isinstance(leaf, standin.ndarray) else leaf

    return map_leaves(one, tree)


def on_gpu(function: Callable, *arguments: Any, **named: Any) -> Any:
    return back(function(*moved(arguments), **moved(named)))


def twin_results(case: Case, dtype: type) -> list[Tree]:
    """The outputs, cache and gradients of a twin."""
    forward, backward = map(twin_of, case.pair)
    *outputs, cache = forward(**moved(arguments_of(case, dtype)))
    gradients = backward(moved(output_gradient(back(outputs[0]))), cache)
    return [back(tuple(outputs)), back(cache), back(as_tuple(gradients))]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", CASES)
def test_twin_equals_its_reference(name: str, dtype: type) -> None:
    case, pair = CASES[name], CASES[name].pair
    arguments = arguments_of(case, dtype)
    *wanted, wanted_cache = reference_of(pair.forward)(**arguments)
    with emulated():
        *outputs, cache = on_gpu(twin_of(pair.forward), **arguments)
        assert_same(tuple(outputs), tuple(wanted), dtype)
        assert type(cache) is type(wanted_cache)
        assert_same(cache, wanted_cache, dtype)
        dy = output_gradient(outputs[0])
        gradients = as_tuple(reference_of(pair.backward)(dy, wanted_cache))
        for its_cache in (cache, wanted_cache):
            found = as_tuple(on_gpu(twin_of(pair.backward), dy, its_cache))
            assert named(found).keys() == named(gradients).keys()
            assert_same(found, gradients, dtype)
    assert named(cache).keys() == named(wanted_cache).keys()
    assert_same(as_tuple(reference_of(pair.backward)(dy, cache)), gradients, dtype)


@pytest.mark.parametrize("name", CASES)
def test_twin_with_frozen_parameters(name: str) -> None:
    case, pair = CASES[name], CASES[name].pair
    if "params" not in signature(pair.forward).parameters:
        pytest.skip("it has no parameters")
    arguments = arguments_of(case, np.float32)
    y, wanted = reference_of(pair.forward)(**arguments, params=False)
    with emulated():
        _, cache = on_gpu(twin_of(pair.forward), **arguments, params=False)
        found = on_gpu(twin_of(pair.backward), output_gradient(y), cache)
    assert {field for field, value in zip(cache._fields, cache, strict=True) if value is None} == {
        field for field, value in zip(wanted._fields, wanted, strict=True) if value is None
    }
    gradients = reference_of(pair.backward)(output_gradient(y), wanted)
    assert named(found[-1]) == named(gradients[-1]) == {}
    assert_same(found, gradients, np.float32)


@pytest.mark.parametrize("name", CASES)
def test_threads_in_any_order_give_the_same_bits(name: str) -> None:
    """And with one launch of larger blocks the same numbers."""
    results = []
    for order, seed in ((0, 0), (1, 0), (2, 1), (2, 2)):
        with emulated(order=order, seed=seed):
            results.append([a.tobytes() for a in named(tuple(twin_results(CASES[name], np.float32))).values()])
    assert all(result == results[0] for result in results)
    with emulated(threads=10):
        few = tuple(twin_results(CASES[name], np.float32))
    with emulated(threads=128):
        assert_same(tuple(twin_results(CASES[name], np.float32)), few, np.float32)


@pytest.mark.parametrize("name", CASES)
def test_checked(name: str) -> None:
    """No race, no read of what nobody wrote, no access outside of an array, no misaligned one."""
    with emulated(checked=True, threads=64):
        twin_results(CASES[name], np.float32)


@pytest.mark.parametrize("name", CASES)
def test_signature_is_that_of_the_reference(name: str) -> None:
    for function in CASES[name].pair:
        wanted, found = signature(reference_of(function)), signature(twin_of(function))
        assert [(p.name, p.kind, p.default) for p in found.parameters.values()] == [
            (p.name, p.kind, p.default) for p in wanted.parameters.values()
        ]


def test_every_twin_has_a_case() -> None:
    assert {name.partition(",")[0] for name in CASES} == CUDA_TWINS.keys() <= PAIRS.keys()


def test_every_twin_is_reached_by_the_switchboard() -> None:
    """A function of a pair that is not hot would never be left to its twin."""
    for pair, file in CUDA_TWINS.items():
        for function in PAIRS[pair]:
            if hasattr(twins_in(file, "cuda"), function.__name__):
                assert hasattr(function, "__wrapped__"), function.__name__
        assert hasattr(twins_in(file, "cuda"), f"{pair}_forward"), pair
