"""Twins of the convolutions over time and frequency: products in tiles, of frames with a zero at both ends.

Two outputs that follow each other along an axis read five inputs, x0 ... x4, and have five products in place of six,

    y0 = w0 x0 + w1 x1 + w2 x2  =  w0 (x0 - x2)  +  w1 x1  +  (w0 + w2) x2
    y1 = w0 x2 + w1 x3 + w2 x4  =  w2 (x4 - x2)  +  w1 x3  +  (w0 + w2) x2

as the outer taps are a filter of two taps over every other input, for which Winograd's F(2, 2) has three products for
four (Lavin and Gray 2015, 1509.09308, section 4). So 2 x 2 outputs have 25 products, of K = I, in place of 36.

Backward, the even frequencies of dx have a product of K = O with a frame of dy, and the odd ones, which two outputs
read, of K = 2O.
"""

from types import ModuleType

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ZERO, compiled, compiled_inside, copy_row, launch, must_have
from minihra.kernels.cpu.product import (
    COLUMNS,
    NARROW,
    Matrix,
    add_product,
    after,
    first_new,
    left_of,
    matrix,
    multiply,
    panels_of,
)
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams

AT_ONCE = 8
"""How many frames of y are computed together, an even number."""

TAPS = np.array([0, 1, 3, 1, 2])
SUM = np.array([0, 0, 1, 2, 2])
"""Of the products of x0 - x2, x1, x2, x3 and x4 - x2: by which tap, 3 being w0 + w2, and to which sum they are added:
to that of y0, of both or of y1.
"""

BOTTOMLESS = np.float32(-np.inf)
"""No element is below it."""

PATCHES = 2**18
"""Elements of the patches that are copied together for dW: 1 MB."""


@compiled_inside
def one_channel(
    x: Array, valid: Array, W: Array, b: Array, t: int, least: float, patches: Array, made: Array, y: Array
) -> None:
    """Let y (F2, O) be frame t of the convolution of x (T, F) by W (9, O), and what is below it be `least`. Of W, b and
    made (F2, O) there are NARROW columns at least. Room, with zeros: patches (F2 + 1, 9).
    """
    (T, F), F2, number = x.shape, len(y), x.dtype.type(0)
    for i in range(3):
        s = 2 * t + i - 1
        if 0 <= s < T and valid[s]:
            for f in range(F2):
                patches[f, 3 * i + 1] = x[s, 2 * f]
            for f in range(F // 2):
                patches[f, 3 * i + 2] = patches[f + 1, 3 * i] = x[s, 2 * f + 1]
        else:
            for f in range(F2):
                patches[f, 3 * i] = patches[f, 3 * i + 1] = patches[f, 3 * i + 2] = ZERO
    bias = Matrix(matrix(b).base, 0, 0, 1)
    multiply(number, F2, 9, W.shape[1], matrix(patches), matrix(W), bias, matrix(made))
    for f in range(F2):
        for c in range(y.shape[1]):
            y[f, c] = made[f, c] if made[f, c] > least or made[f, c] != made[f, c] else least  # NaN stays


def room_for_one_channel(F2: int, W: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Return W (9, O) and b (O,) in NARROW columns at least, and `patches` and `made` for `one_channel`."""
    xp, missing = array_module(W), max(0, NARROW - len(b))
    W, b = (
        xp.concatenate([W, xp.zeros((9, missing), W.dtype)], axis=1),
        xp.concatenate([b, xp.zeros((missing,), b.dtype)]),
    )
    return W, b, xp.zeros((F2 + 1, 9), W.dtype), xp.empty((F2, len(b)), W.dtype)


@compiled
def _convolve_one(x: Array, valid: Array, W: Array, b: Array, patches: Array, made: Array, y: Array) -> None:
    """Convolve x (B, T, F) to y (B, T2, F2, O)."""
    for row in range(len(y)):
        for t in range(y.shape[1]):
            if valid[row, 2 * t]:
                one_channel(x[row], valid[row], W, b, t, BOTTOMLESS, patches, made, y[row, t])
            else:
                y[row, t] = 0


@compiled_inside
def _combine(fives: Array) -> None:
    """Let the first and the last of each row of fives (N, 5 I) be less the third."""
    I = fives.shape[1] // 5
    for n in range(len(fives)):
        first, third, last = fives[n, :I], fives[n, 2 * I : 3 * I], fives[n, 4 * I :]
        for c in range(I):
            first[c] -= third[c]
        for c in range(I):
            last[c] -= third[c]


@compiled_inside
def convolve_frames(
    frames: Array, real: Array, panels: Array, b: Array, least: float, y: Array, rows: Array, sums: Array
) -> None:
    """Let y (N, F2, O) be the convolution of `frames`, of which those that are not `real` count as zeros, and what is
    below it be `least`. `panels` are those of `sums_of_taps`.

    Of frames (2 AT_ONCE + 1, 4 H + 1, I) the first 2N + 1 count, H = ceil(F2 / 2). Room: rows (5, AT_ONCE H / 2, 5 I)
    and sums (3, 3, AT_ONCE H / 2, COLUMNS).
    """
    (N, F2, O), I, wide, number = y.shape, frames.shape[2], panels.shape[2], y.dtype.type(0)
    H, pairs, width = frames.shape[1] // 4, (N + 1) // 2, min(wide, O)
    for pair in range(pairs):
        first, end = pair * H, (pair + 1) * H
        for i in range(5):
            if real[4 * pair + i]:
                frame = frames[4 * pair + i].reshape(-1)
                for h in range(H):
                    copy_row(frame[4 * h * I : (4 * h + 5) * I], rows[i, first + h])
                _combine(rows[i, first:end])
            else:
                rows[i, first:end] = 0
        for i in (0, 4):
            third, its = rows[2, first:end].reshape(-1), rows[i, first:end].reshape(-1)
            for n in range(len(its)):
                its[n] -= third[n]
    all_rows, all_sums, count = matrix(rows), matrix(sums), rows.shape[1]
    for p in range(len(panels)):
        left, panel, new = left_of(p, wide, O), matrix(panels), first_new(p, wide, O)
        sums[:] = 0
        for i in range(5):
            for j, tap, places in ((0, 0, 2), (2, 3, 1), (3, 1, 2)):
                x = Matrix(all_rows.base, (i * count * 5 + j) * I, 5 * I, 1)
                w = after(panel, (p * 16 + TAPS[i] * 4 + tap) * I * wide)
                to = after(all_sums, (SUM[i] * 3 + SUM[j]) * count * wide)
                add_product(number, pairs * H, places * I, x, w, to, new)
        for t in range(N):
            for f in range(F2):
                i, j, n = t % 2 * 2, f % 2 * 2, t // 2 * H + f // 2
                shared, later, beside = sums[1, 1, n, new:width], sums[i, 1, n, new:width], sums[1, j, n, new:width]
                alone, its_b, row = (
                    sums[i, j, n, new:width],
                    b[left + new : left + width],
                    y[t, f, left + new : left + width],
                )
                for o in range(len(row)):
                    value = shared[o] + later[o] + beside[o] + alone[o] + its_b[o]
                    row[o] = value if value > least or value != value else least


def room_for_frames(F2: int, I: int, dtype: np.dtype, xp: ModuleType = np) -> tuple[Array, Array, Array, Array]:
    """Return `frames`, `real`, `rows` and `sums` for `convolve_frames`, with zeros."""
    H, read = (F2 + 1) // 2, 2 * AT_ONCE + 1
    rows, sums = xp.zeros((5, AT_ONCE * H // 2, 5 * I), dtype), xp.zeros((3, 3, AT_ONCE * H // 2, COLUMNS), dtype)
    return xp.zeros((read, 4 * H + 1, I), dtype), xp.zeros((read,), bool), rows, sums


def sums_of_taps(W: Array) -> Array:
    """Return the panels of what `convolve_frames` multiplies by: 4 x 4 sums of taps of W (3, 3, I, O)."""
    xp = array_module(W)
    W = xp.concatenate([W, W[:1] + W[2:]])
    W = xp.concatenate([W, W[:, :1] + W[:, 2:]], axis=1)
    return panels_of(W.reshape(16 * W.shape[2], W.shape[3]))


@compiled
def _convolve(
    x: Array,
    valid: Array,
    panels: Array,
    b: Array,
    y: Array,
    frames: Array,
    real: Array,
    rows: Array,
    sums: Array,
) -> None:
    """Convolve x (B, T, F, I) to y (B, T2, F2, O)."""
    (B, T, F, _), T2 = x.shape, y.shape[1]
    for row in range(B):
        for first in range(0, T2, AT_ONCE):
            stop = min(first + AT_ONCE, T2)
            for n in range(2 * AT_ONCE + 1):
                s = 2 * first - 1 + n
                real[n] = 0 <= s < T and valid[row, s]
                if real[n]:
                    for f in range(F):
                        copy_row(x[row, s, f], frames[n, f + 1])
            convolve_frames(frames, real, panels, b, BOTTOMLESS, y[row, first:stop], rows, sums)
            for t in range(first, stop):
                if not valid[row, 2 * t]:
                    y[row, t] = 0


@compiled
def _convolve_back(dy: Array, valid: Array, panels: Array, dx: Array) -> None:
    """Let dx (B, T, F, I) be the gradient of x for dy (B, T2, F2, O).

    `panels` are those of W turned (9 O, I), its rows ordered by time, then by the places 2, 0 and 1 of frequency: what
    a frame of dy and the next frequency of it give to odd frequencies of x stands together.
    """
    (B, T, F, I), (_, T2, F2, O), wide, number = dx.shape, dy.shape, panels.shape[2], dy.dtype.type(0)
    frames, real = np.zeros((AT_ONCE + 1, F2 + 1, O), dy.dtype), np.zeros(AT_ONCE + 1, np.bool_)
    sums, width = np.empty((F2, wide), dy.dtype), min(wide, I)
    for b in range(B):
        for first in range(0, T2, AT_ONCE):
            for n in range(AT_ONCE + 1):
                t = first + n
                real[n] = t < T2 and valid[b, 2 * t]
                if real[n]:
                    for f in range(F2):
                        copy_row(dy[b, t, f], frames[n, f])
            for p in range(len(panels)):
                left, panel, new = left_of(p, wide, I), matrix(panels[p]), first_new(p, wide, I)
                for s in range(2 * first, min(2 * (first + AT_ONCE), T)):
                    if not valid[b, s]:
                        dx[b, s] = 0
                        continue
                    n = s // 2 - first
                    for odd in range(2):
                        places, K = (F + 1 - odd) // 2, (1 + odd) * O
                        sums[:] = 0
                        for later in range(1 + s % 2):
                            if real[n + later]:
                                its_dy, i = matrix(frames[n + later]), 1 + s % 2 - 2 * later
                                w = after(panel, (3 * i + 2 - 2 * odd) * O * wide)
                                add_product(number, places, K, its_dy, w, matrix(sums), new)
                        for f in range(places):
                            row, total = dx[b, s, 2 * f + odd], sums[f]
                            for c in range(new, width):
                                row[left + c] = total[c]


@compiled
def _gather(x: Array, valid: Array, first: int, patches: Array) -> None:
    """Let patches (N, F2, 9 I) be what the frames `first` ... of y, counted through the batch, read of x (B, T, F, I).

    Those of padded frames are 0, so that they have no gradient.
    """
    (_, T, F, I), (N, F2, _), T2 = x.shape, patches.shape, (x.shape[1] + 1) // 2
    for n in range(N):
        row, t = (first + n) // T2, (first + n) % T2
        for i in range(3):
            s = 2 * t + i - 1
            real = valid[row, 2 * t] and 0 <= s < T and valid[row, s]
            for f in range(F2):
                for j in range(3):
                    g, place = 2 * f + j - 1, (3 * i + j) * I
                    if real and 0 <= g < F:
                        for c in range(I):
                            patches[n, f, place + c] = x[row, s, g, c]
                    else:
                        for c in range(I):
                            patches[n, f, place + c] = 0


@compiled
def _add_frames(dy: Array, valid: Array, db: Array) -> None:
    """Add to db (O,) the valid frames of dy (B, T2, F2, O)."""
    B, T2, F2, O = dy.shape
    for row in range(B):
        for t in range(T2):
            if valid[row, 2 * t]:
                for f in range(F2):
                    for o in range(O):
                        db[o] += dy[row, t, f, o]


def conv2d_forward(
    x: Array, valid: Array, p: Conv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, Conv2dCache]:
    """Convolve x (B, T, F, I) to y (B, ceil(T/2), ceil(F/2), O), which is 0 on padded frames."""
    xp, (B, T, F, I), O = array_module(x), x.shape, p.W.shape[3]
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    must_have((B, T), valid)
    must_have((3, 3, I, O), p.W)
    must_have((O,), p.b)
    y, x = xp.empty((B, T2, F2, O), x.dtype), xp.ascontiguousarray(x)
    if I == 1:
        launch(_convolve_one, x[..., 0], valid, *room_for_one_channel(F2, p.W.reshape(9, O), p.b), y)
    else:
        N = frames_at_once(F2, I, O, B * T2)
        products = {(1, N * F2, 9 * I, O): -(-B * T2 // N)}
        launch(_convolve, x, valid, sums_of_taps(p.W), p.b, y, *room_for_frames(F2, I, x.dtype, xp), products=products)
    return y, Conv2dCache(x if params else None, F, valid, p, below)


def frames_at_once(F2: int, I: int, O: int, frames: int) -> int:
    """Return how many frames of y, which are O wide or have patches that are wider, have about PATCHES elements."""
    return max(1, min(frames, PATCHES // (max(9 * I, O) * F2)))


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Conv2dParams | None]:
    """Return dx (B, T, F, I), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    x, F, valid, p, below = cache
    xp, (B, T), (*_, I, O) = array_module(dy), valid.shape, p.W.shape
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    must_have((B, T2, F2, O), dy)
    dy, dx = xp.ascontiguousarray(dy), xp.empty((B, T, F, I), dy.dtype) if below else None
    if below:
        turned = p.W.transpose(0, 1, 3, 2)[:, [2, 0, 1]].reshape(9 * O, I)
        launch(_convolve_back, dy, valid, panels_of(turned), dx)
    if x is None:
        return dx, None
    rows, N = dy.reshape(-1, O), frames_at_once(F2, I, O, B * T2)
    patches, dW, db = (xp.zeros(shape, dy.dtype) for shape in ((N, F2, 9 * I), (9 * I, O), (O,)))
    for first in range(0, B * T2, N):
        some = patches[: B * T2 - first]
        launch(_gather, x, valid, first, some)
        dW += some.reshape(-1, 9 * I).T @ rows[first * F2 : (first + N) * F2]
    launch(_add_frames, dy, valid, db)
    return dx, Conv2dParams(dW.reshape(p.W.shape), db)


@compiled
def _convolve_each(x: Array, valid: Array, W: Array, b: Array, y: Array) -> None:
    """Convolve each channel of x (B, T, F, C) by its own W (3, 3, C) to y (B, T2, F2, C)."""
    (B, T, F, C), (_, T2, F2, _) = x.shape, y.shape
    for row in range(B):
        for t in range(T2):
            for f in range(F2):
                y[row, t, f] = 0
                if not valid[row, 2 * t]:
                    continue
                copy_row(b, y[row, t, f])
                for i in range(max(0, 1 - 2 * t), min(3, T + 1 - 2 * t)):
                    for j in range(max(0, 1 - 2 * f), min(3, F + 1 - 2 * f)):
                        if valid[row, 2 * t + i - 1]:
                            m, n = 2 * t + i - 1, 2 * f + j - 1
                            for c in range(C):
                                y[row, t, f, c] += W[i, j, c] * x[row, m, n, c]


def depthwise_conv2d_forward(
    x: Array, valid: Array, p: DepthwiseConv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, DepthwiseConv2dCache]:
    """Convolve each channel of x (B, T, F, C) to y (B, ceil(T/2), ceil(F/2), C), which is 0 on padded frames."""
    xp = array_module(x)
    B, T, F, C = x.shape
    must_have((B, T), valid)
    must_have((3, 3, C), p.W)
    must_have((C,), p.b)
    y = xp.empty((B, (T + 1) // 2, (F + 1) // 2, C), x.dtype)
    launch(_convolve_each, xp.ascontiguousarray(x), valid, xp.ascontiguousarray(p.W), p.b, y)
    return y, DepthwiseConv2dCache(x if params else None, F, valid, p, below)
