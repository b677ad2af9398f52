"""Twin of a frozen front end of two convolutions: between them no more than three frames are kept at a time.

Frame t of the second convolution reads the frames 2t-1, 2t and 2t+1 of the first, each with a zero on both sides. They
stand in a ring, where a row of the kernel is one product of K = 3I that starts anew at every second frequency.
"""

import numpy as np

from minihra.arrays import Array
from minihra.blocks.subsampling import SubsamplingParams
from minihra.kernels.cpu.compiled import ZERO, compiled, must_have
from minihra.kernels.cpu.product import COLUMNS, ROWS, after, make_tile, matrix, multiply_panels, panels_of
from minihra.layers.conv2d import Conv2dParams
from minihra.threads import alone

AT_ONCE = 4 * ROWS
"""How many frames meet the last map together."""


@compiled
def _first(x: Array, valid: Array, W: Array, b: Array, t: int, y: Array) -> None:
    """Let y (F2 + 2, I), between its borders, be frame t of relu(conv(x)) for x (T, F) and W (9, I)."""
    (T, F), x_tf = x.shape, np.empty((3, 3), x.dtype)
    for f in range(len(y) - 2):
        for i in range(3):
            for j in range(3):
                s, g = 2 * t + i - 1, 2 * f + j - 1
                x_tf[i, j] = x[s, g] if 0 <= s < T and 0 <= g < F and valid[s] else 0
        x0, x1, x2 = x_tf[0, 0], x_tf[0, 1], x_tf[0, 2]  # names, so that they stay in registers
        x3, x4, x5 = x_tf[1, 0], x_tf[1, 1], x_tf[1, 2]
        x6, x7, x8 = x_tf[2, 0], x_tf[2, 1], x_tf[2, 2]
        row = y[f + 1]
        for c in range(len(b)):
            earlier = x0 * W[0, c] + x1 * W[1, c] + x2 * W[2, c]
            now = x3 * W[3, c] + x4 * W[4, c] + x5 * W[5, c]
            later = x6 * W[6, c] + x7 * W[7, c] + x8 * W[8, c]
            value = earlier + now + later + b[c]
            row[c] = value if value > 0 or value != value else ZERO  # NaN stays


@compiled
def _second(ring: Array, real: Array, t: int, panels: Array, b: Array, y: Array) -> None:
    """Let y (F4 O,) be frame t of relu(conv()) of the frames in `ring` (3, places, I) that are `real`."""
    I, O, number = ring.shape[2], len(b), y.dtype.type(0)
    F4 = len(y) // O
    sums, tiles = np.empty((F4, COLUMNS), y.dtype), (F4 + ROWS - 1) // ROWS
    for p in range(len(panels)):
        left, width = p * COLUMNS, min(COLUMNS, O - p * COLUMNS)
        sums[:] = 0
        panel = matrix(panels[p], COLUMNS)
        for i in range(3):  # outside, so that a third of the panel stays in the cache for all tiles
            frame = (2 * t + i + 2) % 3
            if real[frame]:
                frame_x = matrix(ring[frame], 2 * I)
                for n in range(tiles):
                    f, below = F4 * n // tiles, F4 * (n + 1) // tiles
                    x, w = after(frame_x, 2 * f * I), after(panel, 3 * i * I * COLUMNS)
                    tile = matrix(sums[f:], COLUMNS)
                    make_tile(below - f, number, 3 * I, x, w, tile, tile)
        for f in range(F4):
            for o in range(width):
                value = sums[f, o] + b[left + o]
                y[f * O + left + o] = value if value > 0 or value != value else ZERO


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
    y: Array,
) -> None:
    """Let y (B, T4, C) be the frames of x (B, T, F)."""
    (B, T, F), (I, O), (_, T4, C) = x.shape, (len(b), len(b2)), y.shape
    F2, F4 = (F + 1) // 2, (F + 3) // 4
    ring, real = np.zeros((3, 2 * F4 + 2, I), x.dtype), np.zeros(3, np.bool_)
    frames = np.empty((AT_ONCE, F4 * O), x.dtype)
    for row in range(B):
        for start in range(0, T4, AT_ONCE):
            stop = min(start + AT_ONCE, T4)
            for t in range(start, stop):
                for s in range(2 * t if t > 0 else -1, 2 * t + 2):
                    frame = (s + 3) % 3
                    real[frame] = s >= 0 and 2 * s < T and valid[row, 2 * s]
                    if real[frame]:
                        _first(x[row], valid[row], W, b, s, ring[frame, : F2 + 2])
                if valid[row, 4 * t]:
                    _second(ring, real, t, panels, b2, frames[t - start])
                else:
                    frames[t - start] = 0
            multiply_panels(frames[: stop - start], out_panels, b_out, y[row, start:stop])
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
    _front_end(np.ascontiguousarray(features), valid, *maps, features.dtype.type(scale), y)
    return y, valid[:, ::4]
