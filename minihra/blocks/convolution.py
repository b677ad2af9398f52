"""The convolution module. Gulati et al. 2020, 2005.08100, section 2.2 and figure 2.

    u = pointwise2(activation(inner_norm(depthwise(glu(pointwise1(norm(x)))))))     C -> 2C -> C

The inner norm is a layer norm, or a batch norm: with the statistics of the batch while its backbone trains, with
running ones otherwise; or there is none, where a batch norm was folded into the depthwise kernel.
"""

from typing import NamedTuple

from minihra.arrays import Array
from minihra.blocks.activation import ACTIVATIONS, ActivationCache, activation_backward
from minihra.layers.activations import GLUCache
from minihra.layers.conv import DepthwiseConvCache, DepthwiseConvParams
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.norms import (
    EPS,
    BatchNormCache,
    BatchNormParams,
    BatchStatistics,
    LayerNormCache,
    LayerNormParams,
    RunningNormCache,
)
from minihra.ops import (
    batch_norm_backward,
    batch_norm_forward,
    depthwise_conv_backward,
    depthwise_conv_forward,
    glu_backward,
    glu_forward,
    hot,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
    running_norm_backward,
    running_norm_forward,
)
from minihra.tree import Total

InnerNormCache = LayerNormCache | BatchNormCache | RunningNormCache | None

NORM_BACKWARD = {
    LayerNormCache: layer_norm_backward,
    BatchNormCache: batch_norm_backward,
    RunningNormCache: running_norm_backward,
    type(None): lambda dy, cache: (dy, None),
}


class ConvolutionParams(NamedTuple):
    """Parameters of the convolution module."""

    norm: LayerNormParams  # (C,)
    pointwise1: LinearParams  # (C, 2C)
    depthwise: DepthwiseConvParams  # (K, C)
    inner_norm: LayerNormParams | BatchNormParams | None  # (C,)
    pointwise2: LinearParams  # (C, C)


class ConvolutionCache(NamedTuple):
    """What `convolution_backward` reads."""

    norm: LayerNormCache
    pointwise1: LinearCache
    glu: GLUCache
    depthwise: DepthwiseConvCache
    inner_norm: InnerNormCache
    activation: ActivationCache
    pointwise2: LinearCache


@hot
def convolution_forward(
    x: Array,
    valid: Array,
    statistics: BatchStatistics | None,
    p: ConvolutionParams,
    *,
    causal: bool = False,
    activation: str = "swish",
    eps: float = EPS,
    total: Total | None = None,
    params: bool = True,
) -> tuple[Array, BatchStatistics | None, ConvolutionCache]:
    """Map x (B, T, C) to the branch u (B, T, C); `eps` is that of the layer norms.

    `statistics` is None where the inner norm is no batch norm, and `total` None where it is not to be trained. Returns
    u, the running statistics, new ones if there is a total, and the cache.
    """
    a, norm = layer_norm_forward(x, p.norm, eps=eps, params=params)  # (1)
    a, pointwise1 = linear_forward(a, p.pointwise1, params=params)  # (2)
    a, glu = glu_forward(a)  # (3)
    a, depthwise = depthwise_conv_forward(a, valid, p.depthwise, causal=causal, params=params)  # (4)
    inner_norm: InnerNormCache = None
    match p.inner_norm:
        case LayerNormParams():
            a, inner_norm = layer_norm_forward(a, p.inner_norm, eps=eps, params=params)  # (5)
        case BatchNormParams() if total is not None:
            a, statistics, inner_norm = batch_norm_forward(a, valid, statistics, p.inner_norm, total=total)  # (5)
        case BatchNormParams():
            a, inner_norm = running_norm_forward(a, statistics, p.inner_norm, params=params)  # (5)
    a, bend = ACTIVATIONS[activation].forward(a)  # (6)
    u, pointwise2 = linear_forward(a, p.pointwise2, params=params)  # (7)
    return u, statistics, ConvolutionCache(norm, pointwise1, glu, depthwise, inner_norm, bend, pointwise2)


@hot
def convolution_backward(du: Array, cache: ConvolutionCache) -> tuple[Array, ConvolutionParams | None]:
    """Return dx (B, T, C), through the branch alone, and dp for du (B, T, C)."""
    da, dpointwise2 = linear_backward(du, cache.pointwise2)  # (7)
    da = activation_backward(da, cache.activation)  # (6)
    da, dinner_norm = NORM_BACKWARD[type(cache.inner_norm)](da, cache.inner_norm)  # (5)
    da, ddepthwise = depthwise_conv_backward(da, cache.depthwise)  # (4)
    da = glu_backward(da, cache.glu)  # (3)
    da, dpointwise1 = linear_backward(da, cache.pointwise1)  # (2)
    dx, dnorm = layer_norm_backward(da, cache.norm)  # (1)
    if dnorm is None:
        return dx, None
    return dx, ConvolutionParams(dnorm, dpointwise1, ddepthwise, dinner_norm, dpointwise2)
