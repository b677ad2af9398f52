"""Twins of the convolutions over time and frequency: nothing is copied to be read nine times.

The padded input of one utterance lies in two planes, its even and its odd frames. In a plane, the pairs of frequencies
from which outputs start follow each other, so that each row of the kernel is two products: its first two columns meet
one pair, and the third the first half of the next. At the end of a frame they make one output too many: it is waste.
"""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch, must_have
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams


@compiled
def _convolve(x: Array, valid: Array, W: Array, b: Array, y: Array) -> None:
    """Convolve each channel of x (B, T, F, C), or its only one (B, T, F, 1) for every channel of y (B, T2, F2, C)."""
    (B, T, F, I), (_, T2, F2, C) = x.shape, y.shape
    for row in range(B):
        for t in range(T2):
            for f in range(F2):
                y[row, t, f] = 0
                if not valid[row, 2 * t]:
                    continue
                y[row, t, f] = b
                for i in range(max(0, 1 - 2 * t), min(3, T + 1 - 2 * t)):
                    for j in range(max(0, 1 - 2 * f), min(3, F + 1 - 2 * f)):
                        if valid[row, 2 * t + i - 1]:
                            m, n = 2 * t + i - 1, 2 * f + j - 1
                            if I == 1:
                                for c in range(C):
                                    y[row, t, f, c] += W[i, j, c] * x[row, m, n, 0]
                            else:
                                for c in range(C):
                                    y[row, t, f, c] += W[i, j, c] * x[row, m, n, c]


@compiled
def _into_planes(x: Array, valid: Array, planes: Array) -> None:
    """Write x (T, F, I), with its padding, into its places in planes (2, T2+1, 2 F2 + 2, I), whose border is 0."""
    T, F, _ = x.shape
    for t in range(T):
        plane = planes[(t + 1) % 2, (t + 1) // 2]
        for f in range(F):
            if valid[t]:
                plane[f + 1] = x[t, f]
            else:
                plane[f + 1] = 0


@compiled
def _from_rows(rows: Array, b: Array, valid: Array, y: Array) -> None:
    """Let y (T2, F2, O) be the rows (T2 (F2 + 1), O) that are no waste, plus b, on valid frames."""
    T2, F2, O = y.shape
    for t in range(T2):
        for f in range(F2):
            for o in range(O):
                y[t, f, o] = rows[t * (F2 + 1) + f, o] + b[o] if valid[2 * t] else 0


def conv2d_forward(x: Array, valid: Array, p: Conv2dParams, *, params: bool = True) -> tuple[Array, Conv2dCache]:
    """Convolve x (B, T, F, I) to y (B, ceil(T/2), ceil(F/2), O), which is 0 on padded frames."""
    xp, (B, T, F, I), O = array_module(x), x.shape, p.W.shape[3]
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    must_have((B, T), valid)
    must_have((3, 3, I, O), p.W)
    must_have((O,), p.b)
    y, x = xp.empty((B, T2, F2, O), x.dtype), xp.ascontiguousarray(x)
    if I == 1:  # products of one or two columns would be five times slower
        launch(_convolve, x, valid, xp.ascontiguousarray(p.W[:, :, 0]), p.b, y)
    else:
        planes, rows = xp.zeros((2, T2 + 1, 2 * F2 + 2, I), x.dtype), xp.empty((T2 * (F2 + 1), O), x.dtype)
        for b in range(B):
            launch(_into_planes, x[b], valid[b], planes)
            multiply(planes, p.W, rows)
            launch(_from_rows, rows, p.b, valid[b], y[b])
    return y, Conv2dCache(padded_copy(x, valid) if params else None, F, valid, p)


def multiply(planes: Array, W: Array, rows: Array) -> None:
    """Fill rows (T2 (F2 + 1), O), but for the last one, which is waste."""
    (I, O), pairs, N = W.shape[2:], planes.shape[2] // 2, len(rows) - 1  # pairs of frequencies in a frame
    even, odd = planes[0].reshape(-1, 2 * I), planes[1].reshape(-1, 2 * I)
    for i, (plane, start) in enumerate(((even, 0), (odd, 0), (even, pairs))):
        two = plane[start : start + N] @ W[i, :2].reshape(2 * I, O)
        if i == 0:
            rows[:N] = two
        else:
            rows[:N] += two
        rows[:N] += plane[start + 1 : start + 1 + N, :I] @ W[i, 2]


def padded_copy(x: Array, valid: Array) -> Array:
    """Return x (B, T, F, I) with a border of one around it, and 0 on padded frames: (B, T+2, F+2, I)."""
    xp, (B, T, F, I) = array_module(x), x.shape
    padded = xp.zeros((B, T + 2, F + 2, I), x.dtype)
    padded[:, 1 : T + 1, 1 : F + 1] = xp.where(valid[:, :, None, None], x, 0)
    return padded


def depthwise_conv2d_forward(
    x: Array, valid: Array, p: DepthwiseConv2dParams, *, params: bool = True
) -> tuple[Array, DepthwiseConv2dCache]:
    """Convolve each channel of x (B, T, F, C) to y (B, ceil(T/2), ceil(F/2), C), which is 0 on padded frames."""
    xp = array_module(x)
    B, T, F, C = x.shape
    must_have((B, T), valid)
    must_have((3, 3, C), p.W)
    must_have((C,), p.b)
    y = xp.empty((B, (T + 1) // 2, (F + 1) // 2, C), x.dtype)
    launch(_convolve, xp.ascontiguousarray(x), valid, xp.ascontiguousarray(p.W), p.b, y)
    return y, DepthwiseConv2dCache(padded_copy(x, valid) if params else None, F, valid, p)
