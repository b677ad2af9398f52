"""Twins of the convolutions over time and frequency: products in tiles, of frames with a zero at both ends.

Two outputs that follow each other along an axis read five inputs, x0 ... x4, and have five products in place of six,

    y0 = w0 x0 + w1 x1 + w2 x2  =  w0 (x0 - x2)  +  w1 x1  +  (w0 + w2) x2
    y1 = w0 x2 + w1 x3 + w2 x4  =  w2 (x4 - x2)  +  w1 x3  +  (w0 + w2) x2

as the outer taps are a filter of two taps over every other input, for which Winograd's F(2, 2) has three products for
four (Lavin and Gray 2015, 1509.09308, section 4). So 2 x 2 outputs have 25 products, of K = I, in place of 36.

Each of these products has one for dx and one for dw backward: with dz0 = dy0, dz1 = dy0 + dy1 and dz2 = dy1,

    dx0 = w0 dz0    dx1 = w1 dz0    dx2 = (w0 + w2) dz1 - dx0 - dx4    dx3 = w1 dz2    dx4 = w2 dz2
    dw0 = (x0 - x2) dz0 + x2 dz1    dw1 = x1 dz0 + x3 dz2    dw2 = (x4 - x2) dz2 + x2 dz1

and x4 is x0 of the next two outputs, whose dx0 is added to this dx4 in the end.
"""

from types import ModuleType

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ZERO, compiled, compiled_inside, copy_row, launch, must_have
from minihra.kernels.cpu.product import (
    COLUMNS,
    NARROW,
    ROWS,
    Matrix,
    add_product,
    after,
    first_new,
    left_of,
    matrix,
    multiply,
    multiply_panels,
    panels_of,
)
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams

AT_ONCE = 8
"""How many frames of y are computed together, an even number."""

TAPS = np.array([0, 1, 3, 1, 2])
SUM = np.array([0, 0, 1, 2, 2])
"""Of the products of x0 - x2, x1, x2, x3 and x4 - x2: by which tap, 3 being w0 + w2, and to which sum they are added:
to that of y0, of both or of y1; backward, with which dz they have a product.
"""

BOTTOMLESS = np.float32(-np.inf)
"""No element is below it."""


@compiled_inside
def _read_patches(x: Array, valid: Array, t: int, patches: Array) -> None:
    """Let the first F2 of patches (F2 + 1, 9), where zeros were, be what frame t of y reads of x (T, F)."""
    (T, F), F2 = x.shape, (x.shape[1] + 1) // 2
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


@compiled_inside
def one_channel(
    x: Array, valid: Array, panels: Array, b: Array, t: int, least: float, patches: Array, made: Array, y: Array
) -> None:
    """Let y (F2, O) be frame t of the convolution of x (T, F) by the W (9, O) of the panels, and what is below it be
    `least`. b and made (F2, O) have NARROW columns at least, and made ROWS rows. Room, with zeros: patches (F2 + 1, 9),
    one row more than made.
    """
    _read_patches(x, valid, t, patches)
    multiply_panels(patches[: len(made)], panels, b, made)
    for f in range(len(y)):
        for c in range(y.shape[1]):
            y[f, c] = made[f, c] if made[f, c] > least or made[f, c] != made[f, c] else least  # NaN stays


def room_for_one_channel(F2: int, W: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Return the panels of W (9, O), b (O,) in NARROW columns at least, and `patches` and `made` for `one_channel`."""
    xp, missing = array_module(W), max(0, NARROW - len(b))
    W, b = (
        xp.concatenate([W, xp.zeros((9, missing), W.dtype)], axis=1),
        xp.concatenate([b, xp.zeros((missing,), b.dtype)]),
    )
    rows = max(F2, ROWS)
    return panels_of(W), b, xp.zeros((rows + 1, 9), W.dtype), xp.empty((rows, len(b)), W.dtype)


@compiled
def _convolve_one(x: Array, valid: Array, panels: Array, b: Array, patches: Array, made: Array, y: Array) -> None:
    """Convolve x (B, T, F) to y (B, T2, F2, O)."""
    for row in range(len(y)):
        for t in range(y.shape[1]):
            if valid[row, 2 * t]:
                one_channel(x[row], valid[row], panels, b, t, BOTTOMLESS, patches, made, y[row, t])
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
def _read_fives(frames: Array, real: Array, pairs: int, rows: Array) -> None:
    """Let `rows` be those of `convolve_frames`: what each 2 x 2 outputs read, less what products share."""
    I, H = frames.shape[2], frames.shape[1] // 4
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
    _read_fives(frames, real, pairs, rows)
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


@compiled_inside
def _read_frames(x: Array, valid: Array, first: int, frames: Array, real: Array) -> None:
    """Let `frames` and `real` be of x (T, F, I) what the frames of y from the `first` one on read."""
    for n in range(len(real)):
        s = 2 * first - 1 + n
        real[n] = 0 <= s < len(x) and valid[s]
        if real[n]:
            for f in range(x.shape[1]):
                copy_row(x[s, f], frames[n, f + 1])


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
    T2 = y.shape[1]
    for row in range(len(x)):
        for first in range(0, T2, AT_ONCE):
            stop = min(first + AT_ONCE, T2)
            _read_frames(x[row], valid[row], first, frames, real)
            convolve_frames(frames, real, panels, b, BOTTOMLESS, y[row, first:stop], rows, sums)
            for t in range(first, stop):
                if not valid[row, 2 * t]:
                    y[row, t] = 0


@compiled_inside
def _sum_outputs(dy: Array, valid: Array, first: int, pairs: int, sums: Array) -> None:
    """Let sums (3, 3, N, O) be dz along both axes of pairs of frames of dy (T2, F2, O), from the `first` one on.

    Padded frames count as zeros; columns beyond O stay what they are.
    """
    (T2, F2, O), H = dy.shape, (dy.shape[1] + 1) // 2
    for pair in range(pairs):
        for i in (0, 2):
            t = first + 2 * pair + i // 2
            for h in range(H):
                for j in (0, 2):
                    f, row = 2 * h + j // 2, sums[i, j, pair * H + h]
                    if t < T2 and f < F2 and valid[2 * t]:
                        copy_row(dy[t, f], row[:O])
                    else:
                        for o in range(O):
                            row[o] = ZERO
                n = pair * H + h
                its, other, both = sums[i, 0, n], sums[i, 2, n], sums[i, 1, n]
                for o in range(O):
                    both[o] = its[o] + other[o]
    for j in range(3):
        for n in range(pairs * H):
            its, other, both = sums[0, j, n], sums[2, j, n], sums[1, j, n]
            for o in range(O):
                both[o] = its[o] + other[o]


@compiled_inside
def _separate(rows: Array, pairs: int, H: int) -> None:
    """Let rows (5, N, 5 I), the products with dz, be dx0 ... dx4 along both axes, dx0 with dx4 of those before."""
    I, N = rows.shape[2] // 5, pairs * H
    first, third, last = rows[0].reshape(-1), rows[2].reshape(-1), rows[4].reshape(-1)
    for n in range(N * 5 * I):
        third[n] -= first[n] + last[n]
    for n in range((N - H) * 5 * I):
        first[H * 5 * I + n] += last[n]
    for i in range(5):
        for n in range(N):
            row = rows[i, n]
            first, third, last = row[:I], row[2 * I : 3 * I], row[4 * I :]
            for c in range(I):
                third[c] -= first[c] + last[c]
            if n % H:
                before = rows[i, n - 1, 4 * I :]
                for c in range(I):
                    first[c] += before[c]


@compiled
def _convolve_back(dy: Array, valid: Array, panels: Array, dx: Array, none: Array, rows: Array, sums: Array) -> None:
    """Let dx (B, T, F, I) be the gradient of x for dy (B, T2, F2, O).

    `panels` are those of `sums_of_taps` for W turned, (3, 3, O, I). Room: none (COLUMNS,), zeros; rows
    (5, AT_ONCE H / 2, 5 COLUMNS or 5 I, whichever is more), H = ceil(F2 / 2), and sums (3, 3, AT_ONCE H / 2, O).
    """
    (B, T, F, I), (_, T2, F2, O), wide, number = dx.shape, dy.shape, panels.shape[2], dy.dtype.type(0)
    H, count, room, all_rows, all_sums = (F2 + 1) // 2, rows.shape[1], rows.shape[2] // 5, matrix(rows), matrix(sums)
    for b in range(B):
        for first in range(0, T2, AT_ONCE):
            pairs = (min(AT_ONCE, T2 - first) + 1) // 2
            _sum_outputs(dy[b], valid[b], first, pairs, sums)
            for p in range(len(panels)):
                left, new = left_of(p, wide, I), first_new(p, wide, I)
                for i in range(5):
                    for j in range(5):
                        dz = after(all_sums, (SUM[i] * 3 + SUM[j]) * count * O)
                        w = after(matrix(panels), (p * 16 + TAPS[i] * 4 + TAPS[j]) * O * wide + new)
                        to = Matrix(all_rows.base, (i * count * 5 + j) * room + left + new, 5 * room, 1)
                        multiply(number, pairs * H, O, wide - new, dz, w, matrix(none), to)
            _separate(rows, pairs, H)
            for n in range(4 * pairs + 1):
                s = 2 * first - 1 + n
                if not 0 <= s < T:
                    continue
                if not valid[b, s]:
                    dx[b, s] = 0
                    continue
                pair, i = (n // 4, n % 4) if n < 4 * pairs else (pairs - 1, 4)
                for f in range(F):
                    h, j = ((f + 1) // 4, (f + 1) % 4) if f + 1 < 4 * H else (H - 1, 4)
                    its, row = rows[i, pair * H + h, j * room :], dx[b, s, f]
                    if n == 0:  # the frames of y before these have read it, too
                        for c in range(len(row)):
                            row[c] += its[c]
                    else:
                        copy_row(its, row)


@compiled
def _tap_gradients(
    x: Array, valid: Array, dy: Array, dW: Array, frames: Array, real: Array, rows: Array, sums: Array
) -> None:
    """Add to dW (4, 4, I, O) the gradients of the sums of taps for dy (B, T2, F2, O) of x (B, T, F, I).

    Of its columns, and those of `sums`, there is a whole multiple of NARROW. Room: that of `room_for_frames`, but sums
    (3, 3, AT_ONCE H / 2, O), with zeros.
    """
    (_, T2, F2, _), (_, _, I, wide), number, count = dy.shape, dW.shape, dy.dtype.type(0), rows.shape[1]
    all_rows, all_sums, all_dW = matrix(rows), matrix(sums), matrix(dW)
    for b in range(len(x)):
        for first in range(0, T2, AT_ONCE):
            pairs = (min(AT_ONCE, T2 - first) + 1) // 2
            _read_frames(x[b], valid[b], first, frames, real)
            _read_fives(frames, real, pairs, rows)
            _sum_outputs(dy[b], valid[b], first, pairs, sums)
            for i in range(5):
                for j in range(5):
                    its = Matrix(all_rows.base, (i * count * 5 + j) * I, 1, 5 * I)
                    dz = after(all_sums, (SUM[i] * 3 + SUM[j]) * count * wide)
                    to = after(all_dW, (TAPS[i] * 4 + TAPS[j]) * I * wide)
                    multiply(number, I, pairs * ((F2 + 1) // 2), wide, its, dz, to, to)


@compiled
def _one_channel_gradient(x: Array, valid: Array, dy: Array, dW: Array, patches: Array) -> None:
    """Add to dW (9, O) its gradient for dy (B, T2, F2, O) of x (B, T, F). Room, with zeros: patches (F2 + 1, 9)."""
    _, T2, F2, O = dy.shape
    for b in range(len(x)):
        for t in range(T2):
            if valid[b, 2 * t]:
                _read_patches(x[b], valid[b], t, patches)
                for f in range(F2):
                    for k in range(9):
                        value = patches[f, k]
                        for o in range(O):
                            dW[k, o] += value * dy[b, t, f, o]


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
        products = {(1, AT_ONCE * F2, 9 * I, O): B * -(-T2 // AT_ONCE)}
        launch(_convolve, x, valid, sums_of_taps(p.W), p.b, y, *room_for_frames(F2, I, x.dtype, xp), products=products)
    return y, Conv2dCache(x if params else None, F, valid, p, below)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Conv2dParams | None]:
    """Return dx (B, T, F, I), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    x, F, valid, p, below = cache
    xp, (B, T), (*_, I, O) = array_module(dy), valid.shape, p.W.shape
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    must_have((B, T2, F2, O), dy)
    valid = xp.ascontiguousarray(valid)  # of another layout the loops would be compiled anew
    dy, dx = xp.ascontiguousarray(dy), xp.empty((B, T, F, I), dy.dtype) if below else None
    count, wide = AT_ONCE * ((F2 + 1) // 2) // 2, -(-O // NARROW) * NARROW
    if below:
        room = [xp.zeros(shape, dy.dtype) for shape in ((COLUMNS,), (5, count, 5 * max(I, COLUMNS)), (3, 3, count, O))]
        launch(_convolve_back, dy, valid, sums_of_taps(p.W.swapaxes(2, 3)), dx, *room)
    if x is None:
        return dx, None
    if I == 1:
        dW, patches = (xp.zeros(shape, dy.dtype) for shape in ((9, O), (F2 + 1, 9)))
        launch(_one_channel_gradient, x[..., 0], valid, dy, dW, patches)
    else:
        dW, sums = (xp.zeros(shape, dy.dtype) for shape in ((4, 4, I, wide), (3, 3, count, wide)))
        launch(_tap_gradients, x, valid, dy, dW, *room_for_frames(F2, I, dy.dtype, xp)[:3], sums)
        dW[[0, 2]] += dW[3]
        dW[:, [0, 2]] += dW[:, 3:]
        dW = dW[:3, :3]
    db = xp.zeros((O,), dy.dtype)
    launch(_add_frames, dy, valid, db)
    return dx, Conv2dParams(dW[..., :O].reshape(p.W.shape), db)


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
