"""Twin of the depthwise convolution: no padded copy is made where no kernel trains."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, copy_row, launch, must_have
from minihra.layers.conv import DepthwiseConvCache, DepthwiseConvParams


@compiled
def _convolve(x: Array, valid: Array, W: Array, b: Array, left: int, y: Array) -> None:
    """Let y_t = b + sum_k W_k x_{t+k-left} on valid frames, over valid frames alone, and 0 elsewhere."""
    B, T, C = x.shape
    for row in range(B):
        for t in range(T):
            if not valid[row, t]:
                y[row, t] = 0
                continue
            copy_row(b, y[row, t])
            for k in range(len(W)):
                s = t + k - left
                if 0 <= s < T and valid[row, s]:
                    for c in range(C):
                        y[row, t, c] += W[k, c] * x[row, s, c]


def depthwise_conv_forward(
    x: Array, valid: Array, p: DepthwiseConvParams, *, causal: bool = False, params: bool = True
) -> tuple[Array, DepthwiseConvCache]:
    """Convolve each channel of x (B, T, C) over time; y (B, T, C) is 0 on padded frames."""
    xp = array_module(x)
    (B, T, C), K = x.shape, len(p.W)
    left = K - 1 if causal else (K - 1) // 2
    must_have((B, T), valid)
    must_have((K, C), p.W)
    y, padded = xp.empty((B, T, C), x.dtype), None
    b = xp.zeros((C,), x.dtype) if p.b is None else p.b
    must_have((C,), b)
    launch(_convolve, xp.ascontiguousarray(x), valid, xp.ascontiguousarray(p.W), b, left, y)
    if params:
        padded = xp.zeros((B, T + K - 1, C), x.dtype)
        padded[:, left : left + T] = xp.where(valid[:, :, None], x, 0)
    return y, DepthwiseConvCache(padded, valid, left, p)


@compiled
def _kernel_gradient(padded: Array, valid: Array, dy: Array, dW: Array, db: Array) -> None:
    B, T, C = dy.shape
    for row in range(B):
        for t in range(T):
            if valid[row, t]:
                for c in range(C):
                    db[c] += dy[row, t, c]
                for k in range(len(dW)):
                    for c in range(C):
                        dW[k, c] += padded[row, t + k, c] * dy[row, t, c]


def depthwise_conv_backward(dy: Array, cache: DepthwiseConvCache) -> tuple[Array, DepthwiseConvParams | None]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C): dx is dy convolved with the turned kernel."""
    xp = array_module(dy)
    padded, valid, left, p = cache
    C, K = dy.shape[2], len(p.W)
    dx = xp.empty(dy.shape, dy.dtype)
    dy = xp.ascontiguousarray(dy)
    launch(_convolve, dy, valid, xp.ascontiguousarray(p.W[::-1]), xp.zeros((C,), dy.dtype), K - 1 - left, dx)
    if padded is None:
        return dx, None
    dW, db = xp.zeros((K, C), dy.dtype), xp.zeros((C,), dy.dtype)
    launch(_kernel_gradient, padded, valid, dy, dW, db)
    return dx, DepthwiseConvParams(dW, None if p.b is None else db)
