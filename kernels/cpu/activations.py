"""Twins of `minihra.layers.activations`: each a single pass."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ONE, ZERO, compiled, launch, must_have, sigmoid
from minihra.layers.activations import GLUCache, ReluCache, SwishCache


@compiled
def _relu(x: Array, y: Array, positive: Array) -> None:
    for i in range(x.size):
        positive[i] = x[i] > 0
        y[i] = x[i] if x[i] > 0 or x[i] != x[i] else ZERO  # NaN stays


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Map x (...) to max(x, 0) (...)."""
    xp = array_module(x)
    y, positive = xp.empty(x.shape, x.dtype), xp.empty(x.shape, bool)
    launch(_relu, x.reshape(-1), y.reshape(-1), positive.reshape(-1))
    return y, ReluCache(positive)


@compiled
def _relu_backward(dy: Array, positive: Array, dx: Array) -> None:
    for i in range(dy.size):
        dx[i] = dy[i] * (ONE if positive[i] else ZERO)


def relu_backward(dy: Array, cache: ReluCache) -> Array:
    """Return dx (...) for dy (...)."""
    must_have(dy.shape, cache.positive)
    dx = array_module(dy).empty(dy.shape, dy.dtype)
    launch(_relu_backward, dy.reshape(-1), cache.positive.reshape(-1), dx.reshape(-1))
    return dx


@compiled
def _swish(x: Array, y: Array, slope: Array) -> None:
    for i in range(x.size):
        s = sigmoid(x[i])
        y[i] = x[i] * s
        slope[i] = s + x[i] * s * (ONE - s)


def swish_forward(x: Array) -> tuple[Array, SwishCache]:
    """Map x (...) to x s(x) (...)."""
    xp = array_module(x)
    y, slope = xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    launch(_swish, x.reshape(-1), y.reshape(-1), slope.reshape(-1))
    return y, SwishCache(slope)


def swish_backward(dy: Array, cache: SwishCache) -> Array:
    """Return dx (...) for dy (...)."""
    return dy * cache.slope


@compiled
def _glu(x: Array, y: Array, s: Array, slope: Array) -> None:
    C = y.shape[1]
    for n in range(len(y)):
        for c in range(C):
            gate = sigmoid(x[n, C + c])
            out = x[n, c] * gate
            s[n, c] = gate
            y[n, c] = out
            slope[n, c] = out * (ONE - gate)


def glu_forward(x: Array) -> tuple[Array, GLUCache]:
    """Map x (..., 2C) to y (..., C)."""
    xp = array_module(x)
    C = x.shape[-1] // 2
    y, s, slope = (xp.empty((*x.shape[:-1], C), x.dtype) for _ in range(3))
    launch(_glu, x.reshape(-1, 2 * C), y.reshape(-1, C), s.reshape(-1, C), slope.reshape(-1, C))
    return y, GLUCache(s, slope)


@compiled
def _glu_backward(dy: Array, s: Array, slope: Array, dx: Array) -> None:
    C = dy.shape[1]
    for n in range(len(dy)):
        for c in range(C):
            dx[n, c] = dy[n, c] * s[n, c]
            dx[n, C + c] = dy[n, c] * slope[n, c]


def glu_backward(dy: Array, cache: GLUCache) -> Array:
    """Return dx (..., 2C) for dy (..., C)."""
    xp = array_module(dy)
    C = dy.shape[-1]
    dx = xp.empty((*dy.shape[:-1], 2 * C), dy.dtype)
    launch(_glu_backward, dy.reshape(-1, C), cache.s.reshape(-1, C), cache.slope.reshape(-1, C), dx.reshape(-1, 2 * C))
    return dx
