"""Twins of the convolutions over time and frequency: products in tiles, of frames with a zero at both ends.

A row of the kernel at a frequency is one product of K = 3I, which starts anew two frequencies further on. Backward, the
even frequencies of dx have a product of K = O with a frame of dy, and the odd ones, which two outputs read, of K = 2O.
"""

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, compiled_inside, copy_row, launch, must_have
from minihra.kernels.cpu.product import Matrix, add_product, after, first_new, left_of, matrix, panels_of
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams

AT_ONCE = 2
"""How many frames of y are computed together; more are not faster."""

BOTTOMLESS = np.float32(-np.inf)
"""No element is below it."""

PATCHES = 2**18
"""Elements of the patches that are copied together for dW: 1 MB."""


@compiled_inside
def one_channel(x: Array, valid: Array, W: Array, b: Array, t: int, least: float, y: Array) -> None:
    """Let y (F2, O) be frame t of the convolution of x (T, F) by W (9, O), and what is below it be `least`."""
    (T, F), x_tf = x.shape, np.empty((3, 3), x.dtype)
    for f in range(len(y)):
        for i in range(3):
            for j in range(3):
                s, g = 2 * t + i - 1, 2 * f + j - 1
                x_tf[i, j] = x[s, g] if 0 <= s < T and 0 <= g < F and valid[s] else 0
        x0, x1, x2 = x_tf[0, 0], x_tf[0, 1], x_tf[0, 2]  # names, so that they stay in registers
        x3, x4, x5 = x_tf[1, 0], x_tf[1, 1], x_tf[1, 2]
        x6, x7, x8 = x_tf[2, 0], x_tf[2, 1], x_tf[2, 2]
        row = y[f]
        for c in range(len(b)):
            earlier = x0 * W[0, c] + x1 * W[1, c] + x2 * W[2, c]
            now = x3 * W[3, c] + x4 * W[4, c] + x5 * W[5, c]
            later = x6 * W[6, c] + x7 * W[7, c] + x8 * W[8, c]
            value = earlier + now + later + b[c]
            row[c] = value if value > least or value != value else least  # NaN stays


@compiled
def _convolve_one(x: Array, valid: Array, W: Array, b: Array, y: Array) -> None:
    """Convolve x (B, T, F) to y (B, T2, F2, O)."""
    for row in range(len(y)):
        for t in range(y.shape[1]):
            if valid[row, 2 * t]:
                one_channel(x[row], valid[row], W, b, t, BOTTOMLESS, y[row, t])
            else:
                y[row, t] = 0


@compiled_inside
def convolve_frames(frames: Array, real: Array, panels: Array, b: Array, least: float, y: Array) -> None:
    """Let y (N, F2, O) be the convolution of `frames` (2N+1, 2F2+1, I), of which those that are not `real` count as
    zeros, and what is below it be `least`. `panels` are those of W (9 I, O).
    """
    (N, F2, O), I, wide, number = y.shape, frames.shape[2], panels.shape[2], y.dtype.type(0)
    sums, width = np.empty((N * F2, wide), y.dtype), min(wide, O)
    all_sums = matrix(sums)
    for p in range(len(panels)):
        left, panel, new = left_of(p, wide, O), matrix(panels[p]), first_new(p, wide, O)
        sums[:] = 0
        for i in range(3):  # outside, so that a third of the panel stays in the cache for all frames
            w = after(panel, 3 * i * I * wide)
            for t in range(N):
                if real[2 * t + i]:
                    frame, to = matrix(frames[2 * t + i]), after(all_sums, t * F2 * wide)
                    x = Matrix(frame.base, 0, 2 * I, 1)
                    add_product(number, F2, 3 * I, x, w, to, new)
        for t in range(N):
            for f in range(F2):
                row, total = y[t, f], sums[t * F2 + f]
                for o in range(new, width):
                    value = total[o] + b[left + o]
                    row[left + o] = value if value > least or value != value else least


@compiled
def _convolve(x: Array, valid: Array, panels: Array, b: Array, y: Array) -> None:
    """Convolve x (B, T, F, I) to y (B, T2, F2, O)."""
    (B, T, F, I), (_, T2, F2, _) = x.shape, y.shape
    frames, real = np.zeros((2 * AT_ONCE + 1, 2 * F2 + 1, I), x.dtype), np.zeros(2 * AT_ONCE + 1, np.bool_)
    for row in range(B):
        for first in range(0, T2, AT_ONCE):
            stop = min(first + AT_ONCE, T2)
            for n in range(2 * (stop - first) + 1):
                s = 2 * first - 1 + n
                real[n] = 0 <= s < T and valid[row, s]
                if real[n]:
                    for f in range(F):
                        copy_row(x[row, s, f], frames[n, f + 1])
            convolve_frames(frames, real, panels, b, BOTTOMLESS, y[row, first:stop])
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
    tile = matrix(sums)
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
                                add_product(number, places, K, its_dy, w, tile, new)
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
    y, x, W = xp.empty((B, T2, F2, O), x.dtype), xp.ascontiguousarray(x), p.W.reshape(9 * I, O)
    if I == 1:
        launch(_convolve_one, x[..., 0], valid, W, p.b, y)
    else:
        N = frames_at_once(F2, I, O, B * T2)
        products = {(1, N * F2, 9 * I, O): -(-B * T2 // N)}
        launch(_convolve, x, valid, panels_of(W), p.b, y, products=products)
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
