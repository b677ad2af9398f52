"""Twins of minihra/layers/relative_attention.py and shaw_attention.py for the GPU.

What concerns positions stays as (B, T, A, ...): there the frames of all utterances are the rows of one product a head.
"""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.attention import (
    KERNELS,
    attend,
    attend_backward,
    merge_heads,
    split_heads,
    turned,
)
from minihra.kernels.cuda.launch import contiguous, per_warp
from minihra.kernels.cuda.products import product
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.attention import Reach
from minihra.layers.relative_attention import Projections, RelativeAttentionCache, RelativePositionParams
from minihra.layers.shaw_attention import ShawAttentionCache, ShawPositionParams


def per_head(x: Array) -> Array:
    """View x (B, T, A, X) as (A, B T, X)."""
    return x.reshape(-1, *x.shape[2:]).swapaxes(0, 1)


def project(positions: Array, p: RelativePositionParams) -> Array:
    """Return r (R, A, D) of the sinusoids (R, C): products of those for p = T-1, ..., 0 alone."""
    xp, (R, C), (A, D) = array_module(positions), positions.shape, p.u.shape
    T, r = (R + 1) // 2, xp.empty((R, A, D), positions.dtype)
    waves = positions[:T].reshape(T, C // 2, 2).swapaxes(1, 2).swapaxes(0, 1)  # (2, T, C/2)  sines, cosines
    halves = product(contiguous(waves), p.W.reshape(C // 2, 2, A * D).swapaxes(0, 1))
    KERNELS.run("fold_positions", per_warp(R), halves=halves, r=r, T=T, C=A * D)
    return r


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

    Nothing is `kept` here: a recorded step (capture.py) owns the memory of what it makes.
    """
    xp, (B, T, A, _) = array_module(q), q.shape
    r = project(positions, p).swapaxes(0, 1)  # (A, R, D)
    heads = split_heads(q, k, value, p.u, p.v)
    w = xp.empty((B, T, A, 2 * T - 1), q.dtype)
    product(per_head(heads.to_position), turned(r), per_head(w))
    y, weights = attend(heads, w, valid, reach)
    by_head = q.swapaxes(1, 2), heads.k_by_head, heads.value_by_head
    return y, RelativeAttentionCache(*by_head, r, weights, positions if params else None, p)


def relative_attention_backward(
    dy: Array, cache: RelativeAttentionCache
) -> tuple[Array, Array, Array, RelativePositionParams | None]:
    """Return dq, dk, dvalue (B, T, A, D) and dp for dy (B, T, A, D)."""
    q, k, value, r, weights, positions, p, _ = cache
    xp, params, (A, D) = array_module(dy), positions is not None, p.u.shape
    heads = split_heads(q.swapaxes(1, 2), dy, u=p.u, v=p.v if params else None)
    dvalue, ds, dw = attend_backward(heads.k_by_head, value, weights, shifted=True)
    dq_content, dq_position = product(ds, k), xp.empty(dy.shape, dy.dtype)
    product(per_head(dw), r, per_head(dq_position))
    dq, dk, dvalue = merge_heads(dq_content, product(turned(ds), heads.to_content), dvalue, also=dq_position)
    if not params:
        return dq, dk, dvalue, None
    dr = xp.empty((len(positions), A, D), dy.dtype)
    product(turned(per_head(dw)), per_head(heads.to_position), dr.swapaxes(0, 1))
    dW = product(positions.T, dr.reshape(-1, A * D))
    du, dv = (column_sums(x.reshape(-1, A * D)).reshape(A, D) for x in (merge_heads(dq_content)[0], dq_position))
    return dq, dk, dvalue, RelativePositionParams(dW, du, dv)


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
    xp, (B, T, A, D), P = array_module(q), q.shape, len(p.E)
    rows = xp.clip(xp.arange(1 - T, T), -left, P - 1 - left) + left
    r = p.E[rows]  # (R, D)
    w = product(q.reshape(-1, D), r.T).reshape(B, T, A, 2 * T - 1)
    heads = split_heads(q, k, value)
    y, weights = attend(heads, w, valid, reach)
    by_head = q.swapaxes(1, 2), heads.k_by_head, heads.value_by_head
    return y, ShawAttentionCache(*by_head, r, weights, rows if params else None, p)


def shaw_attention_backward(
    dy: Array, cache: ShawAttentionCache
) -> tuple[Array, Array, Array, ShawPositionParams | None]:
    """Return dq, dk, dvalue (B, T, A, D) and dp for dy (B, T, A, D)."""
    q, k, value, r, weights, rows, p = cache
    xp, q, (R, D) = array_module(dy), q.swapaxes(1, 2), r.shape
    heads = split_heads(q, dy)
    dvalue, ds, dw = attend_backward(heads.k_by_head, value, weights, shifted=True)
    dw = dw.reshape(-1, R)
    dq_position = product(dw, r).reshape(dy.shape)
    dk = product(turned(ds), heads.to_content)
    dq, dk, dvalue = merge_heads(product(ds, k), dk, dvalue, also=dq_position)
    if rows is None:
        return dq, dk, dvalue, None
    dr = product(dw.T, q.reshape(-1, D))
    takes = (xp.arange(len(p.E))[:, None] == rows[None, :]).astype(dr.dtype)  # (P, R)  as in the reference
    return dq, dk, dvalue, ShawPositionParams(product(takes, dr))
