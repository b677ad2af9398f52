"""The feed-forward module. Gulati et al. 2020, 2005.08100, section 2.3 and figure 4.

u = down(activation(up(norm(x))))         C -> 4C -> C with swish; the block adds u with half a step
"""

from typing import NamedTuple

from minihra.arrays import Array
from minihra.blocks.activation import ACTIVATIONS, ActivationCache, activation_backward
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.norms import EPS, LayerNormCache, LayerNormParams
from minihra.ops import layer_norm_backward, layer_norm_forward, linear_backward, linear_forward


class FeedForwardParams(NamedTuple):
    """Parameters of the feed-forward module."""

    norm: LayerNormParams  # (C,)
    up: LinearParams  # (C, 4C)
    down: LinearParams  # (4C, C)


class FeedForwardCache(NamedTuple):
    """What `feed_forward_backward` reads."""

    norm: LayerNormCache
    up: LinearCache
    activation: ActivationCache
    down: LinearCache


def feed_forward_forward(
    x: Array, p: FeedForwardParams, *, activation: str = "swish", eps: float = EPS, params: bool = True
) -> tuple[Array, FeedForwardCache]:
    """Map x (..., C) to the branch u (..., C)."""
    a, norm = layer_norm_forward(x, p.norm, eps=eps, params=params)  # (1)
    a, up = linear_forward(a, p.up, params=params)  # (2)
    a, bend = ACTIVATIONS[activation].forward(a)  # (3)
    u, down = linear_forward(a, p.down, params=params)  # (4)
    return u, FeedForwardCache(norm, up, bend, down)


def feed_forward_backward(du: Array, cache: FeedForwardCache) -> tuple[Array, FeedForwardParams | None]:
    """Return dx (..., C), through the branch alone, and dp for du (..., C)."""
    da, ddown = linear_backward(du, cache.down)  # (4)
    da = activation_backward(da, cache.activation)  # (3)
    da, dup = linear_backward(da, cache.up)  # (2)
    dx, dnorm = layer_norm_backward(da, cache.norm)  # (1)
    return dx, None if dnorm is None else FeedForwardParams(dnorm, dup, ddown)
