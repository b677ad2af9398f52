"""Rung 5, as far as it goes without a GPU: every pair runs on arrays that refuse NumPy, as CuPy's do."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minihra.arrays import array_module
from minihra.blocks.conformer import Conformer
from minihra.cases import Case, layer_cases, numbers
from minihra.masks import valid_from_lengths
from minihra.model import backward, ctc_loss, forward
from minihra.model_cases import block_cases
from minihra.ops import references
from minihra.optim import AdamW, clip_by_global_norm
from minihra.tree import Tree, children, leaves, map_leaves
from tests import standin
from tests.tiny import TASKS, Batch, batch, frozen_backbone, trained_hra

CASES = [*layer_cases(), *block_cases()]


@pytest.fixture(autouse=True)
def xp() -> Iterator[ModuleType]:
    with standin.installed() as module, references():
        yield module


@pytest.fixture
def cupy() -> ModuleType:
    return pytest.importorskip("cupy", reason="CuPy's names: pip install 'minihra[kernels]' (no GPU is needed)")


def moved(tree: Tree) -> Tree:
    """The tree with stand-ins for its arrays; what is no array stays."""
    return map_leaves(lambda leaf: standin.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)


def assert_same(got: Tree, expected: Tree, name: str = "") -> None:
    """To the bit, and every array of `got` a stand-in."""
    if isinstance(expected, np.ndarray):
        assert isinstance(got, standin.ndarray), f"{name} is a {type(got)}"
        assert got.dtype == expected.dtype, name
        assert standin.asnumpy(got).tobytes() == expected.tobytes(), name
    elif isinstance(expected, np.generic):  # NumPy makes a scalar of a sum over all; CuPy a 0-d array
        assert_same(got, np.asarray(expected), name)
    elif isinstance(expected, (tuple, dict)):
        assert len(got) == len(expected), name
        for (child_name, child), (_, other) in zip(children(expected), children(got), strict=True):
            assert_same(other, child, f"{name}.{child_name}")
    else:
        assert got == expected, name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_pair_runs_on_the_stand_in(case: Case, dtype: str) -> None:
    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if getattr(leaf, "dtype", None) == np.float64 else leaf

    arguments, constants = (map_leaves(cast, dict(tree)) for tree in (case.arguments, case.constants))
    *outputs, cache = case.pair.forward(**arguments, **constants)
    dys = [numbers(*y.shape, k=40).astype(dtype) for y in outputs[: case.outputs]]
    gradients = case.pair.backward(*dys, cache)
    *their_outputs, their_cache = case.pair.forward(**moved(arguments), **moved(constants))
    assert_same(tuple(their_outputs), tuple(outputs), "outputs")
    assert_same(their_cache, cache, "cache")
    assert_same(case.pair.backward(*moved(tuple(dys)), their_cache), gradients, "gradients")
    floats = [leaf for _, leaf in leaves((gradients, outputs[0])) if leaf.dtype.kind == "f"]
    assert {leaf.dtype.name for leaf in floats} == {dtype}


def moved_backbone(backbone: Conformer) -> Conformer:
    return Conformer(backbone.config, moved(backbone.p), moved(backbone.statistics), backbone.frozen)


def step(backbone: Conformer, given: Batch, hra: Any, tasks: list[str]) -> tuple:
    """One training step of an HRA: everything that it computes, and the parameters and moments after it."""
    logits, cache = forward(backbone, given.features, given.lengths, hra.edit(tasks))
    loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
    gradients, norm = clip_by_global_norm(backward(dlogits, cache).adapter, 0.5)
    optimiser = AdamW(decay=0.1)
    optimiser.update(hra.p, gradients, lr=1e-2)
    return logits, loss, gradients, norm, hra.p, optimiser.moments


@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn"), ("none", "linear")])
def test_step_of_an_hra_runs_on_the_stand_in(cell: str, head: str, conv_norm: str) -> None:
    backbone, given = frozen_backbone(conv_norm=conv_norm, reach=(3, 1)), batch()
    hra, their_hra = trained_hra(cell, head), trained_hra(cell, head)
    their_hra.p = moved(their_hra.p)
    theirs = step(moved_backbone(backbone), given._replace(features=moved(given.features)), their_hra, list(TASKS))
    assert_same(theirs, step(backbone, given, hra, list(TASKS)))


def test_training_of_a_backbone_runs_on_the_stand_in() -> None:
    backbone, given = frozen_backbone(), batch()
    backbone.frozen = False
    training = backbone.draw_dropout(0.2, len(TASKS), given.features.shape[1], np.random.default_rng(0))
    results = []
    for move in (lambda tree: tree, moved):
        model = Conformer(backbone.config, move(backbone.p), move(backbone.statistics), frozen=False)
        logits, cache = forward(model, move(given.features), given.lengths, None, move(training))
        loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
        statistics = tuple(layer.statistics for layer in cache.layers)
        results.append((logits, loss, backward(dlogits, cache).backbone, statistics))
    assert_same(results[1], results[0])


def test_mask_is_made_where_the_array_lives(xp: ModuleType) -> None:
    assert_same(valid_from_lengths([2, 0], 3, xp), valid_from_lengths([2, 0], 3))


# The stand-in itself


def test_stand_in_refuses_what_cupy_refuses(xp: ModuleType) -> None:
    x = xp.asarray(np.ones((2, 3)))
    assert array_module(x) is xp
    for mistake in (
        lambda: np.exp(x),
        lambda: np.concatenate([x, x]),
        lambda: np.asarray(x),
        lambda: x + np.ones(3),
        lambda: np.ones(3) + x,
        lambda: x * np.float64(2),
        lambda: x[np.array([0])],
        lambda: x.__setitem__(slice(None), np.ones(3)),
        lambda: xp.exp(np.ones(3)),
        lambda: bool(x.sum() > 0),
        lambda: float(x.sum()),
        lambda: list(x),
    ):
        with pytest.raises(TypeError):
            mistake()
    with pytest.raises(AttributeError):
        xp.einsum  # noqa: B018  a name that no pair uses and nobody compared with CuPy


def test_stand_in_has_no_name_that_cupy_lacks(cupy: ModuleType) -> None:
    special = pytest.importorskip("cupyx.scipy.special")
    for name in (*standin.FUNCTIONS, "asarray", "asnumpy", "finfo", "ndarray"):
        place = cupy
        for part in name.split("."):
            place = getattr(place, part)
    for name in standin.SPECIAL_FUNCTIONS:
        assert hasattr(special, name)
    for name in (*standin.METHODS, *standin.ATTRIBUTES):
        assert hasattr(cupy.ndarray, name), name
    operators = [*standin.BINARY, *(f"i{name}" for name in standin.IN_PLACE), *standin.UNARY]
    for name in operators:
        assert hasattr(cupy.ndarray, f"__{name}__"), name


def calls_of_all_cases() -> set[tuple[str, frozenset[str]]]:
    """What the pairs, the blocks, a training step and the twins for the GPU call."""
    standin.called.clear()
    for case in CASES:
        *outputs, cache = case.pair.forward(**moved(case.arguments), **moved(dict(case.constants)))
        case.pair.backward(*(moved(numbers(*y.shape)) for y in outputs[: case.outputs]), cache)
    test_step_of_an_hra_runs_on_the_stand_in("gru", "linear", "batch")
    from tests import test_cuda_twins  # which skips where there is no compiler

    with test_cuda_twins.emulated():
        for case in test_cuda_twins.CASES.values():
            test_cuda_twins.twin_results(case, np.float32)
    return standin.called


def test_cupy_takes_every_keyword_that_the_pairs_use(cupy: ModuleType) -> None:
    calls = calls_of_all_cases()
    assert len(calls) > len(standin.FUNCTIONS)
    for name, keywords in calls:
        function = cupy
        for part in name.removeprefix("special.").split("."):
            function = getattr(function, part, None)
        assert keywords <= parameters_of(function), f"{name} is called with {sorted(keywords)}"


def parameters_of(function: Any) -> set[str]:
    """The names of a function's parameters; methods in Cython tell them in the first line of their documentation."""
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return set(re.findall(r"(\w+)(?==|[,)])", (function.__doc__ or "").partition("\n")[0]))


def test_every_name_of_the_stand_in_is_used() -> None:
    """A name that nothing calls would be one that nothing checks."""
    used = {name for name, _ in calls_of_all_cases()}
    operators = [*standin.BINARY, *(f"i{name}" for name in standin.IN_PLACE), *standin.UNARY]
    offered = {*standin.FUNCTIONS, *(f"ndarray.{name}" for name in (*standin.METHODS, *standin.ATTRIBUTES, *operators))}
    assert offered - used == set()


def test_cupys_logaddexp_knows_minus_infinity(cupy: ModuleType) -> None:
    """CTC adds log-probabilities of impossible paths: -inf and -inf must give -inf, not NaN."""
    source = inspect.getsource(inspect.getmodule(cupy.logaddexp) or cupy._math.explog)
    assert re.search(r"'cupy_logaddexp'.*?if \(in0 == in1\)", source, re.DOTALL)
