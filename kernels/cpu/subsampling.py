"""Twin of a frozen front end of two convolutions: between them a few frames are kept at a time, with a zero at both
ends, as the second one reads them.
"""

import numpy as np

from minihra.arrays import Array
from minihra.blocks.subsampling import SubsamplingParams
from minihra.kernels.cpu.compiled import ZERO, compiled, copy_row, must_have
from minihra.kernels.cpu.conv2d import AT_ONCE, convolve_frames, one_channel
from minihra.kernels.cpu.product import COLUMNS, ROWS, multiply_panels, panels_of
from minihra.layers.conv2d import Conv2dParams
from minihra.threads import alone

TOGETHER = 4 * ROWS
"""How many frames meet the last map together."""


@compiled
def _front_end(
    x: Array,
    valid: Array,
    W: Array,
    b: Array,
    panels: Array,
    b2: Array,
    out_panels: Array,
    b_out: Array,
    scale: float,
    frames: Array,
    flat: Array,
    y: Array,
) -> None:
    """Let y (B, T4, C) be the frames of x (B, T, F); `frames` (TOGETHER, F4, O) have room for those in between, and
    `flat` (TOGETHER, F4 O) are the same.
    """
    (B, T, F), I, (_, T4, C) = x.shape, len(b), y.shape
    F2, F4 = (F + 1) // 2, (F + 3) // 4
    between, real = np.zeros((2 * AT_ONCE + 1, 2 * F4 + 1, I), x.dtype), np.zeros(2 * AT_ONCE + 1, np.bool_)
    for row in range(B):
        for start in range(0, T4, TOGETHER):
            stop = min(start + TOGETHER, T4)
            for first in range(start, stop, AT_ONCE):
                last = min(first + AT_ONCE, stop)
                for n in range(2 * (last - first) + 1):
                    s = 2 * first - 1 + n
                    real[n] = 0 <= 2 * s < T and valid[row, 2 * s]
                    if n == 0 and first > start:
                        for f in range(F2):  # the last one of those before
                            copy_row(between[2 * AT_ONCE, f + 1], between[0, f + 1])
                    elif real[n]:
                        one_channel(x[row], valid[row], W, b, s, ZERO, between[n, 1 : F2 + 1])
                some = frames[first - start : last - start]
                convolve_frames(between, real, panels, b2, ZERO, some)
                for t in range(first, last):
                    if not valid[row, 4 * t]:
                        some[t - first] = 0
            multiply_panels(flat[: stop - start], out_panels, b_out, y[row, start:stop])
            for t in range(start, stop):
                for c in range(C):
                    y[row, t, c] *= scale


def subsample(features: Array, valid: Array, p: SubsamplingParams, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Map features (B, T, F) to x (B, T', C) and its mask (B, T')."""
    if not alone() or [type(conv) for conv in p.convs] != [Conv2dParams] * 2:
        return NotImplemented
    (first, second), (B, T, F) = p.convs, features.shape
    I, O, C = *second.W.shape[2:], p.out.W.shape[1]
    must_have((B, T), valid)
    must_have((3, 3, 1, I), first.W)
    must_have(((F + 3) // 4 * O, C), p.out.W)
    y = np.empty((B, (T + 3) // 4, C), features.dtype)
    for size, b in ((I, first.b), (O, second.b), (C, p.out.b)):
        if b is not None:
            must_have((size,), b)
    panels = panels_of(p.out.W)
    b_out = np.zeros(len(panels) * COLUMNS, features.dtype)  # filled up, as the last panel is
    b_out[:C] = 0 if p.out.b is None else p.out.b
    maps = first.W.reshape(9, I), first.b, panels_of(second.W.reshape(9 * I, O)), second.b, panels, b_out
    frames = np.empty((TOGETHER, (F + 3) // 4, O), features.dtype)
    room = frames, frames.reshape(TOGETHER, -1)
    _front_end(np.ascontiguousarray(features), valid, *maps, features.dtype.type(scale), *room, y)
    return y, valid[:, ::4]
