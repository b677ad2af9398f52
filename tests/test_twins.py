"""Rung 5: twins for the CPU against their references, looped over the switchboard's table.

The same signature, the same results and caches, each other's caches, the same bits when run twice; and with the twins
away, or forbidden, everything runs on the references.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.blocks.subsampling import SubsamplingParams, subsample
from minihra.cases import Case, filled_head, layer_cases, numbers
from minihra.layers.conv2d import Conv2dParams
from minihra.layers.linear import LinearParams
from minihra.layers.norms import BatchNormParams, BatchStatistics
from minihra.layers.relative_attention import RelativePositionParams, relative_positions
from minihra.masks import valid_from_lengths
from minihra.ops import PAIRS, TWINS, UNPAIRED, Pair, draw_keep, references, twins_in
from minihra.optim import adamw_update_leaves, clip_leaves, clipped_adamw_leaves
from minihra.threads import share, together
from minihra.tree import Total, Tree, add, leaves, map_leaves
from tests.imports_of import ROOT

pytest.importorskip("numba", reason="the twins for the CPU need numba")

TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}  # of the largest element


def reference_of(function: Callable) -> Callable:
    return getattr(function, "__wrapped__", function)


def twin_of(function: Callable) -> Callable:
    """The twin of a function of the switchboard; where only its partner has one, the reference."""
    name = function.__name__
    return getattr(twins_in(TWINS[name.rpartition("_")[0]]), name, reference_of(function))


def larger_cases() -> list[Case]:
    """Inputs that cross the borders of tiles and parts, which the tiny ones do not."""
    B, T, A, D, C = 3, 53, 2, 9, 18
    valid, positions = valid_from_lengths([53, 31, 0], T), relative_positions(T, C, np.dtype(np.float64))
    queries = {name: 3 * numbers(B, T, A, D, k=k) for k, name in enumerate(("q", "k", "value"))}
    p = RelativePositionParams(numbers(C, A * D, k=5), numbers(A, D, k=6), numbers(A, D, k=7))
    W, b = numbers(515, 600, k=1).T, numbers(515, k=2)
    return [
        Case("linear, few rows of a large map", PAIRS["linear"], {"x": numbers(2, 19, 600), "p": LinearParams(W, b)}),
        Case(
            "grouped_heads, without bias",
            PAIRS["grouped_heads"],
            {"h": numbers(4, 3, 17), "heads": {t: LinearParams(numbers(17, 18, k=1), None) for t in ("ann", "bob")}},
            {"segments": (("ann", 0, 1), ("bob", 1, 4))},
        ),
        Case("linear, large without bias", PAIRS["linear"], {"x": numbers(37, 600), "p": LinearParams(W, None)}),
        Case("attention, long", PAIRS["attention"], queries, {"valid": valid, "reach": (20, None)}),
        Case(
            "relative_attention, long",
            PAIRS["relative_attention"],
            {**queries, "p": p},
            {"positions": positions, "valid": valid, "reach": (None, 7)},
        ),
        Case(
            "ctc, long",
            PAIRS["ctc"],
            {"logits": numbers(3, 23, 9)},
            {
                "valid": valid_from_lengths([23, 19, 0], 23),
                "labels": np.arange(30).reshape(3, 10) % 8 + 1,
                "label_lengths": np.array([10, 9, 3]),
            },
        ),
        *(
            Case(
                f"conv2d, {T} x {F}, {I} to {O} channels",
                PAIRS["conv2d"],
                {"x": numbers(3, T, F, I), "p": Conv2dParams(numbers(3, 3, I, O, k=1), numbers(O, k=2))},
                {"valid": valid_from_lengths([T, T // 2, 0], T)},
            )
            for T, F, I, O in (
                (8, 12, 1, 5),
                (8, 12, 4, 5),
                (9, 7, 17, 18),
                (1, 1, 2, 3),
                (2, 15, 1, 33),
                (11, 2, 33, 7),
                (37, 6, 5, 50),
                (64, 13, 3, 101),
            )
        ),
        Case(
            "batch_norm, far from 0",
            PAIRS["batch_norm"],
            {"x": 30 + numbers(3, 5, 6), "p": BatchNormParams(1 + numbers(6, k=1) / 2, numbers(6, k=2))},
            {
                "valid": valid_from_lengths([5, 3, 0], 5),
                "statistics": BatchStatistics(30 + numbers(6, k=3) / 2, 1 + numbers(6, k=4) / 2),
            },
        ),
        Case(
            "running_norm, far from 0",
            PAIRS["running_norm"],
            {"x": 10000 + numbers(3, 5, 6), "p": BatchNormParams(1 + numbers(6, k=1) / 2, numbers(6, k=2))},
            {"statistics": BatchStatistics(10000 + numbers(6, k=3) / 2, 1 + numbers(6, k=4) / 2)},
        ),
        Case("swish, far from 0", PAIRS["swish"], {"x": 200 * numbers(7, 33)}),
        Case("glu, far from 0", PAIRS["glu"], {"x": 200 * numbers(7, 34)}),
    ]


ALL = [*layer_cases(), *larger_cases()]
SUBSAMPLE = twins_in(UNPAIRED["subsample"]).subsample
NARROW = {"grouped_heads, linear", "grouped_heads, ffn"}  # which the twin leaves to the reference
CASES = {case.name: case for case in ALL if case.name.partition(",")[0] in TWINS and case.name not in NARROW}


def cast(tree: Tree, dtype: type) -> Tree:
    """A tree whose floating-point leaves have `dtype`, in the order of memory that they had, and can not be written."""

    def one(leaf: Any) -> Any:
        if getattr(leaf, "dtype", None) == np.float64:
            leaf = np.array(leaf, dtype, order="K")
            leaf.flags.writeable = False
        return leaf

    return map_leaves(one, tree)


def arguments_of(case: Case, dtype: type) -> dict[str, Any]:
    return {**cast(case.arguments, dtype), **cast(dict(case.constants), dtype)}


def as_tuple(gradients: Any) -> tuple:
    return gradients if type(gradients) is tuple else (gradients,)


def named(tree: Tree) -> dict[str, Array]:
    return {name: np.asarray(leaf) for name, leaf in leaves(tree) if isinstance(leaf, np.ndarray | np.generic)}


def assert_same(found: Tree, wanted: Tree, dtype: type) -> None:
    """Every array that is found equals the one of the reference."""
    found, wanted = named(found), named(wanted)
    assert found.keys() <= wanted.keys()
    for name, a in found.items():
        b = wanted[name]
        assert a.dtype == b.dtype and a.shape == b.shape, name
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite], equal_nan=True), name  # the log of 0
        wide = np.result_type(b.dtype, float)  # complex where the spectrum of a frame is
        error = np.abs(a[finite].astype(wide) - b[finite].astype(wide)).max(initial=0)
        assert error <= TOLERANCE[dtype] * np.abs(b[finite]).max(initial=1e-30), (name, error)


def output_gradient(y: Array) -> Array:
    return numbers(*y.shape, k=40).astype(y.dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", CASES)
def test_twin_equals_its_reference(name: str, dtype: type) -> None:
    case, pair = CASES[name], CASES[name].pair
    arguments = arguments_of(case, dtype)
    *outputs, cache = twin_of(pair.forward)(**arguments)
    *wanted, wanted_cache = reference_of(pair.forward)(**arguments)
    y = outputs[0]  # a batch norm has its running statistics beside it
    assert_same(tuple(outputs), tuple(wanted), dtype)
    assert type(cache) is type(wanted_cache)
    assert_same(cache, wanted_cache, dtype)
    dy = output_gradient(y)
    gradients = as_tuple(reference_of(pair.backward)(dy, wanted_cache))
    for its_cache in (cache, wanted_cache):
        found = as_tuple(twin_of(pair.backward)(dy, its_cache))
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
    _, cache = twin_of(pair.forward)(**arguments, params=False)
    y, wanted = reference_of(pair.forward)(**arguments, params=False)
    assert {field for field, value in zip(cache._fields, cache, strict=True) if value is None} == {
        field for field, value in zip(wanted._fields, wanted, strict=True) if value is None
    }
    found, gradients = (
        twin_of(pair.backward)(output_gradient(y), cache),
        reference_of(pair.backward)(output_gradient(y), wanted),
    )
    assert named(found[-1]) == named(gradients[-1]) == {}
    assert named(found).keys() == named(gradients).keys()
    assert_same(found, gradients, np.float32)


@pytest.mark.parametrize("of", [reference_of, twin_of], ids=["reference", "twin"])
@pytest.mark.parametrize("name", ["conv2d", "depthwise_conv2d"])
def test_nobody_wants_the_gradient_of_the_input(name: str, of: Callable) -> None:
    pair, arguments = PAIRS[name], arguments_of(CASES[name], np.float32)
    gradients = []
    for below in (True, False):
        y, cache = of(pair.forward)(**arguments, below=below)
        gradients.append(of(pair.backward)(output_gradient(y), cache))
    (dx, dp), (none, same) = gradients
    assert dx.shape == arguments["x"].shape and none is None
    assert_same(same, dp, np.float32)


@pytest.mark.parametrize("of", [reference_of, twin_of], ids=["reference", "twin"])
def test_batch_norm_of_parts_is_that_of_the_batch(of: Callable) -> None:
    forward, backward = of(PAIRS["batch_norm"].forward), of(PAIRS["batch_norm"].backward)
    arguments = arguments_of(CASES["batch_norm"], np.float32)
    y, statistics, cache = forward(**arguments)
    dx, dp = backward(output_gradient(y), cache)

    def part(rows: slice, total: Total) -> Tree:
        some = arguments | {"x": arguments["x"][rows], "valid": arguments["valid"][rows], "total": total}
        y_part, statistics, cache = forward(**some)
        dx, dp = backward(output_gradient(y)[rows], cache)
        return (y_part, dx), dp, statistics

    parts = together([partial(part, rows) for rows in (slice(0, 1), slice(1, None))])
    outputs, dps, (first, second) = zip(*parts, strict=True)
    assert_same(tuple(map(np.concatenate, zip(*outputs, strict=True))), (y, dx), np.float32)
    assert_same(add(*dps), dp, np.float32)
    assert_same(first, statistics, np.float32)
    assert [leaf.tobytes() for leaf in first] == [leaf.tobytes() for leaf in second]


@pytest.mark.parametrize("name", CASES)
def test_same_bits_again(name: str) -> None:
    pair, arguments = CASES[name].pair, arguments_of(CASES[name], np.float32)

    def run() -> list[bytes]:
        *outputs, cache = twin_of(pair.forward)(**arguments)
        gradients = as_tuple(twin_of(pair.backward)(output_gradient(outputs[0]), cache))
        return [a.tobytes() for a in named((tuple(outputs), cache, gradients)).values()]

    assert run() == run()


@pytest.mark.parametrize("name", CASES)
def test_signature_is_that_of_the_reference(name: str) -> None:
    for function in CASES[name].pair:
        wanted, found = signature(reference_of(function)), signature(twin_of(function))
        assert [(p.name, p.kind, p.default) for p in found.parameters.values()] == [
            (p.name, p.kind, p.default) for p in wanted.parameters.values()
        ]


@pytest.mark.parametrize(
    "function",
    [adamw_update_leaves, clip_leaves, clipped_adamw_leaves, subsample, draw_keep],
    ids=lambda function: function.__name__,
)
def test_unpaired_twins_have_the_signature_of_the_reference(function: Callable) -> None:
    twin = getattr(twins_in(UNPAIRED[function.__name__]), function.__name__)
    wanted, found = signature(reference_of(function)), signature(twin)
    assert [(p.name, p.kind, p.default) for p in found.parameters.values()] == [
        (p.name, p.kind, p.default) for p in wanted.parameters.values()
    ]


def test_every_twin_has_a_case() -> None:
    assert {name.partition(",")[0] for name in CASES} == TWINS.keys() <= PAIRS.keys()
    assert UNPAIRED.keys() == {
        "adamw_update_leaves",
        "clip_leaves",
        "clipped_adamw_leaves",
        "subsample",
        "draw_keep",
    }


def front_end(frequencies: int, I: int, O: int, bias: bool = True) -> SubsamplingParams:
    rows = -(-frequencies // 4) * O
    return SubsamplingParams(
        (
            Conv2dParams(numbers(3, 3, 1, I, k=1), numbers(I, k=2)),
            Conv2dParams(numbers(3, 3, I, O, k=3) / 2, numbers(O, k=4)),
        ),
        LinearParams(numbers(rows, 21, k=5), numbers(21, k=6) if bias else None),
    )


SHAPES = ((7, 33), (5,), (), (0, 3), (2, 3, 4))
DECAYS = [0.1, 0.0, 0.0, 0.1, 0.2]


def leaves_of(dtype: type, k: int) -> list[Array]:
    return [np.array(numbers(*shape, k=k + 10 * n), dtype) for n, shape in enumerate(SHAPES)]


def optimised(update: Callable, dtype: type, gs: list[Array], limit: float | None = None) -> list[Array]:
    """All that two steps of AdamW move, and with a limit the norms."""
    ps, ms, vs = leaves_of(dtype, 0), leaves_of(dtype, 2), [np.square(g, out=g) for g in leaves_of(dtype, 3)]
    moments = [(m, v, np.array(2.0 + n)) for n, (m, v) in enumerate(zip(ms, vs, strict=True))]
    limits, how = [] if limit is None else [limit], {"beta1": 0.8, "beta2": 0.99, "eps": 1e-4, "decays": DECAYS}
    norms = [update(ps, gs, moments, np.array(0.01), *limits, **how) for _ in range(2)]
    assert (norms == [None, None]) == (limit is None)
    return [*ps, *chain(*moments), *([] if limit is None else norms)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("order", ["C", "F"])
def test_optimiser(order: str, dtype: type) -> None:
    """Also by a gradient that lies as PyTorch stores it."""
    gs = [np.asarray(g, order=order) for g in leaves_of(dtype, 1)]
    twin, reference = twins_in("adamw").adamw_update_leaves, reference_of(adamw_update_leaves)
    found, wanted = optimised(twin, dtype, gs), optimised(reference, dtype, gs)
    assert_same(tuple(found), tuple(wanted), dtype)
    assert [float(step) for *_, step in zip(*[iter(found[len(SHAPES) :])] * 3, strict=True)] == [4, 5, 6, 7, 8]
    assert all((p != before).all() for p, before in zip(found, leaves_of(dtype, 0), strict=False) if p.size)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share", [0.01, 0.999, 1.001, 100])
def test_optimiser_with_clipping(share: float, order: str, dtype: type) -> None:
    """To a share of the norm; what is clipped is no other array than the reference's."""
    gs = [np.asarray(g, order=order) for g in leaves_of(dtype, 1)]
    limit, before = share * float(np.sqrt(sum(np.square(g.astype(float)).sum() for g in gs))), [g.copy() for g in gs]
    twin, reference = twins_in("adamw").clipped_adamw_leaves, reference_of(clipped_adamw_leaves)
    with references():
        wanted = optimised(reference, dtype, gs, limit)
    found = optimised(twin, dtype, gs, limit)
    assert_same(tuple(found), tuple(wanted), dtype)
    assert found[-1].dtype == dtype
    assert all(map(np.array_equal, gs, before))


def test_an_optimiser_clips_what_is_not_finite() -> None:
    """Infinity leaves nothing of the finite gradients, NaN nothing of anything; as the reference has it, also where it
    is the norm alone that is infinite.
    """
    how = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "decays": [0.0, 0.0]}
    for broken, wanted in ((np.inf, [np.nan, 1.0]), (np.nan, [np.nan, np.nan]), (1e20, [1.0, 1.0])):
        results = []
        for update in (twins_in("adamw").clipped_adamw_leaves, reference_of(clipped_adamw_leaves)):
            ps, gs = ([np.full(n, value, np.float32) for n, value in ((1, one), (3, 1.0))] for one in (1.0, broken))
            moments = [(np.zeros_like(p), np.zeros_like(p), np.array(0.0)) for p in ps]
            with references(), np.errstate(all="ignore"):
                norm = update(ps, gs, moments, np.array(0.1), 1.0, **how)
            results.append([norm, *ps[0], *ps[1]])
        norm = np.nan if np.isnan(broken) else np.inf
        np.testing.assert_equal(results[0], np.float32([norm, wanted[0], *[wanted[1]] * 3]))
        np.testing.assert_equal(results[0], results[1])


@pytest.mark.parametrize("number", [2, 3, 11])
def test_threads_share_the_leaves(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when there are more of them than leaves; the bits are those of one thread, for every leaf once."""
    adamw, gs = twins_in("adamw"), leaves_of(np.float32, 1)

    def results() -> list[Array]:
        clipped, norm = adamw.clip_leaves(gs, 0.5)
        moved = optimised(adamw.adamw_update_leaves, np.float32, gs)
        return [*clipped, norm, *moved, *optimised(adamw.clipped_adamw_leaves, np.float32, gs, 0.5)]

    wanted, shared = results(), []
    for name, value in (("LARGE", 1), ("threads", lambda: number), ("alone", lambda: False)):
        monkeypatch.setattr(adamw, name, value)
    monkeypatch.setattr(adamw, "share", lambda tasks: (shared.append(len(tasks)), share(tasks)))
    for a, b in zip(results(), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(shared) == {number}


@pytest.mark.parametrize(
    ("sizes", "portions"),
    [
        ([50, 50], [[0], [1]]),
        ([60, 40], [[0], [1]]),
        ([90, 10], [[0], [1]]),
        ([10, 90], [[0], [1]]),
        ([1, 1, 1, 97], [[0, 1, 2], [3]]),
        ([5, 0, 5, 10], [[0, 1, 2], [3]]),
    ],
)
def test_portions_have_about_as_many_elements(
    sizes: list[int], portions: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    adamw, seen = twins_in("adamw"), []
    for name, value in (("LARGE", 1), ("threads", lambda: 2), ("alone", lambda: False)):
        monkeypatch.setattr(adamw, name, value)
    adamw.in_portions(np.array(sizes), lambda some: seen.append([*range(len(sizes))][some]))
    assert sorted(seen) == portions


@pytest.mark.parametrize("number", [2, 3, 7])
def test_threads_share_the_numbers_of_a_mask(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of NumPy, and so is what the generator draws after it."""
    drawing, like = twins_in("drawing"), np.zeros(1, np.float32)
    monkeypatch.setattr(drawing, "threads", lambda: number)
    monkeypatch.setattr(drawing, "LEAST", 1)
    for seed, shape in enumerate([(1,), (2,), (3,), (13,), (14, 3), (2, 3, 50), (40, 101), (3, 5, 7, 11)]):
        ours, numpys = (np.random.default_rng([seed, 7]) for _ in range(2))
        for rate in (0.1, 0.5):
            begun, half = ours.bit_generator.state, numpys.bit_generator.state["has_uint32"]
            found, wanted = drawing.draw_keep(like, ours, shape, rate=rate), numpys.random(shape, np.float32) >= rate
            if half:  # of a word that the mask before began
                assert found is NotImplemented and ours.bit_generator.state == begun
                found = reference_of(draw_keep)(like, ours, shape, rate=rate)
            assert found.dtype == bool
            np.testing.assert_array_equal(found, wanted)
            assert ours.bit_generator.state == numpys.bit_generator.state


def test_masks_that_are_numpys_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few numbers, those of a thread that is alone, and those of another generator."""
    drawing, like = twins_in("drawing"), np.zeros(1, np.float32)
    monkeypatch.setattr(drawing, "threads", lambda: 2)
    assert drawing.draw_keep(like, np.random.default_rng(0), (300, 301), rate=0.1) is not NotImplemented
    assert drawing.draw_keep(like, np.random.default_rng(0), (30, 301), rate=0.1) is NotImplemented
    other = np.random.Generator(np.random.MT19937(0))
    assert drawing.draw_keep(like, other, (300, 301), rate=0.1) is NotImplemented
    monkeypatch.setattr(drawing, "alone", lambda: True)
    assert drawing.draw_keep(like, np.random.default_rng(0), (300, 301), rate=0.1) is NotImplemented


def test_an_optimiser_that_a_loop_would_misread_is_the_references() -> None:
    def with_leaf(p: Array, g: Array, m: Array, v: Array, step: Array) -> Any:
        how = {"beta1": 0.8, "beta2": 0.99, "eps": 1e-4, "decays": [0.1]}
        return twins_in("adamw").adamw_update_leaves([p], [g], [(m, v, step)], np.array(0.01), **how)

    p, g, m, v, step = *(numbers(3, 4, k=k) for k in range(3)), np.ones((3, 4)), np.array(1.0)
    frozen = p.copy()
    frozen.flags.writeable = False
    for leaf in (
        (p.T, g.T, m.T, v.T, step),
        (p, g[:2], m, v, step),
        (p, g, m, v.astype(np.float32), step),
        (p, g, m, v, np.array(1)),
        (frozen, g, m, v, step),
    ):
        assert with_leaf(*leaf) is NotImplemented
    assert step == 1
    assert with_leaf(p, g, m, v, step) is None


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("share", [0.01, 0.999, 1.001, 100])
def test_clipping(share: float, order: str, dtype: type) -> None:
    """To a share of the norm, and where the limit is just below and just above it."""
    gs = [np.asarray(g, order=order) for g in leaves_of(dtype, 1)]
    limit = share * float(np.sqrt(sum(np.square(g.astype(float)).sum() for g in gs)))
    before = [g.copy() for g in gs]
    found, norm = twins_in("adamw").clip_leaves(gs, limit)
    wanted, wanted_norm = reference_of(clip_leaves)(gs, limit)
    assert_same((*found, norm), (*wanted, wanted_norm), dtype)
    assert norm.dtype == dtype
    assert norm > 0.5
    assert all(map(np.array_equal, gs, before))


def test_clipping_of_what_is_not_finite() -> None:
    """Infinity leaves nothing of the finite ones, NaN nothing of anything."""
    clip = twins_in("adamw").clip_leaves
    (infinite, others), norm = clip([np.array([np.inf], np.float32), np.ones(3, np.float32)], 1.0)
    assert np.isinf(norm)
    assert np.isnan(infinite).all()
    assert (others == 0).all()
    (broken, others), norm = clip([np.array([np.nan], np.float32), np.ones(3, np.float32)], 1.0)
    assert np.isnan([norm, *broken, *others]).all()
    assert clip([np.ones(3, np.float32), np.ones(3)], 1.0) is NotImplemented


@pytest.mark.parametrize("T", [1, 2, 3, 4, 5, 15, 16, 17, 18, 19, 31, 32, 33, 34, 35, 47])
@pytest.mark.parametrize(("F", "I"), [(9, 17), (8, 1), (7, 1)])
def test_convolution_of_all_remainders_of_a_block(T: int, F: int, I: int) -> None:
    """Outputs are computed in pairs of a block of frames, and what the next block reads, too, has gradients of both."""
    case, lengths = CASES["conv2d, 9 x 7, 17 to 18 channels"], [T, T - 1, T // 2]
    p = Conv2dParams(numbers(3, 3, I, 18, k=1), numbers(18, k=2))
    arguments = {"x": numbers(3, T, F, I), "p": p, "valid": valid_from_lengths(lengths, T)}
    arguments["x"][~arguments["valid"]] = np.nan
    y, cache = reference_of(case.pair.forward)(**arguments)
    assert_same(twin_of(case.pair.forward)(**arguments)[0], y, np.float64)
    found, wanted = (which(case.pair.backward)(output_gradient(y), cache) for which in (twin_of, reference_of))
    assert_same(found, wanted, np.float64)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins_in("subsampling"), "alone", lambda: True)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [([1], (4, 1, 1)), ([2, 0, 1], (5, 3, 2)), ([103, 98, 3], (21, 5, 17)), ([210, 210], (23, 7, 33))],
)
def test_fused_front_end(lengths: list[int], sizes: tuple[int, int, int], dtype: type) -> None:
    """All remainders of tiles, and padding that nobody may read."""
    T, (F, I, O) = max(lengths), sizes
    valid = valid_from_lengths(lengths, T)
    features = numbers(len(lengths), T, F).astype(dtype)
    features[~valid] = np.nan
    for p in (cast(front_end(F, I, O), dtype), cast(front_end(F, I, O, bias=False), dtype)):
        found, wanted = (which(features, valid, p, scale=1.5) for which in (SUBSAMPLE, reference_of(subsample)))
        assert_same(found, wanted, dtype)
        assert found[0].tobytes() == SUBSAMPLE(features, valid, p, scale=1.5)[0].tobytes()


@pytest.mark.usefixtures("alone")
def test_fused_front_end_refuses_what_the_reference_refuses() -> None:
    features, valid, p = np.zeros((2, 9, 12), np.float32), np.ones((2, 9), bool), cast(front_end(12, 3, 4), np.float32)
    (first, second), out = p
    short_biases = [
        p._replace(convs=(first._replace(b=first.b[:-1]), second)),
        p._replace(convs=(first, second._replace(b=second.b[:-1]))),
        p._replace(out=out._replace(b=out.b[:-1])),
    ]
    for arguments in (
        (features[..., :8], valid, p),
        (features, valid[:1], p),
        *((features, valid, q) for q in short_biases),
    ):
        for function in (SUBSAMPLE, reference_of(subsample)):
            with pytest.raises((ValueError, IndexError)):
                function(*arguments)


@pytest.mark.usefixtures("alone")
def test_nan_of_a_real_frame_shows() -> None:
    features, valid = np.zeros((2, 9, 12), np.float32), np.ones((2, 9), bool)
    features[1, 4, 7] = np.nan
    y, _ = SUBSAMPLE(features, valid, cast(front_end(12, 3, 4), np.float32))
    assert np.isfinite(y[0]).all() and np.isnan(y[1, 1]).any()


def test_fused_front_end_leaves_others_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it does not know; not a caller who has several threads."""
    features, valid, p = np.zeros((2, 9, 12), np.float32), np.ones((2, 9), bool), cast(front_end(12, 3, 4), np.float32)
    assert SUBSAMPLE(features, valid, p._replace(convs=p.convs[:1])) is NotImplemented
    taken = []
    monkeypatch.setattr(twins_in("subsampling"), "_front_end", lambda *_: taken.append(True))
    monkeypatch.setattr(twins_in("subsampling"), "threads", lambda: 2)
    for is_alone in (False, True):
        monkeypatch.setattr(twins_in("subsampling"), "alone", lambda is_alone=is_alone: is_alone)
        assert subsample(features, valid, p)[0].shape == (2, 3, 21)
        assert len(taken) == (3 if is_alone else 2)


@pytest.mark.parametrize("threads", [2, 3, 5, 40])
@pytest.mark.parametrize("lengths", [[1], [75], [403], [403, 300, 9]])
def test_threads_share_the_fused_front_end(lengths: list[int], threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single recording, too, in blocks; with the bits of one thread."""
    file, valid, p = (
        twins_in("subsampling"),
        valid_from_lengths(lengths, max(lengths)),
        cast(front_end(12, 3, 4), np.float32),
    )
    features = numbers(*valid.shape, 12).astype(np.float32)
    features[~valid] = np.nan
    monkeypatch.setattr(file, "threads", lambda: threads)
    monkeypatch.setattr(file, "alone", lambda: True)
    one = SUBSAMPLE(features, valid, p)[0]
    monkeypatch.setattr(file, "alone", lambda: False)
    several, _ = SUBSAMPLE(features, valid, p)
    assert several.flags.c_contiguous and several.tobytes() == one.tobytes()
    size, bounds = file.blocks_of(*one.shape[:2])
    assert size % 2 == 0 and file.ROWS <= size <= file.TOGETHER
    assert len(bounds) == threads + 1 and bounds[-1] == len(lengths) * -(-one.shape[1] // size)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("head", ["linear", "ffn"])
@pytest.mark.parametrize("widths", [(16, 16, 16), (19, 33, 23)])  # H, C, R
def test_heads_in_one_loop(
    widths: tuple[int, int, int], head: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether threads share them or not: tasks of many rows and of few, more and fewer tasks than threads."""
    file = twins_in(TWINS["grouped_heads"])
    rng, T, (H, C, R) = np.random.default_rng(0), 3, widths
    for sizes, params in (
        ([1], True),
        ([7], True),
        ([5, 1, 1], False),
        ([1, 1, 9, 2, 1, 3], True),
        ([1, 100], True),
        ([2, 0, 1], True),
    ):
        ends = np.cumsum(sizes).tolist()
        heads = {f"t{n}": cast(filled_head(head, C, H, R, n), dtype) for n in range(len(sizes))}
        segments = tuple((f"t{n}", end - size, end) for n, (size, end) in enumerate(zip(sizes, ends, strict=True)))
        h, do = (rng.standard_normal((ends[-1], T, width)).astype(dtype) for width in (H, C))
        how: dict[str, Any] = {"segments": segments, "params": params}
        wanted, wanted_cache = reference_of(PAIRS["grouped_heads"].forward)(h, heads, **how)
        gradients = reference_of(PAIRS["grouped_heads"].backward)(do, wanted_cache)
        for worth, threads in ((10**9, 2), (1, 2), (1, 5)):
            monkeypatch.setattr(twins_in("compiled"), "WORTH", worth)
            monkeypatch.setattr(twins_in("compiled"), "threads", lambda threads=threads: threads)
            o, cache = file.grouped_heads_forward(h, heads, **how)
            assert_same((o, cache), (wanted, wanted_cache), dtype)
            assert_same(file.grouped_heads_backward(do, cache), gradients, dtype)
            assert_same(file.grouped_heads_backward(do, wanted_cache), gradients, dtype)


@pytest.mark.parametrize(("is_alone", "worth", "shared"), [(False, 1, 2), (False, 10**9, 0), (True, 1, 0)])
def test_threads_share_heads_that_are_worth_it(
    is_alone: bool, worth: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where the caller has but its own thread."""
    file, h, calls = twins_in(TWINS["grouped_heads"]), np.zeros((2, 3, 16), np.float32), []
    for loop in ("_shared_maps", "_shared_maps_back"):
        monkeypatch.setattr(file, loop, lambda *_: calls.append(True))
    monkeypatch.setattr(twins_in("compiled"), "alone", lambda: is_alone)
    monkeypatch.setattr(twins_in("compiled"), "threads", lambda: 2)
    monkeypatch.setattr(twins_in("compiled"), "WORTH", worth)
    heads = {task: cast(filled_head("linear", 16, 16, 16, 0), np.float32) for task in ("ann", "bob")}
    _, cache = file.grouped_heads_forward(h, heads, segments=(("ann", 0, 1), ("bob", 1, 2)))
    file.grouped_heads_backward(h, cache)
    assert len(calls) == shared


def test_maps_are_kept_by_what_they_are() -> None:
    """Others that are equal, number for number, may move elsewhere."""
    same, maps = twins_in("heads").Same, [LinearParams(np.ones((16, 16), np.float32), None) for _ in range(2)]
    assert same(maps) == same(list(maps)) and hash(same(maps)) == hash(same(list(maps)))
    assert same(maps[:1]) != same(maps[1:]) and same(maps) != same(maps[::-1]) and same(maps) != maps


ATTENTION_SHAPES = [(1, 1, 1, 1), (2, 7, 3, 5), (3, 16, 2, 16), (2, 33, 4, 24), (1, 64, 2, 50), (3, 50, 3, 36)]


@pytest.mark.parametrize("reach", [None, (3, 0), (0, 60)], ids=str)
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=str)
@pytest.mark.parametrize("name", ["attention", "relative_attention"])
def test_attention_of_all_remainders(
    name: str, shape: tuple[int, ...], reach: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of tiles and strips; with frames that are missing in the middle, and an utterance without any; in portions of
    several threads, more of them than there are heads, too.
    """
    (B, T, A, D), pair, rng = shape, PAIRS[name], np.random.default_rng(0)
    valid = rng.random((B, T)) < 0.7
    valid[-1] = B == 1
    q, k, value, dy = (3 * numbers(B, T, A, D, k=n) for n in range(4))
    p, positions = RelativePositionParams(*(numbers(*s, k=5) for s in ((6, A * D), (A, D), (A, D)))), None
    for dtype in TOLERANCE:
        how, cases = {"reach": reach}, [{}]
        if name == "relative_attention":
            positions = relative_positions(T, 6, np.dtype(np.float64)).astype(dtype)
            how, cases = {**how, "p": cast(p, dtype), "positions": positions}, [{"params": True}, {"params": False}]
        arrays = [x.astype(dtype) for x in (q, k, value)]
        for case in cases:
            wanted, its_cache = reference_of(pair.forward)(*arrays, valid=valid, **how, **case)
            gradients = reference_of(pair.backward)(dy.astype(dtype), its_cache)
            for worth, number in ((10**9, 2), (1, 2), (1, 13)):
                monkeypatch.setattr(twins_in("compiled"), "WORTH", worth)
                monkeypatch.setattr(twins_in("compiled"), "threads", lambda number=number: number)
                y, cache = twin_of(pair.forward)(*arrays, valid=valid, **how, **case)
                assert_same((y, cache), (wanted, its_cache), dtype)
                assert (y[~valid] == 0).all() and (
                    cache.weights.y[~(valid[:, None] & np.ones((B, A, 1), bool))] == 0
                ).all()
                assert_same(twin_of(pair.backward)(dy.astype(dtype), cache), gradients, dtype)
                assert_same(twin_of(pair.backward)(dy.astype(dtype), its_cache), gradients, dtype)


def test_two_callers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them shares its heads among threads."""
    file, case = twins_in(TWINS["grouped_heads"]), CASES["grouped_heads, linear, wide"]
    monkeypatch.setattr(twins_in("compiled"), "WORTH", 1)
    monkeypatch.setattr(twins_in("compiled"), "threads", lambda: 3)
    monkeypatch.setattr(twins_in("compiled"), "alone", lambda: False)
    arguments = arguments_of(case, np.float32)
    wanted, cache = reference_of(case.pair.forward)(**arguments)
    gradients = reference_of(case.pair.backward)(output_gradient(wanted), cache)

    def call() -> list[tuple[Tree, Tree]]:
        found = []
        for _ in range(200):
            o, cache = file.grouped_heads_forward(**arguments)
            found.append((o, file.grouped_heads_backward(output_gradient(o), cache)))
        return found

    with ThreadPoolExecutor(2) as pool:
        results = [future.result() for future in [pool.submit(call) for _ in range(2)]]
    for o, found in chain(*results):
        assert_same(o, wanted, np.float32)
        assert_same(found, gradients, np.float32)


def test_heads_that_a_loop_would_misread_are_left_to_the_reference() -> None:
    """Narrow ones, of another type, that lie by columns or have not the same shape, and those of two kinds."""
    forward, backward = (getattr(twins_in("heads"), f"grouped_heads_{way}") for way in ("forward", "backward"))
    h = np.random.default_rng(0).standard_normal((2, 3, 20)).astype(np.float32)
    segments = (("ann", 0, 1), ("bob", 1, 2))
    good, ffn = (cast(filled_head(head, 17, 20, 16, 0), np.float32) for head in ("linear", "ffn"))
    assert forward(h, {"ann": good, "bob": good}, segments=segments)[0].shape == (2, 3, 17)
    others = [
        good._replace(W=np.asfortranarray(good.W)),
        good._replace(W=good.W.astype(np.float64)),
        good._replace(b=good.b[:-1]),
        good._replace(W=good.W[:, :-1], b=good.b[:-1]),
        ffn,
    ]
    for other in others:
        assert forward(h, {"ann": good, "bob": other}, segments=segments) is NotImplemented
    narrow = cast(filled_head("linear", 15, 20, 16, 0), np.float32)
    assert forward(h, {"ann": narrow, "bob": narrow}, segments=segments) is NotImplemented
    _, cache = forward(h, {"ann": good, "bob": good}, segments=segments)
    by_columns = cache.heads["bob"]._replace(x=np.asfortranarray(h[1:2]))
    do = np.ones((2, 3, 17), np.float32)
    assert backward(do, cache._replace(heads=cache.heads | {"bob": by_columns})) is NotImplemented
    with pytest.raises(ValueError, match="shape"):
        forward(h[..., :-1], {"ann": good, "bob": good}, segments=segments)
    with pytest.raises(ValueError, match="shape"):
        backward(do[..., :-1], cache)


def shorter(*fields: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Take the last element away from the last axis of each field of the parameters."""
    return lambda arguments: {"p": arguments["p"]._replace(**{f: getattr(arguments["p"], f)[..., :-1] for f in fields})}


BROKEN = [  # what of the arguments of a case is wrong: compiled loops would read beyond an array
    ("linear, few rows of a large map", shorter("b")),
    ("layer_norm", shorter("g")),
    ("running_norm", shorter("g")),
    ("batch_norm", shorter("b")),
    ("batch_norm", lambda a: {"valid": a["valid"][:, :-2]}),
    ("attention", lambda a: {"valid": a["valid"][:, :-2]}),
    ("relative_attention", lambda a: {"valid": a["valid"][:, :-2]}),
    *((name, lambda a, k=k: {k: a[k][:, :-1]}) for name in ("attention", "relative_attention") for k in ("k", "value")),
    ("depthwise_conv", lambda a: {"valid": a["valid"][:, :-2]}),
    ("depthwise_conv", shorter("W")),
    ("depthwise_conv", shorter("b")),
    ("conv2d", lambda a: {"valid": a["valid"][:-1]}),
    ("conv2d", shorter("b")),
    ("conv2d, 8 x 12, 1 to 5 channels", shorter("b")),
    ("depthwise_conv2d", lambda a: {"valid": a["valid"][:-1]}),
    ("depthwise_conv2d", lambda a: {"p": a["p"]._replace(b=np.zeros(3, np.float32))}),
    ("residual", lambda a: {"u": a["u"][:, :-2]}),
    ("dropout", lambda a: {"keep": a["keep"][:, :-2]}),
    ("gru", lambda a: {"h": a["h"][:-1]}),
    ("gru", shorter("W")),
    ("gru", shorter("b")),
    ("gru", shorter("c")),
    ("indrnn", lambda a: {"h": a["h"][:-1]}),
    ("indrnn", shorter("u")),
    ("indrnn", shorter("b")),
    ("ctc", lambda a: {"labels": a["labels"] + 1}),
]


def test_attention_refuses_a_table_of_other_positions() -> None:
    """Its loops would read beyond them, forward and backward."""
    case = CASES["relative_attention, long"]
    arguments = arguments_of(case, np.float32)
    forward, backward = (twin_of(function) for function in case.pair)
    y, cache = forward(**arguments)
    with pytest.raises(ValueError, match="an array of shape"):
        forward(**arguments | {"positions": arguments["positions"][40:-40]})
    with pytest.raises(ValueError, match="an array of shape"):
        backward(y, cache._replace(r=cache.r[:, 1:]))


@pytest.mark.parametrize(("name", "broken"), BROKEN)
def test_a_twin_refuses_what_the_reference_refuses(name: str, broken: Callable) -> None:
    arguments, pair = arguments_of(CASES[name], np.float32), CASES[name].pair
    arguments |= broken(arguments)
    for function in (reference_of(pair.forward), twin_of(pair.forward)):
        with pytest.raises((ValueError, IndexError)):
            function(**arguments)


@pytest.mark.parametrize("name", ["relu", "dropout", "batch_norm", "conv2d"])
def test_a_twin_refuses_a_gradient_of_another_shape(name: str) -> None:
    y, *_, cache = twin_of(CASES[name].pair.forward)(**arguments_of(CASES[name], np.float32))
    for function in (reference_of(CASES[name].pair.backward), twin_of(CASES[name].pair.backward)):
        with pytest.raises((ValueError, IndexError)):
            function(np.concatenate([y, y]), cache)


def test_nan_shows() -> None:
    """What diverged must not look well."""
    for name in ("relu", "swish", "glu", "layer_norm", "conv2d", "conv2d, 8 x 12, 1 to 5 channels"):
        arguments = arguments_of(CASES[name], np.float32)
        arguments["x"] = arguments["x"].copy()
        arguments["x"][0, 0, -1] = np.nan
        assert np.isnan(twin_of(CASES[name].pair.forward)(**arguments)[0][0, 0]).any(), name


def test_long_ctc_in_float32_is_as_near_to_float64_as_the_reference() -> None:
    """Log probabilities of hundreds of frames are hundreds, so that float32 itself leaves an error of some 1e-4."""
    rng, (B, T, S, V) = np.random.default_rng(0), (8, 200, 30, 32)
    logits, labels = rng.normal(0, 2, (B, T, V)), rng.integers(1, V, (B, S))
    more = {"valid": np.ones((B, T), bool), "labels": labels, "label_lengths": np.full(B, S)}
    forward, backward = map(reference_of, PAIRS["ctc"])
    loss, cache = forward(logits, **more)
    gradient, errors = backward(np.ones(B), cache), {}
    for which, pair in (("twin", map(twin_of, PAIRS["ctc"])), ("reference", (forward, backward))):
        its_forward, its_backward = pair
        its_loss, its_cache = its_forward(logits.astype(np.float32), **more)
        error = np.abs(its_backward(np.ones(B, np.float32), its_cache) - gradient).max()
        errors[which] = np.array([np.abs(its_loss - loss).max(), error])
    assert (errors["reference"] > 1e-5).all()
    assert (errors["twin"] < 3 * errors["reference"]).all()


@pytest.mark.parametrize("portions", [2, 3, 13])
def test_threads_share_the_utterances_of_ctc(portions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits for any number of portions; with padding, infeasible utterances and one without frames."""
    rng, (B, T, S, V) = np.random.default_rng(0), (7, 20, 6, 9)
    logits, lengths = rng.normal(0, 2, (B, T, V)).astype(np.float32), np.array([20, 7, 0, 20, 3, 19, 20])
    logits[np.arange(T) >= lengths[:, None]] = np.nan
    more = {"valid": np.arange(T) < lengths[:, None], "labels": rng.integers(1, V, (B, S))}
    more["label_lengths"] = np.array([6, 2, 1, 0, 6, 5, 6])
    forward, backward = map(twin_of, PAIRS["ctc"])
    shared: list[str] = []
    for name in ("_shared_forward", "_shared_backward"):
        loop = getattr(twins_in("ctc"), name)
        spied = lambda *arrays, loop=loop, name=name: (shared.append(name), loop(*arrays))  # noqa: E731
        monkeypatch.setattr(twins_in("ctc"), name, spied)
    found = []
    for worth in (10**9, 1):
        monkeypatch.setattr(twins_in("compiled"), "WORTH", worth)
        monkeypatch.setattr(twins_in("compiled"), "threads", lambda: portions)
        loss, cache = forward(logits, **more)
        gradient = backward(np.linspace(0.1, 1, B, dtype=np.float32), cache)
        found.append([loss.tobytes(), gradient.tobytes(), *(x.tobytes() for x in cache)])
        assert cache.feasible.tolist() == [True, True, False, True, False, True, True]
    assert found[0] == found[1] and shared == ["_shared_forward", "_shared_backward"]


def which(pair: Pair, x: Array, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the switchboard takes the twin or the reference of an activation."""
    monkeypatch.setattr(twins_in(TWINS["swish"]), "swish_forward", lambda x: ("twin", None))
    y = pair.forward(x)[0]
    return "reference" if isinstance(y, np.ndarray) else y


def test_arguments_may_be_named_in_any_order() -> None:
    x, p = np.ones((2, 3), np.float32), LinearParams(np.ones((3, 4), np.float32), np.ones(4, np.float32))
    assert (PAIRS["linear"].forward(p=p, x=x)[0] == 4).all()


def test_switchboard_chooses_by_the_first_array(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = partial(which, PAIRS["swish"], monkeypatch=monkeypatch)
    assert choose(np.zeros(3, np.float32)) == "twin"
    assert choose(np.zeros(3)) == "reference"
    with references():
        assert choose(np.zeros(3, np.float32)) == "reference"
    assert choose(np.zeros(3, np.float32)) == "twin"


def test_machine_code_is_kept_by_the_text_of_the_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no text runs the machine code of another; and not at all where nothing can be written."""
    compiled = twins_in("compiled")
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = tmp_path / "texts"
    texts.mkdir()
    monkeypatch.setattr(compiled, "__file__", str(texts / "compiled.py"))
    folders = set()
    for text in ("1", "2"):
        (texts / "other.py").write_text(text)
        folders |= {compiled.cache_folder(), compiled.cache_folder()}
    assert len(folders) == 2 and all(folder.is_dir() for folder in folders)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled.cache_folder() is None


def test_machine_code_is_kept_for_the_next_process(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)

    def kept_after_a_run() -> dict[str, int]:
        subprocess.run([sys.executable, "-c", SCRIPT.format(before="")], env=environment, cwd=ROOT, check=True)
        return {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nbc")}

    kept = kept_after_a_run()
    assert any("_swish" in name for name in kept)
    assert kept_after_a_run() == kept, "it was compiled again"


def test_the_functions_that_vectorise() -> None:
    """exp and log against NumPy's, over all their range and at its ends."""
    compiled = twins_in("compiled")
    exp, log = (compiled.compiled_strictly(vectorised(f)) for f in (compiled.exp, compiled.log))
    for dtype, allowed in ((np.float32, 2e-7), (np.float64, 1e-15)):
        x = np.linspace(-80, 80, 4001, dtype=dtype)
        y = np.empty_like(x)
        exp(x, y)
        np.testing.assert_allclose(y, np.exp(x.astype(float)), rtol=allowed)
        log(np.exp(x), y)
        np.testing.assert_allclose(y, np.log(np.exp(x).astype(float)), rtol=2 * allowed, atol=allowed)
    x, y = np.array([-np.inf, -1e4, np.nan, 0], np.float32), np.empty(4, np.float32)
    exp(x, y)
    assert y[0] == 0 == y[1] and np.isnan(y[2]) and y[3] == 1
    log(np.array([np.nan, 1], np.float32), y[:2])
    assert np.isnan(y[0]) and y[1] == 0


def vectorised(function: Callable) -> Callable:
    def loop(x: Array, y: Array) -> None:
        for i in range(len(x)):
            y[i] = function(x[i])

    return loop


SCRIPT = """
import sys
{before}
import numpy as np
from minihra.ops import swish_forward
y, _ = swish_forward(np.ones(3, np.float32))
print(y.dtype, "minihra.kernels.cpu.activations" in sys.modules, "numba" in sys.modules)
"""


@pytest.mark.parametrize(
    ("before", "environment", "printed"),
    [
        ("", {}, "float32 True True"),
        ("", {"MINIHRA_REFERENCE": "1"}, "float32 False False"),
        ("sys.modules['numba'] = None", {}, "float32 False True"),
        ("sys.modules['minihra.kernels'] = None", {}, "float32 False False"),
    ],
    ids=["with twins", "forbidden", "without numba", "without the kernels"],
)
def test_everything_runs_without_twins(before: str, environment: dict[str, str], printed: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(before=before)],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == printed
