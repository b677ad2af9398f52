"""Dropout. Srivastava et al. 2014; the mask is drawn by the caller, so that the pair is a function.

y = x * keep / (1 - rate)           keep: bool, True with probability 1 - rate
"""

from typing import NamedTuple

import numpy as np

from minihra.arrays import Array, array_module


def draw_keep(like: Array, rng: np.random.Generator, shape: tuple[int, ...], *, rate: float) -> Array:
    """Draw a mask of this shape, True with probability 1 - rate, where `like` is: the same one wherever that may be."""
    return array_module(like).asarray(rng.random(shape, np.float32) >= rate)


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
