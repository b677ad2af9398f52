"""Twin of a frozen front end of two convolutions: between them a few frames are kept at a time, with a zero at both
ends, as the second one reads them.
"""

import numpy as np

from minihra.arrays import Array
from minihra.blocks.subsampling import SubsamplingParams
from minihra.kernels.cpu.compiled import ZERO, compiled, copy_row, must_have
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
from minihra.threads import alone

TOGETHER = 4 * ROWS
"""How many frames meet the last map together."""


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
    y: Array,
) -> None:
    """Let y (B T4 + ROWS, C) be the frames of x (B, T, F), with rows at the end that mean nothing.

    `one_panels`, b, `patches` and `made` are those of `room_for_one_channel`, and room for what the second convolution
    reads, from `between` to `sums`, those of `room_for_frames`; what it makes, `frames` (TOGETHER, F4, O), is `flat`
    (TOGETHER, F4 O), too.
    """
    (B, T, F), T4 = x.shape, (x.shape[1] + 3) // 4
    F2 = (F + 1) // 2
    for row in range(B):
        for start in range(0, T4, TOGETHER):
            stop = min(start + TOGETHER, T4)
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
            n, to = max(stop - start, ROWS), row * T4 + start  # what is too much is written over by what follows
            multiply_panels(flat[:n], out_panels, b_out, y[to : to + n])


def subsample(features: Array, valid: Array, p: SubsamplingParams, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Map features (B, T, F) to x (B, T', C) and its mask (B, T')."""
    (B, T, F), C = features.shape, p.out.W.shape[1]
    if not alone() or C < NARROW or [type(conv) for conv in p.convs] != [Conv2dParams] * 2:
        return NotImplemented
    first, second = p.convs
    (I, O), T4, F4 = second.W.shape[2:], (T + 3) // 4, (F + 3) // 4
    must_have((B, T), valid)
    must_have((3, 3, 1, I), first.W)
    must_have((F4 * O, C), p.out.W)
    for size, b in ((I, first.b), (O, second.b), (C, p.out.b)):
        if b is not None:
            must_have((size,), b)
    b_out = np.zeros(C, features.dtype) if p.out.b is None else p.out.b
    one = room_for_one_channel((F + 1) // 2, first.W.reshape(9, I), first.b)
    maps = *one, sums_of_taps(second.W), second.b, panels_of(p.out.W), b_out
    frames, y = (np.zeros(shape, features.dtype) for shape in ((TOGETHER, F4, O), (B * T4 + ROWS, C)))
    room = *room_for_frames(F4, I, features.dtype), frames, frames.reshape(TOGETHER, -1)
    _front_end(np.ascontiguousarray(features), valid, *maps, *room, y)
    y = y[: B * T4].reshape(B, T4, C)
    y *= scale
    return y, valid[:, ::4]
