"""Twins of minihra/layers/activations.py for the GPU: each a single pass."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_element, per_pack, per_warp
from minihra.layers.activations import GELUCache, GLUCache, ReluCache, SigmoidCache, SwishCache

KERNELS = Source("activations.cu")


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """Map x (...) to s(x) (...)."""
    x = contiguous(x)
    y = array_module(x).empty_like(x)
    KERNELS.run("sigmoid_forward", per_element(x.size), x=x, y=y, N=x.size)
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """Return dx (...) for dy (...)."""
    dy = contiguous(dy)
    dx = array_module(dy).empty_like(dy)
    KERNELS.run("sigmoid_backward", per_element(dy.size), dy=dy, y=cache.y, dx=dx, N=dy.size)
    return dx


def swish_forward(x: Array) -> tuple[Array, SwishCache]:
    """Map x (...) to x s(x) (...)."""
    xp, x = array_module(x), contiguous(x)
    y, slope = xp.empty_like(x), xp.empty_like(x)
    KERNELS.run("swish_forward", per_pack(x.size), x=x, y=y, slope=slope, N=x.size)
    return y, SwishCache(slope)


def swish_backward(dy: Array, cache: SwishCache) -> Array:
    """Return dx (...) for dy (...)."""
    dy = contiguous(dy)
    dx = array_module(dy).empty_like(dy)
    KERNELS.run("swish_backward", per_pack(dy.size), dy=dy, slope=cache.slope, dx=dx, N=dy.size)
    return dx


def glu_forward(x: Array) -> tuple[Array, GLUCache]:
    """Map x (..., 2C) to y (..., C)."""
    xp, x, C = array_module(x), contiguous(x), x.shape[-1] // 2
    y, s, slope = (xp.empty((*x.shape[:-1], C), x.dtype) for _ in range(3))
    N = y.size // C
    KERNELS.run("glu_forward", per_warp(N), x=x, y=y, s=s, slope=slope, N=N, C=C)
    return y, GLUCache(s, slope)


def glu_backward(dy: Array, cache: GLUCache) -> Array:
    """Return dx (..., 2C) for dy (..., C)."""
    dy, C = contiguous(dy), dy.shape[-1]
    N, dx = dy.size // C, array_module(dy).empty((*dy.shape[:-1], 2 * C), dy.dtype)
    KERNELS.run("glu_backward", per_warp(N), dy=dy, s=cache.s, slope=cache.slope, dx=dx, N=N, C=C)
    return dx


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Map x (...) to max(x, 0) (...)."""
    xp, x = array_module(x), contiguous(x)
    y, positive = xp.empty_like(x), xp.empty(x.shape, bool)
    KERNELS.run("relu_forward", per_element(x.size), x=x, y=y, positive=positive, N=x.size)
    return y, ReluCache(positive)


def relu_backward(dy: Array, cache: ReluCache) -> Array:
    """Return dx (...) for dy (...); the derivative at 0 is taken as 0."""
    dy, positive = contiguous(dy), contiguous(cache.positive)
    dx = array_module(dy).empty_like(dy)
    KERNELS.run("relu_backward", per_element(dy.size), dy=dy, positive=positive, dx=dx, N=dy.size)
    return dx


def gelu_forward(x: Array) -> tuple[Array, GELUCache]:
    """Map x (...) to x Phi(x) (...)."""
    xp, x = array_module(x), contiguous(x)
    y, phi = xp.empty_like(x), xp.empty_like(x)
    KERNELS.run("gelu_forward", per_element(x.size), x=x, y=y, phi=phi, N=x.size)
    return y, GELUCache(x, phi)


def gelu_backward(dy: Array, cache: GELUCache) -> Array:
    """Return dx (...) for dy (...)."""
    x, phi = cache
    dy, x = contiguous(dy), contiguous(x)
    dx = array_module(dy).empty_like(dy)
    KERNELS.run("gelu_backward", per_element(dy.size), dy=dy, x=x, phi=phi, dx=dx, N=dy.size)
    return dx
