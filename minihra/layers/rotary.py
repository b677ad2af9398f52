"""Rotary positions. Su et al. 2021, 2104.09864, section 3.4, with the halves split as in GPT-NeoX and Llama.

Columns d and d + D/2 of a query or key are the two coordinates of a point, d = 0..D/2-1. At frame t the point is
turned by the angle t base^(-2d/D), so that the product q_i . k_j of attention knows of i and j only i - j:

    y = x * cos + rotate_half(x) * sin         rotate_half(x) = [-x_second, x_first], a quarter of a circle

cos and sin (T, D) hold the angles' values twice, once for each half. A turn keeps lengths, so the backward is the
turn back: the transpose of rotate_half is -rotate_half, and sin is the same in both halves.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from minihra.arrays import Array, array_module


class RotaryTable(NamedTuple):
    """Cosines and sines of the angles; constants."""

    cos: Array  # (T, D)
    sin: Array  # (T, D)


class RotaryCache(NamedTuple):
    """What `rotary_backward` reads."""

    table: RotaryTable


def rotary_table(
    T: int, D: int, dtype: np.dtype, xp: ModuleType = np, *, base: float = 10000.0, precision: DTypeLike = np.float64
) -> RotaryTable:
    """Return the table of T frames for heads of width D, which is even.

    `precision` is the type to which frequencies, angles and sines are rounded: a model that was trained with tables
    made in float32 expects their roundings, which grow with the position.
    """
    # Powers and sines of float64, rounded, are nearest to what any program has; those of float32 depend on the machine.
    share = (np.arange(0, D, 2, dtype=precision) / D).astype(np.float64)
    frequency = 1 / (base**share).astype(precision)
    angle = (np.arange(T, dtype=precision)[:, None] * np.concatenate([frequency, frequency])).astype(np.float64)
    return RotaryTable(*(xp.asarray(f(angle).astype(precision).astype(dtype)) for f in (np.cos, np.sin)))


def rotate_half(x: Array) -> Array:
    """Return [-x_second, x_first] of x (..., D)."""
    half = x.shape[-1] // 2
    return array_module(x).concatenate([-x[..., half:], x[..., :half]], axis=-1)


def rotary_forward(x: Array, table: RotaryTable) -> tuple[Array, RotaryCache]:
    """Turn the queries or keys x (B, T, A, D), each head in the same way."""
    cos, sin = table.cos[:, None], table.sin[:, None]  # (T, 1, D)
    y = x * cos + rotate_half(x) * sin  # (1)
    return y, RotaryCache(table)


def rotary_backward(dy: Array, cache: RotaryCache) -> Array:
    """Return dx (B, T, A, D) for dy (B, T, A, D)."""
    cos, sin = cache.table.cos[:, None], cache.table.sin[:, None]
    return dy * cos - rotate_half(dy) * sin  # (1)
