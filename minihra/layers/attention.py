"""Multi-head attention by content alone. Vaswani et al. 2017, 1706.03762, section 3.2.

    s_ij = q_i . k_j / sqrt(D)                                   q, k, value (B, T, A, D)
    y_i  = sum_j softmax_j(s_ij) value_j                         over the valid frames j that i can reach

It has no parameters. relative_attention.py and shaw_attention.py add to the scores what depends on the distance of i
and j; rotary.py turns q and k beforehand instead.
"""

import math
from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.layers.softmax import MaskedSoftmaxCache, masked_softmax_backward, masked_softmax_forward

Reach = tuple[int | None, int | None] | None
"""How many frames attention sees to the left and to the right; None = all."""


class AttentionCache(NamedTuple):
    """What `attention_backward` reads."""

    q: Array  # (B, A, T, D)
    k: Array  # (B, A, T, D)
    value: Array  # (B, A, T, D)
    weights: MaskedSoftmaxCache  # y (B, A, T, T)


def attention_mask(valid: Array, reach: Reach) -> Array:
    """Return the mask (B, 1, T, T): query i and key j are both valid, and i - left <= j <= i + right."""
    xp, T = array_module(valid), valid.shape[1]
    mask = valid[:, None, :, None] & valid[:, None, None, :]
    left, right = reach or (None, None)
    distance = xp.arange(T)[None, :] - xp.arange(T)[:, None]  # j - i
    if left is not None:
        mask = mask & (distance >= -left)
    if right is not None:
        mask = mask & (distance <= right)
    return mask


def attention_forward(
    q: Array, k: Array, value: Array, valid: Array, *, reach: Reach = None
) -> tuple[Array, AttentionCache]:
    """Attend: q, k, value (B, T, A, D), valid (B, T) -> y (B, T, A, D), 0 on padded frames."""
    q, k, value = (x.swapaxes(1, 2) for x in (q, k, value))  # (B, A, T, D)
    s = (q @ k.swapaxes(2, 3)) / math.sqrt(q.shape[3])  # (1)  (B, A, T, T)
    weights, softmax_cache = masked_softmax_forward(s, attention_mask(valid, reach))  # (2)
    y = (weights @ value).swapaxes(1, 2)  # (3)
    return y, AttentionCache(q, k, value, softmax_cache)


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Return dq, dk, dvalue (B, T, A, D) for dy (B, T, A, D)."""
    q, k, value, softmax_cache = cache
    dy = dy.swapaxes(1, 2)
    dvalue = softmax_cache.y.swapaxes(2, 3) @ dy  # (3)
    ds = masked_softmax_backward(dy @ value.swapaxes(2, 3), softmax_cache) / math.sqrt(q.shape[3])  # (3) (2) (1)
    dq, dk = ds @ k, ds.swapaxes(2, 3) @ q  # (1)
    return dq.swapaxes(1, 2), dk.swapaxes(1, 2), dvalue.swapaxes(1, 2)
