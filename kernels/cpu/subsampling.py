"""Twin of a frozen front end of two convolutions: between them a few frames are kept at a time, with a zero at both
ends, as the second one reads them.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np

from minihra.arrays import Array, array_module
from minihra.blocks.subsampling import SubsamplingParams
from minihra.kernels.cpu.compiled import ZERO, compiled, copy_row, launch, must_have
from minihra.kernels.cpu.conv2d import (
    AT_ONCE,
    convolve_frames,
    one_channel,
    room_for_frames,
    room_for_one_channel,
    sums_of_taps,
)
from minihra.kernels.cpu.product import NARROW, ROWS, multiply_panels, panels_of
from minihra.layers.conv2d import Conv2dParams
from minihra.threads import alone, share, threads

TOGETHER = 4 * ROWS
"""Most frames that meet the last map together."""


@compiled
def _front_end(
    x: Array,
    valid: Array,
    one_panels: Array,
    b: Array,
    patches: Array,
    made: Array,
    panels: Array,
    b2: Array,
    out_panels: Array,
    b_out: Array,
    between: Array,
    real: Array,
    rows: Array,
    sums: Array,
    frames: Array,
    flat: Array,
    size: int,
    y: Array,
    low: int,
    high: int,
) -> None:
    """Let y (B, T4 + ROWS, C) have the frames of x (B, T, F), with some at each end that mean nothing: those of the
    blocks from `low` to before `high`, of `size` frames each, where an utterance has no fewer left.

    `one_panels`, b, `patches` and `made` are those of `room_for_one_channel`, and room for what the second convolution
    reads, from `between` to `sums`, those of `room_for_frames`; what it makes, `frames` (TOGETHER, F4, O), is `flat`
    (TOGETHER, F4 O), too.
    """
    (_, T, F), T4 = x.shape, (x.shape[1] + 3) // 4
    F2, blocks = (F + 1) // 2, (T4 + size - 1) // size
    for block in range(low, high):
        row, start = block // blocks, block % blocks * size
        stop = min(start + size, T4)
        for first in range(start, stop, AT_ONCE):
            last = min(first + AT_ONCE, stop)
            for n in range(2 * AT_ONCE + 1):
                s = 2 * first - 1 + n
                real[n] = 0 <= 2 * s < T and valid[row, 2 * s]
                if n == 0 and first > start:
                    for f in range(F2):  # the last one of those before
                        copy_row(between[2 * AT_ONCE, f + 1], between[0, f + 1])
                elif real[n]:
                    one_channel(x[row], valid[row], one_panels, b, s, ZERO, patches, made, between[n, 1 : F2 + 1])
            some = frames[first - start : last - start]
            convolve_frames(between, real, panels, b2, ZERO, some, rows, sums)
            for t in range(first, last):
                if not valid[row, 4 * t]:
                    some[t - first] = 0
        n = max(stop - start, ROWS)  # what is too much lies behind the last frame
        multiply_panels(flat[:n], out_panels, b_out, y[row, start : start + n])


def blocks_of(B: int, T4: int) -> tuple[int, Array]:
    """Return how many frames a block of B utterances of T4 frames has, an even number, ROWS at least; and where the
    portions of the threads begin in the blocks of all of them, and where the last one ends.
    """
    portions, size = 1 if alone() else threads(), TOGETHER
    if portions > B:
        each = -(-T4 // TOGETHER)
        each += -each * B % portions  # blocks of an utterance: as many for each thread
        size = max(ROWS, 2 * -(-T4 // (2 * each)))
    blocks = B * -(-T4 // size)
    return size, blocks * np.arange(portions + 1) // portions


def subsample(features: Array, valid: Array, p: SubsamplingParams, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Map features (B, T, F) to x (B, T', C) and its mask (B, T')."""
    (B, T, F), C = features.shape, p.out.W.shape[1]
    if C < NARROW or [type(conv) for conv in p.convs] != [Conv2dParams] * 2:
        return NotImplemented
    first, second = p.convs
    (I, O), T4, F4 = second.W.shape[2:], (T + 3) // 4, (F + 3) // 4
    must_have((B, T), valid)
    must_have((3, 3, 1, I), first.W)
    must_have((F4 * O, C), p.out.W)
    for size, b in ((I, first.b), (O, second.b), (C, p.out.b)):
        if b is not None:
            must_have((size,), b)
    xp = array_module(features)
    b_out = xp.zeros((C,), features.dtype) if p.out.b is None else p.out.b
    maps = sums_of_taps(second.W), second.b, panels_of(p.out.W), b_out
    features, y = xp.ascontiguousarray(features), xp.empty((B, T4 + ROWS, C), features.dtype)
    size, bounds = blocks_of(B, T4)
    products = {(1, AT_ONCE * F4, 9 * I, O): B * -(-T4 // AT_ONCE), (1, B * T4, F4 * O, C): 1}
    portions: list[Callable[[], None]] = []
    for low, high in pairwise(bounds):
        one = room_for_one_channel((F + 1) // 2, first.W.reshape(9, I), first.b)
        frames = xp.zeros((TOGETHER, F4, O), features.dtype)
        room = *room_for_frames(F4, I, features.dtype, xp), frames, frames.reshape(TOGETHER, -1)
        arrays = features, valid, *one, *maps, *room
        counted = None if portions else products  # once for all portions
        portions.append(partial(launch, _front_end, *arrays, size, y, low, high, products=counted))
    share(portions)
    return y[:, :T4] * scale, valid[:, ::4]
