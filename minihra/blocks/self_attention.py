"""The self-attention module. Gulati et al. 2020, 2005.08100, section 2.1 and figure 3.

    u = out(attention(query(a), key(a), value(a))),  a = norm(x)

Where an utterance's frames stand, attention learns in one of these ways:

    none           not at all
    relative       sinusoids of distances, projected, with biases (layers/relative_attention.py)
    shaw           a learned vector for each distance (layers/shaw_attention.py)
    rotary         queries and keys are turned by their time (layers/rotary.py)
    rotary_input   what queries and keys are made from is turned; values are made from a as it is (Wav2Vec2-Conformer)
"""

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minihra.arrays import Array
from minihra.layers.attention import AttentionCache, Reach
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.norms import EPS, LayerNormCache, LayerNormParams
from minihra.layers.relative_attention import (
    Projections,
    RelativeAttentionCache,
    RelativePositionParams,
    relative_positions,
)
from minihra.layers.rotary import RotaryCache, RotaryTable, rotary_table
from minihra.layers.shaw_attention import ShawAttentionCache, ShawPositionParams
from minihra.ops import (
    attention_backward,
    attention_forward,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
    relative_attention_backward,
    relative_attention_forward,
    rotary_backward,
    rotary_forward,
    shaw_attention_backward,
    shaw_attention_forward,
)


class Attention(NamedTuple):
    """What a self-attention module's parameters do not tell."""

    heads: int  # A
    position: str = "relative"
    reach: Reach = None
    shaw_left: int = 64  # the longest distance to the left that has a vector of its own
    rotary_base: float = 10000.0
    precision: str = "float64"  # of the sinusoids before they are cast to the type of the frames
    exponential: bool = False  # how the sinusoids' frequencies are computed


class SelfAttentionParams(NamedTuple):
    """Parameters of the self-attention module."""

    norm: LayerNormParams  # (C,)
    query: LinearParams  # (C, C)
    key: LinearParams  # (C, C)
    value: LinearParams  # (C, C)
    position: RelativePositionParams | ShawPositionParams | None
    out: LinearParams  # (C, C)


class SelfAttentionCache(NamedTuple):
    """What `self_attention_backward` reads."""

    norm: LayerNormCache
    rotary_input: RotaryCache | None
    query: LinearCache
    key: LinearCache
    value: LinearCache
    rotary: tuple[RotaryCache, RotaryCache] | None  # of queries and keys
    attention: RelativeAttentionCache | ShawAttentionCache | AttentionCache
    out: LinearCache


Positions = Array | RotaryTable | None
"""What all layers share of the positions: a table (2T-1, C) of sinusoids, one (T, D) of rotations, or nothing."""


@lru_cache(maxsize=8)
def position_table(T: int, C: int, form: Attention, dtype: np.dtype, xp: ModuleType) -> Positions:
    """Return the table for T frames of width C, kept for the next batch of as many."""
    precision = np.dtype(form.precision)
    match form.position:
        case "relative":
            return relative_positions(T, C, dtype, xp, precision=precision, exponential=form.exponential)
        case "rotary" | "rotary_input":
            return rotary_table(T, C // form.heads, dtype, xp, base=form.rotary_base, precision=precision)
    return None


def self_attention_forward(
    x: Array,
    positions: Positions,
    valid: Array,
    p: SelfAttentionParams,
    *,
    form: Attention,
    eps: float = EPS,
    params: bool = True,
    kept: Projections | None = None,
) -> tuple[Array, SelfAttentionCache]:
    """Map x (B, T, C) to the branch u (B, T, C); positions is the table of `position_table`, `kept` what layers whose
    weights nobody moves have made of it.
    """
    heads = (*x.shape[:2], form.heads, x.shape[2] // form.heads)  # (B, T, A, D)
    a, norm = layer_norm_forward(x, p.norm, eps=eps, params=params)  # (1)
    turned, rotary_input, rotary = a, None, None
    if form.position == "rotary_input":
        turned, rotary_input = rotary_forward(a.reshape(heads), positions)  # (2)
        turned = turned.reshape(x.shape)
    q, query = linear_forward(turned, p.query, params=params)  # (3)
    k, key = linear_forward(turned, p.key, params=params)  # (4)
    v, value = linear_forward(a, p.value, params=params)  # (5)
    q, k, v = q.reshape(heads), k.reshape(heads), v.reshape(heads)
    if form.position == "rotary":
        (q, rotary_q), (k, rotary_k) = rotary_forward(q, positions), rotary_forward(k, positions)  # (6)
        rotary = rotary_q, rotary_k
    match p.position:
        case RelativePositionParams():
            y, attention = relative_attention_forward(
                q, k, v, positions, valid, p.position, reach=form.reach, params=params, kept=kept
            )  # (7)
        case ShawPositionParams():
            y, attention = shaw_attention_forward(
                q, k, v, valid, p.position, left=form.shaw_left, reach=form.reach, params=params
            )  # (7)
        case None:
            y, attention = attention_forward(q, k, v, valid, reach=form.reach)  # (7)
    u, out = linear_forward(y.reshape(x.shape), p.out, params=params)  # (8)
    return u, SelfAttentionCache(norm, rotary_input, query, key, value, rotary, attention, out)


def self_attention_backward(du: Array, cache: SelfAttentionCache) -> tuple[Array, SelfAttentionParams | None]:
    """Return dx (B, T, C), through the branch alone, and dp for du (B, T, C)."""
    B, A, T, D = cache.attention.q.shape
    heads = (B, T, A, D)
    dy, dout = linear_backward(du, cache.out)  # (8)
    dy, dposition = dy.reshape(heads), None
    match cache.attention:
        case RelativeAttentionCache():
            dq, dk, dv, dposition = relative_attention_backward(dy, cache.attention)  # (7)
        case ShawAttentionCache():
            dq, dk, dv, dposition = shaw_attention_backward(dy, cache.attention)  # (7)
        case AttentionCache():
            dq, dk, dv = attention_backward(dy, cache.attention)  # (7)
    if cache.rotary is not None:
        dq, dk = rotary_backward(dq, cache.rotary[0]), rotary_backward(dk, cache.rotary[1])  # (6)
    da, dvalue = linear_backward(dv.reshape(du.shape), cache.value)  # (5)
    dturned_k, dkey = linear_backward(dk.reshape(du.shape), cache.key)  # (4)
    dturned_q, dquery = linear_backward(dq.reshape(du.shape), cache.query)  # (3)
    dturned = dturned_q + dturned_k
    if cache.rotary_input is not None:
        dturned = rotary_backward(dturned.reshape(heads), cache.rotary_input).reshape(du.shape)  # (2)
    dx, dnorm = layer_norm_backward(dturned + da, cache.norm)  # (1)
    return dx, None if dnorm is None else SelfAttentionParams(dnorm, dquery, dkey, dvalue, dposition, dout)
