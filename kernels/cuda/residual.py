"""Twins of the residual step's forward and of dropout for the GPU: each a single pass."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_element, per_pack
from minihra.layers.dropout import DropoutCache
from minihra.layers.residual import ResidualCache

KERNELS = Source("residual.cu")


def residual_forward(x: Array, u: Array, *, weights: tuple[float, float]) -> tuple[Array, ResidualCache]:
    """Add the branch u (...) to x (...)."""
    x, u, (a, w) = contiguous(x), contiguous(u), weights
    y = array_module(x).empty_like(x)
    KERNELS.run("residual_forward", per_pack(x.size), x=x, u=u, y=y, N=x.size, a=a, w=w)
    return y, ResidualCache(weights)


def dropped(x: Array, keep: Array, rate: float) -> Array:
    """Return x (...) without the elements where `keep` (...) is False, and the others scaled up."""
    x, keep = contiguous(x), contiguous(keep)
    y = array_module(x).empty_like(x)
    KERNELS.run("dropout", per_element(x.size), x=x, keep=keep, y=y, N=x.size, scale=1 / (1 - rate))
    return y


def dropout_forward(x: Array, keep: Array, *, rate: float) -> tuple[Array, DropoutCache]:
    """Drop the elements of x (...) where `keep` (...) is False and scale up the others."""
    return dropped(x, keep, rate), DropoutCache(keep, rate)


def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """Return dx (...) for dy (...)."""
    return dropped(dy, cache.keep, cache.rate)
