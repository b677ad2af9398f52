"""Softmax over the last axis, restricted to the entries that a mask allows.

    y_j = m_j exp(s_j) / sum_i m_i exp(s_i)           m = mask as 0 or 1; a row without a True gives zeros

Derivative: ds_j = y_j (dy_j - sum_i dy_i y_i).
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module


class MaskedSoftmaxCache(NamedTuple):
    """What `masked_softmax_backward` reads."""

    y: Array  # (..., T)


def masked_softmax_forward(s: Array, mask: Array) -> tuple[Array, MaskedSoftmaxCache]:
    """Map scores s (..., T) to weights y (..., T); `mask` is bool and broadcasts to s."""
    xp = array_module(s)
    lowest = float(xp.finfo(s.dtype).min)  # finite: the maximum of a row without a True must not become -inf - -inf
    s = xp.where(mask, s, lowest)
    e = xp.exp(s - s.max(-1, keepdims=True)) * mask  # (1)
    total = e.sum(-1, keepdims=True)  # (2)
    y = e / xp.where(total > 0, total, 1)  # (3)
    return y, MaskedSoftmaxCache(y)


def masked_softmax_backward(dy: Array, cache: MaskedSoftmaxCache) -> Array:
    """Return ds (..., T) for dy (..., T)."""
    y = cache.y
    return y * (dy - (dy * y).sum(-1, keepdims=True))  # (3) (2) (1)
