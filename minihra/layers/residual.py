"""The residual step: what a branch made of x is added to it. He et al. 2016, 1512.03385, section 3.1.

y = a x + w u           the weights (a, w) are (1, 1), or (1, 1/2) for half a step: Gulati et al. 2020, 2005.08100
"""

from typing import NamedTuple

from minihra.arrays import Array


class ResidualCache(NamedTuple):
    """What `residual_backward` reads."""

    weights: tuple[float, float]  # (a, w)


def residual_forward(x: Array, u: Array, *, weights: tuple[float, float]) -> tuple[Array, ResidualCache]:
    """Add the branch u (...) to x (...)."""
    a, w = weights
    return a * x + w * u, ResidualCache(weights)  # (1)


def residual_backward(dy: Array, cache: ResidualCache) -> tuple[Array, Array]:
    """Return dx (...), past the branch alone, and du (...) for dy (...)."""
    dx, du = (dy if weight == 1 else weight * dy for weight in cache.weights)  # (1)
    return dx, du
