"""Twins of attention: what stands between the products is one pass over the scores, in place.

Mask, softmax and, for relative positions, the shift are one loop over a row: no mask is made, nothing is copied to be
shifted. Scores of positions are computed for some queries at a time, and only for the distances that those can see.
"""

import math

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import (
    LOWEST,
    ONE,
    ZERO,
    compiled,
    compiled_inside,
    copy_row,
    exp,
    largest,
    launch,
    must_have,
)
from minihra.layers.attention import AttentionCache, Reach
from minihra.layers.relative_attention import RelativeAttentionCache, RelativePositionParams
from minihra.layers.softmax import MaskedSoftmaxCache

BLOCKS = 4
"""Into how many parts queries are cut: a part of T/n of them sees T + T/n distances, instead of 2T."""


def limits(reach: Reach, T: int) -> tuple[int, int]:
    """Return how many frames attention sees to the left and to the right."""
    left, right = reach or (None, None)
    return T if left is None else left, T if right is None else right


@compiled_inside
def _softmax_row(row: Array, real: Array) -> None:
    """Normalise exp(row) over the places where `real` is 1 and not 0; the others become 0."""
    for j in range(len(row)):
        row[j] = row[j] if real[j] > 0 else LOWEST
    most, total = largest(row), ZERO
    for j in range(len(row)):
        e = exp(row[j] - most) * real[j]
        row[j] = e
        total += e
    scale = ONE / total if total > 0 else ONE
    for j in range(len(row)):
        row[j] *= scale


@compiled_inside
def _weights_of(row: Array, t: int, real: Array, left: int, right: int) -> None:
    """Turn the scores of frame t into weights: of the frames that it reaches, and 0 of all if it is padding."""
    start, stop = max(0, t - left), min(len(row), t + right + 1)
    if real[t] == 0:
        stop = start
    else:
        _softmax_row(row[start:stop], real[start:stop])
    for j in range(start):
        row[j] = ZERO
    for j in range(stop, len(row)):
        row[j] = ZERO


@compiled
def _softmax(s: Array, real: Array, left: int, right: int, scale: float) -> None:
    """Turn raw scores s (B, A, T, T) into weights, in place; `real` (B, T) is 1 on valid frames and 0 on others."""
    B, A, T, _ = s.shape
    for b in range(B):
        for a in range(A):
            for t in range(T):
                row = s[b, a, t]
                for j in range(T):
                    row[j] *= scale
                _weights_of(row, t, real[b], left, right)


@compiled
def _relative_softmax(
    s: Array, w: Array, first: int, nearest: int, real: Array, left: int, right: int, scale: float
) -> None:
    """The same of queries `first` ... of s, with w (B, A, Q, E) added: its column e is that of position nearest + e."""
    B, A, T, _ = s.shape
    for b in range(B):
        for a in range(A):
            for i in range(w.shape[2]):
                t = first + i
                row, e = s[b, a, t], T - 1 - t - nearest
                shifted = w[b, a, i, e : e + T]
                for j in range(T):
                    row[j] = (row[j] + shifted[j]) * scale
                _weights_of(row, t, real[b], left, right)


@compiled
def _softmax_backward(y: Array, dy: Array, scale: float) -> None:
    """Turn dy (B, A, T, T) of weights y into ds of the raw scores, in place."""
    B, A, T, _ = y.shape
    for b in range(B):
        for a in range(A):
            for i in range(T):
                along = ZERO
                for j in range(T):
                    along += y[b, a, i, j] * dy[b, a, i, j]
                for j in range(T):
                    dy[b, a, i, j] = y[b, a, i, j] * (dy[b, a, i, j] - along) * scale


@compiled
def _shift_back(ds: Array, first: int, nearest: int, dw: Array) -> None:
    """Let dw (B, A, Q, E) hold ds of queries `first` ... where w was added, and 0 elsewhere."""
    B, A, T, _ = ds.shape
    for b in range(B):
        for a in range(A):
            for i in range(dw.shape[2]):
                row, e = dw[b, a, i], T - 1 - first - i - nearest
                for j in range(e):
                    row[j] = ZERO
                copy_row(ds[b, a, first + i], row[e : e + T])
                for j in range(e + T, len(row)):
                    row[j] = ZERO


def blocks(T: int) -> list[tuple[int, int, int, int]]:
    """Return (first, last + 1) of the queries of each part, and of the positions r that they see."""
    size = -(-T // BLOCKS)
    return [(i, min(i + size, T), T - min(i + size, T), 2 * T - 1 - i) for i in range(0, T, size)]


def per_root(D: int, dtype: np.dtype) -> float:
    """Return 1 / sqrt(D) in the type of the scores."""
    return dtype.type(1 / math.sqrt(D))


def by_head(x: Array) -> Array:
    """View x (B, T, A, D) as (B, A, T, D)."""
    return x.swapaxes(1, 2)


def attention_forward(
    q: Array, k: Array, value: Array, valid: Array, *, reach: Reach = None
) -> tuple[Array, AttentionCache]:
    """Attend: q, k, value (B, T, A, D), valid (B, T) -> y (B, T, A, D), 0 on padded frames."""
    must_have(q.shape[:2], valid)
    q, k, value = by_head(q), by_head(k), by_head(value)
    s = q @ k.swapaxes(2, 3)
    launch(_softmax, s, valid.astype(s.dtype), *limits(reach, s.shape[2]), per_root(q.shape[3], q.dtype))
    return by_head(s @ value), AttentionCache(q, k, value, MaskedSoftmaxCache(s))


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Return dq, dk, dvalue (B, T, A, D) for dy (B, T, A, D)."""
    q, k, value, (weights,) = cache
    dvalue, ds = through_weights(by_head(dy), value, weights)
    return by_head(ds @ k), by_head(ds.swapaxes(2, 3) @ q), by_head(dvalue)


def through_weights(dy: Array, value: Array, weights: Array) -> tuple[Array, Array]:
    """Return dvalue (B, A, T, D) and ds (B, A, T, T) for dy (B, A, T, D)."""
    dvalue, ds = weights.swapaxes(2, 3) @ dy, dy @ value.swapaxes(2, 3)
    launch(_softmax_backward, weights, ds, per_root(value.shape[3], value.dtype))
    return dvalue, ds


def project(positions: Array, p: RelativePositionParams, T: int) -> Array:
    """Return r' (A, D, R) of the sinusoids; those of negative positions follow, as sine is odd and cosine even."""
    xp = array_module(positions)
    sine, cosine = (xp.ascontiguousarray(p.W.T[:, i::2]) @ positions[:T, i::2].T for i in (0, 1))
    return xp.concatenate([sine + cosine, (cosine - sine)[:, -2::-1]], axis=1).reshape(*p.u.shape, 2 * T - 1)


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
) -> tuple[Array, RelativeAttentionCache]:
    """Attend: q, k, value (B, T, A, D), positions (2T-1, C), valid (B, T) -> y (B, T, A, D), 0 on padded frames."""
    must_have(q.shape[:2], valid)
    T = q.shape[1]
    q, k, value, turned = by_head(q), by_head(k), by_head(value), project(positions, p, T)
    s, to_position = (q + p.u[:, None]) @ k.swapaxes(2, 3), q + p.v[:, None]
    real = valid.astype(s.dtype)
    for first, last, nearest, farthest in blocks(T):
        w = to_position[:, :, first:last] @ turned[:, :, nearest:farthest]
        launch(_relative_softmax, s, w, first, nearest, real, *limits(reach, T), per_root(q.shape[3], q.dtype))
    y = by_head(s @ value)
    r = turned.swapaxes(1, 2)
    return y, RelativeAttentionCache(q, k, value, r, MaskedSoftmaxCache(s), positions if params else None, p)


def relative_attention_backward(
    dy: Array, cache: RelativeAttentionCache
) -> tuple[Array, Array, Array, RelativePositionParams | None]:
    """Return dq, dk, dvalue (B, T, A, D) and dp for dy (B, T, A, D)."""
    xp = array_module(dy)
    q, k, value, r, (weights,), positions, p = cache
    (B, A, T, D), params = q.shape, positions is not None
    dvalue, ds = through_weights(by_head(dy), value, weights)
    dq, dq_position = ds @ k, xp.empty((B, A, T, D), ds.dtype)
    dr = xp.zeros(r.shape, r.dtype) if params else None
    for first, last, nearest, farthest in blocks(T):
        dw = xp.empty((B, A, last - first, farthest - nearest), ds.dtype)
        launch(_shift_back, ds, first, nearest, dw)
        dq_position[:, :, first:last] = dw @ r[:, nearest:farthest]
        if params:
            seen = (q[:, :, first:last] + p.v[:, None]).swapaxes(2, 3) @ dw
            dr[:, nearest:farthest] += seen.sum(0).swapaxes(1, 2)
    dk = ds.swapaxes(2, 3) @ (q + p.u[:, None])
    dp = None
    if params:
        dW = positions.T @ dr.swapaxes(0, 1).reshape(len(positions), -1)
        dp = RelativePositionParams(dW, dq.sum((0, 2)), dq_position.sum((0, 2)))
    dq += dq_position
    return by_head(dq), by_head(dk), by_head(dvalue), dp
