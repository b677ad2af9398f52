"""Twin of minihra/layers/attention.py for the GPU, and what all kinds of attention share.

Between two products stands one kernel: no mask is made, no score is copied to be shifted.
"""

import math
from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_warp
from minihra.kernels.cuda.products import product
from minihra.layers.attention import AttentionCache, Reach
from minihra.layers.softmax import MaskedSoftmaxCache

KERNELS = Source("attention.cu")


class Heads(NamedTuple):
    """What products read; None where it was not asked for."""

    to_content: Array  # (B, A, T, D)  q + u
    to_position: Array | None  # (B, T, A, D)  q + v
    k_by_head: Array | None  # (B, A, T, D)
    value_by_head: Array | None  # (B, A, T, D)


def split_heads(
    q: Array, k: Array | None = None, value: Array | None = None, u: Array | None = None, v: Array | None = None
) -> Heads:
    """Split q, k, value (B, T, A, D) by head, with u and v (A, D) added to q."""
    xp, (B, T, A, D) = array_module(q), q.shape
    q, k, value = (None if x is None else contiguous(x) for x in (q, k, value))

    def space(wanted: Array | None, *shape: int) -> Array | None:
        return None if wanted is None else xp.empty(shape, q.dtype)

    heads = Heads(space(q, B, A, T, D), space(v, B, T, A, D), space(k, B, A, T, D), space(value, B, A, T, D))
    given = {"q": q, "k": k, "value": value, "u": u, "v": v}
    KERNELS.run("split_heads", per_warp(B * T), **given, **heads._asdict(), B=B, T=T, A=A, D=D)
    return heads


def merge_heads(q: Array, k: Array | None = None, value: Array | None = None, *, also: Array | None = None) -> list:
    """Merge q, k, value (B, A, T, D) to (B, T, A, D), with `also` (B, T, A, D) added to q."""
    xp, (B, A, T, D) = array_module(q), q.shape
    merged = [None if x is None else xp.empty((B, T, A, D), q.dtype) for x in (q, k, value)]
    arrays = {"q_by_head": q, "k_by_head": k, "value_by_head": value, "also": also}
    arrays |= dict(zip(("q", "k", "value"), merged, strict=True))
    KERNELS.run("merge_heads", per_warp(B * T), **arrays, B=B, T=T, A=A, D=D)
    return merged


def turned(x: Array) -> Array:
    """View the matrices x (..., N, M) as (..., M, N)."""
    return x.swapaxes(-1, -2)


def attend(heads: Heads, w: Array | None, valid: Array, reach: Reach) -> tuple[Array, MaskedSoftmaxCache]:
    """Return y (B, T, A, D) and the weights, for products w (B, T, A, R) of queries and positions."""
    B, A, T, D = heads.to_content.shape
    s = product(heads.to_content, turned(heads.k_by_head))
    left, right = (T if limit is None else min(limit, T) for limit in reach or (None, None))
    KERNELS.run(
        "attention_weights",
        per_warp(B * A * T),
        **{"s": s, "w": w, "valid": contiguous(valid), "B": B, "A": A, "T": T},
        **{"left": left, "right": right, "scale": 1 / math.sqrt(D)},
    )
    (y,) = merge_heads(product(s, heads.value_by_head))[:1]
    return y, MaskedSoftmaxCache(s)


def attend_backward(
    dy: Array, value: Array, weights: MaskedSoftmaxCache, *, shifted: bool = False
) -> tuple[Array, Array, Array | None]:
    """Return dvalue and ds by head for dy (B, A, T, D), and where it was `shifted` dw (B, T, A, R)."""
    xp, y, (B, A, T, D) = array_module(dy), contiguous(weights.y), dy.shape
    dvalue, ds = product(turned(y), dy), product(dy, turned(value))
    dw = xp.empty((B, T, A, 2 * T - 1), ds.dtype) if shifted else None
    sizes = {"B": B, "A": A, "T": T, "scale": 1 / math.sqrt(D)}
    KERNELS.run("attention_weights_backward", per_warp(B * A * T), y=y, ds=ds, dw=dw, **sizes)
    return dvalue, ds, dw


def attention_forward(
    q: Array, k: Array, value: Array, valid: Array, *, reach: Reach = None
) -> tuple[Array, AttentionCache]:
    """Attend: q, k, value (B, T, A, D), valid (B, T) -> y (B, T, A, D), 0 on padded frames."""
    heads = split_heads(q, k, value)
    y, weights = attend(heads, None, valid, reach)
    return y, AttentionCache(heads.to_content, heads.k_by_head, heads.value_by_head, weights)


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Return dq, dk, dvalue (B, T, A, D) for dy (B, T, A, D)."""
    q, k, value, weights = cache
    dvalue, ds, _ = attend_backward(split_heads(dy).to_content, value, weights)
    dq, dk, dvalue = merge_heads(product(ds, k), product(turned(ds), q), dvalue)
    return dq, dk, dvalue
