"""Attention on the GPU, its kernels run on the CPU: long and short rows, awkward layouts, masks and scores."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

from minihra.kernels.cuda import attention, relative_attention, rotary, softmax
from minihra.layers import attention as content
from minihra.layers import relative_attention as relative
from minihra.layers import shaw_attention as shaw
from minihra.layers import softmax as reference
from minihra.layers.attention import attention_mask
from minihra.layers.relative_attention import RelativePositionParams, relative_positions
from minihra.layers.rotary import RotaryCache, rotary_backward, rotary_forward, rotary_table
from minihra.layers.shaw_attention import ShawPositionParams
from minihra.tree import Tree, leaves
from tests.cuda_twins import emulated

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with emulated():
        yield


class Sizes(NamedTuple):
    """B utterances, T frames, A heads of width D."""

    B: int
    T: int
    A: int
    D: int


SIZES = [Sizes(1, 1, 1, 1), Sizes(2, 2, 1, 3), Sizes(1, 31, 2, 2), Sizes(2, 33, 3, 1), Sizes(3, 65, 1, 34)]


def same(found: Tree, wanted: Tree, dtype: str = "float64") -> None:
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for name, a in wanted.items():
        scale = max(abs(a).max(), 1) if a.size else 1
        np.testing.assert_allclose(found[name], a, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=name)
        assert found[name].dtype == a.dtype


def random(*shape: int, seed: int = 0, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(dtype)


def queries(sizes: Sizes, dtype: str = "float64") -> dict[str, np.ndarray]:
    """q, k, value, and a mask of utterances of different lengths, the last of none if there are several."""
    lengths = np.linspace(sizes.T, 0 if sizes.B > 1 else sizes.T, sizes.B).astype(int)
    valid = np.arange(sizes.T)[None] < lengths[:, None]
    B, T, A, D = sizes
    return {n: random(B, T, A, D, seed=k, dtype=dtype) for k, n in enumerate(("q", "k", "value"))} | {"valid": valid}


def relative_arguments(sizes: Sizes, dtype: str = "float64") -> dict[str, Tree]:
    _, T, A, D = sizes
    W, u, v = (
        random(6, A * D, seed=5, dtype=dtype),
        random(A, D, seed=6, dtype=dtype),
        random(A, D, seed=7, dtype=dtype),
    )
    positions = relative_positions(T, 6, np.dtype(dtype))
    return {**queries(sizes, dtype), "positions": positions, "p": RelativePositionParams(W, u, v)}


def both(module: object, twins: object, pair: str, arguments: dict, dtype: str = "float64", **more) -> None:
    """The twin's results are the reference's, and each backward takes the other's cache as it is, views and all."""
    y, cache = getattr(module, f"{pair}_forward")(**arguments, **more)
    found, twins_cache = getattr(twins, f"{pair}_forward")(**arguments, **more)
    same(found, y, dtype)
    same(twins_cache, cache, dtype)
    dy = random(*y.shape, seed=9, dtype=dtype)
    wanted = getattr(module, f"{pair}_backward")(dy, cache)
    for its_cache in (cache, twins_cache):
        before = {name: a.copy() for name, a in leaves(its_cache)}
        same(getattr(twins, f"{pair}_backward")(dy, its_cache), wanted, dtype)
        same(getattr(twins, f"{pair}_backward")(np.asfortranarray(dy), its_cache), wanted, dtype)
        for name, a in leaves(its_cache):
            np.testing.assert_array_equal(a, before[name], err_msg=name)
    same(getattr(module, f"{pair}_backward")(dy, twins_cache), wanted, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(sizes: Sizes, dtype: str) -> None:
    arguments = relative_arguments(sizes, dtype)
    both(relative, relative_attention, "relative_attention", arguments, dtype)
    both(relative, relative_attention, "relative_attention", arguments, dtype, params=False, reach=(3, 40))
    arguments = queries(sizes, dtype)
    both(content, attention, "attention", arguments, dtype)
    p = ShawPositionParams(random(9, sizes.D, dtype=dtype))
    both(shaw, relative_attention, "shaw_attention", arguments | {"p": p}, dtype, left=3)
    both(shaw, relative_attention, "shaw_attention", arguments | {"p": p}, dtype, left=3, params=False)


@pytest.mark.parametrize("reach", [(0, 0), (None, 0), (0, None), (5, 2), (100, 1), (10**12, None)])
def test_reach(reach: tuple[int | None, int | None]) -> None:
    sizes = Sizes(2, 40, 2, 3)
    both(content, attention, "attention", queries(sizes), reach=reach)
    both(relative, relative_attention, "relative_attention", relative_arguments(sizes), reach=reach)


def test_holes_in_the_mask() -> None:
    sizes = Sizes(3, 37, 2, 3)
    arguments = relative_arguments(sizes)
    arguments["valid"] = random(3, 37) > 0
    both(relative, relative_attention, "relative_attention", arguments, reach=(2, 2))


def test_no_utterance() -> None:
    y, cache = relative_attention.relative_attention_forward(**relative_arguments(Sizes(0, 5, 2, 3)))
    dq, *_, dp = relative_attention.relative_attention_backward(y, cache)
    assert y.shape == dq.shape == (0, 5, 2, 3) and not dp.W.any() and not dp.u.any() and not dp.v.any()


def test_parameters_may_be_strided_and_read_only() -> None:
    arguments = relative_arguments(Sizes(2, 9, 2, 3))
    W, u, v = arguments["p"]
    for turned in (np.ascontiguousarray(W.T).T, np.concatenate([W, W], 1)[:, : W.shape[1]]):
        turned.flags.writeable = False
        arguments["p"] = RelativePositionParams(turned, u, v)
        both(relative, relative_attention, "relative_attention", arguments)
    table = random(2, 9, 3)[1]
    wide = np.concatenate([table, table], 1)[:, :3]
    both(
        shaw, relative_attention, "shaw_attention", queries(Sizes(2, 9, 2, 3)) | {"p": ShawPositionParams(wide)}, left=4
    )


def test_queries_that_are_views() -> None:
    """As thirds of one map for q, k and value, or with heads that lie otherwise."""
    arguments = relative_arguments(Sizes(2, 9, 2, 3))
    thirds = np.concatenate([arguments[name] for name in ("q", "k", "value")], axis=3)
    views = {name: thirds[..., 3 * i : 3 * i + 3] for i, name in enumerate(("q", "k", "value"))}
    both(relative, relative_attention, "relative_attention", arguments | views)
    both(
        content,
        attention,
        "attention",
        queries(Sizes(2, 9, 2, 3)) | {"k": views["k"].swapaxes(0, 1).copy().swapaxes(0, 1)},
    )


def test_a_row_without_a_valid_key_is_zero() -> None:
    arguments = relative_arguments(Sizes(2, 6, 2, 3))
    arguments["valid"][:] = False
    y, cache = relative_attention.relative_attention_forward(**arguments)
    assert not y.any() and not cache.weights.y.any()
    for x, _ in zip(relative_attention.relative_attention_backward(y + 1, cache), range(3), strict=False):
        assert not x.any()


def test_padding_is_not_read() -> None:
    arguments = relative_arguments(Sizes(3, 40, 2, 3))
    y, _ = relative_attention.relative_attention_forward(**arguments)
    for name in ("q", "k"):
        arguments[name][~arguments["valid"]] = np.nan
    spoiled, _ = relative_attention.relative_attention_forward(**arguments)
    assert np.array_equal(spoiled, y)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_score_shows(bad: float) -> None:
    arguments = queries(Sizes(1, 40, 1, 2))
    arguments["k"][0, 35] = bad
    with np.errstate(invalid="ignore"):
        y, cache = attention.attention_forward(**arguments)
        wanted, wanted_cache = content.attention_forward(**arguments)
    assert np.isnan(cache.weights.y)[np.isnan(wanted_cache.weights.y)].all()
    np.testing.assert_array_equal(np.isnan(y), np.isnan(wanted))
    assert np.isnan(y).any()
    assert np.isnan(y).all() or bad == np.inf  # a score of -inf is a weight of 0


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("scale", [1, 80, 1e4, 1e30])
def test_scores_of_any_size(scale: float, dtype: str) -> None:
    s = (scale * random(3, 70)).astype(dtype)
    mask = random(3, 70, seed=1) > -1
    for scores in (s, -abs(s), np.sort(s, 1)):  # and a new largest score with every step
        wanted, wanted_cache = reference.masked_softmax_forward(scores, mask)
        y, cache = softmax.masked_softmax_forward(scores, mask)
        same(y, wanted, dtype)
        np.testing.assert_allclose(y.sum(1), 1, rtol=1e-5)
        dy = random(3, 70, seed=2, dtype=dtype)
        same(softmax.masked_softmax_backward(dy, cache), reference.masked_softmax_backward(dy, wanted_cache), dtype)


def test_long_rows() -> None:
    s, mask = random(2, 7001, dtype="float32"), np.arange(7001) < 6000
    wanted, cache = reference.masked_softmax_forward(s, mask)
    y, _ = softmax.masked_softmax_forward(s, mask)
    same(y, wanted, "float32")
    assert abs(y - wanted).max() < 1e-5 * wanted.max() and not y[:, 6000:].any()
    ds = softmax.masked_softmax_backward(s, cache)
    wanted = reference.masked_softmax_backward(s, cache)
    assert abs(ds - wanted).max() < 1e-5 * abs(wanted).max()
    assert not softmax.masked_softmax_forward(s, np.zeros(1, bool))[0].any()


def test_a_mask_that_broadcasts() -> None:
    s, mask = random(2, 3, 5, 7), attention_mask(np.arange(5)[None] < [[5], [2]], (1, 1))
    for m, x in ((mask, s[..., :5]), (np.ones((1, 5, 1), bool), s), (mask[0, 0, 0], s[..., :5])):
        same(softmax.masked_softmax_forward(x, m)[0], reference.masked_softmax_forward(x, m)[0])


@pytest.mark.parametrize("D", [2, 64, 66])
def test_rotary(D: int) -> None:
    x, table = random(2, 5, D, 3).swapaxes(2, 3), rotary_table(5, D, np.dtype(np.float64))
    y, cache = rotary.rotary_forward(x, table)
    same(y, rotary_forward(x, table)[0])
    same(rotary.rotary_backward(x, cache), rotary_backward(x, RotaryCache(table)))
    same(rotary.rotary_backward(y, cache), x)


def test_refusals() -> None:
    arguments = relative_arguments(Sizes(2, 6, 2, 3))
    with pytest.raises(ValueError, match=r"valid must have 12 elements"):
        relative_attention.relative_attention_forward(**arguments | {"valid": arguments["valid"][:, :5]})
    with pytest.raises(ValueError, match=r"no product|shape"):
        relative_attention.relative_attention_forward(**arguments | {"positions": arguments["positions"][1:-1]})
    with pytest.raises(ValueError, match=r"k must have 72 elements"):
        relative_attention.relative_attention_forward(**arguments | {"k": arguments["k"][:, :5]})
    with pytest.raises(TypeError, match="bool"):
        attention.attention_forward(**queries(Sizes(2, 6, 2, 3)) | {"valid": np.ones((2, 6))})
    with pytest.raises(TypeError, match="float64"):
        attention.attention_forward(**queries(Sizes(2, 6, 2, 3)) | {"value": random(2, 6, 2, 3, dtype="float32")})
