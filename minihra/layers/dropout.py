"""Dropout. Srivastava et al. 2014; the mask is drawn by the caller, so that the pair is a function.

y = x * keep / (1 - rate)           keep: bool, True with probability 1 - rate
"""

from typing import NamedTuple

from minihra.arrays import Array


class DropoutCache(NamedTuple):
    """What `dropout_backward` reads."""

    keep: Array  # (...)  bool
    rate: float


def dropout_forward(x: Array, keep: Array, *, rate: float) -> tuple[Array, DropoutCache]:
    """Drop the elements of x (...) where `keep` (...) is False and scale up the others."""
    return x * keep * (1 / (1 - rate)), DropoutCache(keep, rate)  # (1)


def dropout_backward(dy: Array, cache: DropoutCache) -> Array:
    """Return dx (...) for dy (...)."""
    keep, rate = cache
    return dy * keep * (1 / (1 - rate))  # (1)
