"""Multi-head attention with learned relative keys. Shaw et al. 2018, 1803.02155, equations 4 and 5, with keys alone.

    s_ij = (q_i . k_j + q_i . E[clip(j-i, -left, P-1-left) + left]) / sqrt(D)     q, k, value (B, T, A, D); E (P, D)
    y_i  = sum_j softmax_j(s_ij) value_j                         over the valid frames j that i can reach

Row m of E belongs to the distance j - i = m - left; beyond the ends of E the distance does not matter any more. All
heads share E, and values have no such table: this is the form "relative_key" of Wav2Vec2-BERT.

The product of q with the R = 2T-1 rows of E for the positions i - j = T-1, ..., -(T-1) is shifted as in
relative_attention.py.
"""

import math
from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.layers.attention import Reach, attention_mask
from minihra.layers.relative_attention import relative_shift
from minihra.layers.softmax import MaskedSoftmaxCache, masked_softmax_backward, masked_softmax_forward


class ShawPositionParams(NamedTuple):
    """Parameters of the relative keys."""

    E: Array  # (P, D)  a key for each distance j - i from -left to P-1-left


class ShawAttentionCache(NamedTuple):
    """What `shaw_attention_backward` reads."""

    q: Array  # (B, A, T, D)
    k: Array  # (B, A, T, D)
    value: Array  # (B, A, T, D)
    r: Array  # (R, D)
    weights: MaskedSoftmaxCache  # y (B, A, T, T)
    rows: Array | None  # (R,)  the row of E for each position; None when the parameters are frozen
    p: ShawPositionParams


def shaw_attention_forward(
    q: Array,
    k: Array,
    value: Array,
    valid: Array,
    p: ShawPositionParams,
    *,
    left: int,
    reach: Reach = None,
    params: bool = True,
) -> tuple[Array, ShawAttentionCache]:
    """Attend: q, k, value (B, T, A, D), valid (B, T) -> y (B, T, A, D), 0 on padded frames."""
    xp, T, P = array_module(q), q.shape[1], len(p.E)
    q, k, value = (x.swapaxes(1, 2) for x in (q, k, value))  # (B, A, T, D)
    rows = xp.clip(xp.arange(1 - T, T), -left, P - 1 - left) + left
    r = p.E[rows]  # (1)  (R, D)
    w = q @ r.T  # (2)  (B, A, T, R)
    s = (q @ k.swapaxes(2, 3) + relative_shift(w)) / math.sqrt(q.shape[3])  # (3)  (B, A, T, T)
    weights, softmax_cache = masked_softmax_forward(s, attention_mask(valid, reach))  # (4)
    y = (weights @ value).swapaxes(1, 2)  # (5)
    return y, ShawAttentionCache(q, k, value, r, softmax_cache, rows if params else None, p)


def shaw_attention_backward(
    dy: Array, cache: ShawAttentionCache
) -> tuple[Array, Array, Array, ShawPositionParams | None]:
    """Return dq, dk, dvalue (B, T, A, D) and dp for dy (B, T, A, D)."""
    q, k, value, r, softmax_cache, rows, p = cache
    xp, (R, D) = array_module(dy), r.shape
    dy = dy.swapaxes(1, 2)
    dvalue = softmax_cache.y.swapaxes(2, 3) @ dy  # (5)
    ds = masked_softmax_backward(dy @ value.swapaxes(2, 3), softmax_cache) / math.sqrt(D)  # (5) (4) (3)
    dw = xp.zeros((*ds.shape[:3], R), ds.dtype)
    relative_shift(dw)[...] = ds  # (3)
    dq = ds @ k + dw @ r  # (3) (2)
    dk = ds.swapaxes(2, 3) @ q  # (3)
    dq, dk, dvalue = (x.swapaxes(1, 2) for x in (dq, dk, dvalue))
    if rows is None:
        return dq, dk, dvalue, None
    dr = dw.reshape(-1, R).T @ q.reshape(-1, D)  # (2)
    # Several positions share a row of E. A product with a matrix of 0 and 1 adds them in the same order every time.
    takes = (xp.arange(len(p.E))[:, None] == rows[None, :]).astype(dr.dtype)  # (P, R)
    return dq, dk, dvalue, ShawPositionParams(takes @ dr)  # (1)
