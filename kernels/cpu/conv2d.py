"""Twins of the convolutions over time and frequency: the patches that outputs read are copied for some frames at a
time, so that their product finds them in the cache.
"""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch, must_have
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams

PATCHES = 2**18
"""Elements of the patches that are copied together: 1 MB, which is about the fastest for 96 and for 144 channels."""


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
def _gather(x: Array, valid: Array, first: int, patches: Array) -> None:
    """Let patches (N, F2, 9 I) be what the frames `first` ... of y read of x (T, F, I)."""
    (T, F, I), (N, F2, _) = x.shape, patches.shape
    for n in range(N):
        for i in range(3):
            t = 2 * (first + n) + i - 1
            real = 0 <= t < T and valid[t]
            for f in range(F2):
                for j in range(3):
                    g, patch = 2 * f + j - 1, patches[n, f, (3 * i + j) * I : (3 * i + j + 1) * I]
                    if real and 0 <= g < F:
                        row = x[t, g]
                        for c in range(I):
                            patch[c] = row[c]
                    else:
                        patch[:] = 0


@compiled
def _finish(y: Array, b: Array, valid: Array, first: int) -> None:
    """Add b to the frames `first` ... of y (N, F2, O); padded ones become 0."""
    N, F2, O = y.shape
    for n in range(N):
        for f in range(F2):
            for o in range(O):
                y[n, f, o] = y[n, f, o] + b[o] if valid[2 * (first + n)] else 0


@compiled
def _scatter(dpatches: Array, valid: Array, first: int, dx: Array) -> None:
    """Add dpatches (N, F2, 9 I) where they were read in dx (T, F, I)."""
    (T, F, I), (N, F2, _) = dx.shape, dpatches.shape
    for n in range(N):
        for f in range(F2):
            for i in range(3):
                for j in range(3):
                    t, g, place = 2 * (first + n) + i - 1, 2 * f + j - 1, (3 * i + j) * I
                    if 0 <= t < T and 0 <= g < F and valid[t]:
                        for c in range(I):
                            dx[t, g, c] += dpatches[n, f, place + c]


@compiled
def _hide(dy: Array, valid: Array) -> None:
    """Let the padded frames of dy (T2, F2, O) be 0."""
    for t in range(len(dy)):
        if not valid[2 * t]:
            dy[t] = 0


def frames_at_once(F2: int, I: int, T2: int) -> int:
    """Return how many frames of y have patches of about PATCHES elements."""
    return max(1, min(T2, PATCHES // (9 * I * F2)))


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
    if I == 1:  # products of nine columns would be five times slower
        launch(_convolve, x, valid, xp.ascontiguousarray(p.W[:, :, 0]), p.b, y)
    else:
        W, N = p.W.reshape(9 * I, O), frames_at_once(F2, I, T2)
        patches = xp.empty((N, F2, 9 * I), x.dtype)
        for row in range(B):
            for t in range(0, T2, N):
                some, place = patches[: min(N, T2 - t)], y[row, t : t + N]
                launch(_gather, x[row], valid[row], t, some)
                xp.matmul(some.reshape(-1, 9 * I), W, out=place.reshape(-1, O))
                launch(_finish, place, p.b, valid[row], t)
    return y, Conv2dCache(x if params else None, F, valid, p, below)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Conv2dParams | None]:
    """Return dx (B, T, F, I), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    x, F, valid, p, below = cache
    xp, (B, T), (*_, I, O) = array_module(dy), valid.shape, p.W.shape
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    must_have((B, T2, F2, O), dy)
    W, N, dy = p.W.reshape(9 * I, O), frames_at_once(F2, I, T2), dy.copy()
    patches = xp.empty((N, F2, 9 * I), dy.dtype)
    dx = xp.zeros((B, T, F, I), dy.dtype) if below else None
    dW, db = (None, None) if x is None else (xp.zeros(W.shape, W.dtype), xp.zeros(p.b.shape, W.dtype))
    for row in range(B):
        launch(_hide, dy[row], valid[row])
        for t in range(0, T2, N):
            some, dsome = patches[: min(N, T2 - t)], dy[row, t : t + N].reshape(-1, O)
            if x is not None:
                launch(_gather, x[row], valid[row], t, some)
                dW += some.reshape(-1, 9 * I).T @ dsome
                db += dsome.sum(0)
            if below:
                xp.matmul(dsome, W.T, out=some.reshape(-1, 9 * I))
                launch(_scatter, some, valid[row], t, dx[row])
    return dx, None if x is None else Conv2dParams(dW.reshape(p.W.shape), db)


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
    launch(_convolve, xp.ascontiguousarray(x), valid, xp.ascontiguousarray(p.W), p.b, y)
    return y, DepthwiseConv2dCache(x if params else None, F, valid, p, below)
