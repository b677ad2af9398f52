"""The twins for the GPU that treat elements and frames: addresses and sizes that no pack fits, and batch norms."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.blocks.conformer_block import add_and_norm
from minihra.cases import filled, filled_statistics, numbers
from minihra.kernels.cuda import activations, batch_norm, norms, residual
from minihra.layers.norms import BatchNormParams, LayerNormParams
from minihra.masks import valid_from_lengths
from minihra.ops import PAIRS
from minihra.threads import together
from minihra.tree import Total, Tree, add
from tests.cuda_twins import emulated
from tests.test_twins import TOLERANCE, assert_same, cast, output_gradient, reference_of

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)


def apart(x: Array, offset: int) -> Array:
    """The same numbers, contiguous, but so many of them behind an address that 16 bytes divide."""
    memory = np.empty(x.size + 16, x.dtype)
    start = -memory.ctypes.data // x.itemsize % (16 // x.itemsize) + offset
    memory[start : start + x.size] = x.reshape(-1)
    return memory[start : start + x.size].reshape(x.shape)


@DTYPES
@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("offset", [0, 1, 3])
@pytest.mark.parametrize("pair", ["sigmoid", "swish", "glu", "relu", "gelu"])
def test_activations(pair: str, offset: int, checked: bool, dtype: type) -> None:
    """Of any width, aligned and not, and with an infinity and a NaN, which show."""
    forward, backward = (getattr(activations, f"{pair}_{way}") for way in ("forward", "backward"))
    with emulated(threads=64 if checked else 10, checked=checked), np.errstate(invalid="ignore"):
        for width in (1, 2, 3, 4, 5, 8, 130, 131):
            x = 3 * numbers(3, 2 * width if pair == "glu" else width)
            if width > 3:
                x[1, 1], x[2, 2] = np.inf, np.nan
            x = apart(x.astype(dtype), offset)
            y, cache = forward(x)
            wanted, wanted_cache = reference_of(PAIRS[pair].forward)(x)
            assert_same((y, cache), (wanted, wanted_cache), dtype)
            dy = apart(output_gradient(wanted), offset)
            for given, its_cache in ((dy, cache), (dy[::-1], wanted_cache)):
                gradient = reference_of(PAIRS[pair].backward)(given, wanted_cache)
                assert_same((backward(given, its_cache),), (gradient,), dtype)


@DTYPES
@pytest.mark.parametrize("offset", [0, 2])
def test_residual_and_dropout(offset: int, dtype: type) -> None:
    for n in (1, 3, 4, 7, 131):
        x, u = apart(numbers(n).astype(dtype), offset), numbers(2 * n, k=1).astype(dtype)[::2]
        keep = numbers(2 * n, k=2)[::2] > -0.5
        with emulated(checked=True, threads=64):
            y, cache = residual.residual_forward(x, u, weights=(1.5, 0.5))
            assert_same((y,), (1.5 * x + 0.5 * u,), dtype)
            assert cache.weights == (1.5, 0.5)
            y, cache = residual.dropout_forward(x, keep, rate=0.25)
            wanted, wanted_cache = reference_of(PAIRS["dropout"].forward)(x, keep, rate=0.25)
            assert_same((y, cache.keep), (wanted, keep), dtype)
            assert_same((residual.dropout_backward(u, wanted_cache),), (u * keep / 0.75,), dtype)
    with emulated(), pytest.raises(ValueError, match="elements"):
        residual.residual_forward(x, u[:-1], weights=(1.0, 1.0))


def batch_norm_inputs(lengths: list[int], C: int, dtype: type) -> Tree:
    """Far from 0, so that a mean that is wrong shows, and with NaN where nobody may read."""
    T = max(1, *lengths)
    x, valid = 3 + numbers(len(lengths), T, C).astype(dtype), valid_from_lengths(lengths, T)
    x[~valid] = np.nan
    p = filled(BatchNormParams(np.empty(C), np.empty(C)), 1)
    return {"x": x, "valid": valid, "statistics": cast(filled_statistics(C, 4), dtype), "p": cast(p, dtype)}


@DTYPES
@pytest.mark.parametrize("bias", [True, False])
def test_last_step_with_its_norm(bias: bool, dtype: type) -> None:
    """Of widths below and beyond a warp, from views, and not around 0; in the checked build, too."""
    for width in (1, 31, 33, 144):
        x, u = 1 + numbers(3, 7, 2 * width)[..., ::2], numbers(3, 7, width, k=1)
        p = LayerNormParams(1 + numbers(width, k=2) / 2, numbers(width, k=3) if bias else None)
        x, u, p = cast((x, u, p), dtype)
        how = {"weights": (1.5, 0.5), "eps": 1e-3, "params": True}
        wanted = add_and_norm.__wrapped__(x, u, p, **how)
        for threads, checked in ((10, False), (64, True)):
            with emulated(threads=threads, checked=checked):
                found = norms.add_and_norm(x, u, p, **how)
            assert_same(found, wanted, dtype)


@DTYPES
@pytest.mark.parametrize("lengths", [[0, 0], [1, 0], [65, 0, 63], [400, 301]], ids=str)
def test_batch_norm(lengths: list[int], dtype: type) -> None:
    """Without a valid frame, with one, of which no unbiased variance is known, and with more than a slice holds."""
    forward, backward = map(reference_of, PAIRS["batch_norm"])
    for C in (1, 5, 33):
        inputs = batch_norm_inputs(lengths, C, dtype)
        wanted, dy = forward(**inputs, momentum=0.3), numbers(*inputs["x"].shape, k=9).astype(dtype)
        dy[~inputs["valid"]] = np.nan
        with emulated(threads=64):
            found = batch_norm.batch_norm_forward(**inputs, momentum=0.3)
            assert_same(found, wanted, dtype)
            gradients = backward(dy, wanted[-1])
            for cache in (found[-1], wanted[-1]):
                assert_same(batch_norm.batch_norm_backward(dy, cache), gradients, dtype)
        assert_same(backward(dy, found[-1]), gradients, dtype)


@pytest.mark.parametrize("how", [{"order": 1}, {"order": 2, "seed": 3}, {"checked": True}], ids=str)
def test_batch_norm_has_the_same_bits_in_any_order(how: dict) -> None:
    inputs, bits = batch_norm_inputs([130, 97], 5, np.float32), []
    dy = numbers(*inputs["x"].shape, k=9).astype(np.float32)
    for way in ({}, how):
        with emulated(threads=64, **way):
            y, statistics, cache = batch_norm.batch_norm_forward(**inputs)
            dx, dp = batch_norm.batch_norm_backward(dy, cache)
        bits.append([a.tobytes() for a in (y, *statistics, dx, *dp)])
    assert bits[0] == bits[1]


def test_batch_norm_of_parts_is_that_of_the_batch() -> None:
    inputs = batch_norm_inputs([9, 70, 0, 4], 5, np.float64)
    dy = numbers(*inputs["x"].shape, k=9)

    def run(rows: slice, total: Total, forward: Callable, backward: Callable) -> Tree:
        some = inputs | {"x": inputs["x"][rows], "valid": inputs["valid"][rows], "total": total}
        y, statistics, cache = forward(**some)
        dx, dp = backward(dy[rows], cache)
        return (y, dx), dp, statistics

    whole = run(slice(None), lambda tree: tree, *map(reference_of, PAIRS["batch_norm"]))
    twin = {"forward": batch_norm.batch_norm_forward, "backward": batch_norm.batch_norm_backward}
    with emulated():
        parts = together([partial(run, rows, **twin) for rows in (slice(0, 1), slice(1, None))])
    outputs, dps, statistics = zip(*parts, strict=True)
    assert_same(tuple(map(np.concatenate, zip(*outputs, strict=True))), whole[0], np.float64)
    assert_same(add(*dps), whole[1], np.float64)
    for each in statistics:
        assert_same(each, whole[2], np.float64)
