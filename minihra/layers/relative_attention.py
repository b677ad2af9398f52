"""Multi-head attention with the relative positions of Transformer-XL. Dai et al. 2019, 1901.02860, section 3.3.

    s_ij = ((q_i + u) . k_j + (q_i + v) . r_{i-j}) / sqrt(D)     q, k, value (B, T, A, D); u, v (A, D)
    y_i  = sum_j softmax_j(s_ij) value_j                         over the valid frames j that i can reach
    r_p  = (row of the sinusoid table for position p) W          p = T-1, ..., -(T-1), so R = 2T-1 rows

(q_i + u) . k_j holds the paper's terms (a) and (c), by content; (q_i + v) . r_{i-j} its terms (b) and (d), by position.

The relative shift. The product of q_i + v with all R rows of r gives w (T, R), whose column c belongs to position
p = T-1-c. The score of the pair (i, j) therefore stands in row i, column T-1-i+j, that is at

    i R + T-1-i+j  =  (T-1) + i (R-1) + j

in memory: from offset T-1 on, w read with rows of length R-1 IS the shifted matrix. Nothing is copied, and the backward
writes through the same view. (For i, j < T the address is at most 2T(T-1), which lies inside the T R elements.)
"""

import math
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from minihra.arrays import Array, array_module, as_strided
from minihra.layers.attention import Reach, attention_mask
from minihra.layers.softmax import MaskedSoftmaxCache, masked_softmax_backward, masked_softmax_forward


class RelativePositionParams(NamedTuple):
    """Parameters of the relative positions."""

    W: Array  # (C, A D)  projects the sinusoids
    u: Array  # (A, D)  bias of the queries towards content
    v: Array  # (A, D)  bias of the queries towards positions


class RelativeAttentionCache(NamedTuple):
    """What `relative_attention_backward` reads."""

    q: Array  # (B, A, T, D)
    k: Array  # (B, A, T, D)
    value: Array  # (B, A, T, D)
    r: Array  # (A, R, D)
    weights: MaskedSoftmaxCache  # y (B, A, T, T)
    positions: Array | None  # (R, C)  None when the parameters are frozen
    p: RelativePositionParams
    kept: "Projections | None" = None  # where a twin has r in another form, too


class Projections:
    """Projected positions of layers whose weights nobody moves, which twins keep from one batch to the next.

    A layer has those of its longest utterance so far, in which the positions of a shorter one are the middle.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str], tuple[int, Array, Array]] = {}

    def of(self, W: Array, form: str, T: int, make: Callable[[], Array]) -> Array:
        """Return the positions of T frames or more that W projects, in this form: what `make` returns, or has once."""
        longest, r, _ = self._kept.get((id(W), form), (0, None, W))
        if longest < T:
            r = make()
            self._kept[id(W), form] = T, r, W  # while it is kept no other array has its id
        return r


def relative_positions(
    T: int,
    C: int,
    dtype: np.dtype,
    xp: ModuleType = np,
    *,
    precision: DTypeLike = np.float64,
    exponential: bool = False,
) -> Array:
    """Return the table (2T-1, C) of sinusoids for positions T-1, ..., -(T-1): sine in even columns, cosine in odd ones.

    Column pair i turns at 10000^(-2i/C) radians a frame (Vaswani et al. 2017, 1706.03762, section 3.5). C is even.
    `precision` is the type to which frequencies, angles and sines are rounded: a model that was trained with tables
    made in float32 expects their roundings, which grow with the position. So does the difference between two ways to
    one frequency, 1 / 10000^(2i/C) and, if `exponential`, exp(-2i log(10000)/C): to 1e-4 at 1500 frames.
    """
    position = np.arange(T - 1, -T, -1.0).astype(precision)[:, None]
    if exponential:
        exponent = np.arange(0, C, 2, dtype=precision) * -(math.log(10000.0) / C)
        frequency = np.exp(exponent.astype(np.float64)).astype(precision)
    else:
        share = (np.arange(0, C, 2, dtype=precision) / C).astype(np.float64)
        frequency = 1 / (10000.0**share).astype(precision)
    # Powers and sines of float64, rounded, are nearest to what any program has; those of float32 depend on the machine.
    angle = (position * frequency).astype(np.float64)
    table = np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(2 * T - 1, C)
    return xp.asarray(table.astype(precision).astype(dtype))


def relative_shift(w: Array) -> Array:
    """View w (B, A, T, R) as the shifted scores (B, A, T, T): see the top of this file. `w` must be contiguous."""
    B, A, T, R = w.shape
    b, a, _, one = w.strides
    return as_strided(w[..., T - 1 :], (B, A, T, T), (b, a, (R - 1) * one, one))


def relative_attention_forward(
    q: Array,
    k: Array,
    value: Array,
    positions: Array,
    valid: Array,
    p: RelativePositionParams,
    *,
    reach: Reach = None,
    params: bool = True,
    kept: Projections | None = None,
) -> tuple[Array, RelativeAttentionCache]:
    """Attend: q, k, value (B, T, A, D), positions (2T-1, C), valid (B, T) -> y (B, T, A, D), 0 on padded frames.

    Nothing is `kept` here: how BLAS rounds a row may depend on how many there are.
    """
    xp, T, (A, D) = array_module(q), q.shape[1], p.u.shape
    q, k, value = (x.swapaxes(1, 2) for x in (q, k, value))  # (B, A, T, D)
    sine, cosine = positions[:T, 0::2] @ p.W[0::2], positions[:T, 1::2] @ p.W[1::2]  # (1)  of p = T-1, ..., 0
    # r_p = sine_p + cosine_p, and as sine is odd and cosine even, r_{-p} = cosine_p - sine_p: half the products.
    r = xp.concatenate([sine + cosine, (cosine - sine)[-2::-1]]).reshape(-1, A, D).swapaxes(0, 1)  # (A, R, D)
    content = (q + p.u[:, None]) @ k.swapaxes(2, 3)  # (2)  (B, A, T, T)
    w = (q + p.v[:, None]) @ r.swapaxes(1, 2)  # (3)  (B, A, T, R)
    s = (content + relative_shift(w)) / math.sqrt(D)  # (4)
    weights, softmax_cache = masked_softmax_forward(s, attention_mask(valid, reach))  # (5)
    y = (weights @ value).swapaxes(1, 2)  # (6)
    return y, RelativeAttentionCache(q, k, value, r, softmax_cache, positions if params else None, p)


def relative_attention_backward(
    dy: Array, cache: RelativeAttentionCache
) -> tuple[Array, Array, Array, RelativePositionParams | None]:
    """Return dq, dk, dvalue (B, T, A, D) and dp for dy (B, T, A, D). The positions are constants."""
    q, k, value, r, softmax_cache, positions, p, _ = cache
    xp = array_module(dy)
    dy = dy.swapaxes(1, 2)
    dvalue = softmax_cache.y.swapaxes(2, 3) @ dy  # (6)
    ds = masked_softmax_backward(dy @ value.swapaxes(2, 3), softmax_cache) / math.sqrt(p.u.shape[1])  # (6) (5) (4)
    dw = xp.zeros((*ds.shape[:3], r.shape[1]), ds.dtype)
    relative_shift(dw)[...] = ds  # (4)
    dq_content, dq_position = ds @ k, dw @ r  # (2) (3)
    dk = ds.swapaxes(2, 3) @ (q + p.u[:, None])  # (2)
    dq, dk, dvalue = ((x.swapaxes(1, 2)) for x in (dq_content + dq_position, dk, dvalue))
    if positions is None:
        return dq, dk, dvalue, None
    dr = (dw.swapaxes(2, 3) @ (q + p.v[:, None])).sum(0)  # (3)  (A, R, D)
    dW = positions.T @ dr.swapaxes(0, 1).reshape(len(positions), -1)  # (1)
    return dq, dk, dvalue, RelativePositionParams(dW, dq_content.sum((0, 2)), dq_position.sum((0, 2)))  # (2) (3)
