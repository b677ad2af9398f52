"""The self-attention module. Gulati et al. 2020, 2005.08100, section 2.1 and figure 3.

u = out(attention(query(a), key(a), value(a))),  a = norm(x)      with relative positions, see layers/attention.py
"""

from typing import NamedTuple

from minihra.arrays import Array
from minihra.layers.attention import Reach, RelativeAttentionCache, RelativePositionParams
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.norms import LayerNormCache, LayerNormParams
from minihra.ops import (
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
    relative_attention_backward,
    relative_attention_forward,
)


class SelfAttentionParams(NamedTuple):
    """Parameters of the self-attention module."""

    norm: LayerNormParams  # (C,)
    query: LinearParams  # (C, C)
    key: LinearParams  # (C, C)
    value: LinearParams  # (C, C)
    position: RelativePositionParams
    out: LinearParams  # (C, C)


class SelfAttentionCache(NamedTuple):
    """What `self_attention_backward` reads."""

    norm: LayerNormCache
    query: LinearCache
    key: LinearCache
    value: LinearCache
    attention: RelativeAttentionCache
    out: LinearCache


def self_attention_forward(
    x: Array, positions: Array, valid: Array, p: SelfAttentionParams, *, reach: Reach = None, params: bool = True
) -> tuple[Array, SelfAttentionCache]:
    """Map x (B, T, C) to the branch u (B, T, C); positions (2T-1, C) is the table of `relative_positions`."""
    heads = (*x.shape[:2], *p.position.u.shape)  # (B, T, A, D)
    a, norm = layer_norm_forward(x, p.norm, params=params)  # (1)
    q, query = linear_forward(a, p.query, params=params)  # (2)
    k, key = linear_forward(a, p.key, params=params)  # (3)
    v, value = linear_forward(a, p.value, params=params)  # (4)
    y, attention = relative_attention_forward(
        q.reshape(heads), k.reshape(heads), v.reshape(heads), positions, valid, p.position, reach=reach, params=params
    )  # (5)
    u, out = linear_forward(y.reshape(x.shape), p.out, params=params)  # (6)
    return u, SelfAttentionCache(norm, query, key, value, attention, out)


def self_attention_backward(du: Array, cache: SelfAttentionCache) -> tuple[Array, SelfAttentionParams | None]:
    """Return dx (B, T, C), through the branch alone, and dp for du (B, T, C)."""
    heads = (*du.shape[:2], *cache.attention.p.u.shape)
    dy, dout = linear_backward(du, cache.out)  # (6)
    dq, dk, dv, dposition = relative_attention_backward(dy.reshape(heads), cache.attention)  # (5)
    da_v, dvalue = linear_backward(dv.reshape(du.shape), cache.value)  # (4)
    da_k, dkey = linear_backward(dk.reshape(du.shape), cache.key)  # (3)
    da_q, dquery = linear_backward(dq.reshape(du.shape), cache.query)  # (2)
    dx, dnorm = layer_norm_backward(da_q + da_k + da_v, cache.norm)  # (1)
    return dx, None if dnorm is None else SelfAttentionParams(dnorm, dquery, dkey, dvalue, dposition, dout)
