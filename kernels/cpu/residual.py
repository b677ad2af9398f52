"""Twins of the residual step's forward and of dropout: one pass each."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ZERO, compiled, launch, must_have
from minihra.layers.dropout import DropoutCache
from minihra.layers.residual import ResidualCache


@compiled
def _residual(x: Array, u: Array, a: float, w: float, y: Array) -> None:
    for i in range(x.size):
        y[i] = a * x[i] + w * u[i]


def residual_forward(x: Array, u: Array, *, weights: tuple[float, float]) -> tuple[Array, ResidualCache]:
    """Add the branch u (...) to x (...)."""
    xp, number = array_module(x), x.dtype.type
    must_have(x.shape, u)
    y = xp.empty(x.shape, x.dtype)
    launch(_residual, x.reshape(-1), u.reshape(-1), number(weights[0]), number(weights[1]), y.reshape(-1))
    return y, ResidualCache(weights)


@compiled
def _keep(x: Array, keep: Array, scale: float, y: Array) -> None:
    for i in range(x.size):
        y[i] = x[i] * (scale if keep[i] else ZERO)


def kept(x: Array, keep: Array, rate: float) -> Array:
    """Return x (...) scaled up where `keep` (...), and 0 elsewhere."""
    must_have(x.shape, keep)
    y = array_module(x).empty(x.shape, x.dtype)
    launch(_keep, x.reshape(-1), keep.reshape(-1), x.dtype.type(1 / (1 - rate)), y.reshape(-1))
    return y


def dropout_forward(x: Array, keep: Array, *, rate: float) -> tuple[Array, DropoutCache]:
    """Drop the elements of x (...) where `keep` (...) is False and scale up the others."""
    return kept(x, keep, rate), DropoutCache(keep, rate)


def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """Return dx (...) for dy (...)."""
    return kept(dy, *cache)
