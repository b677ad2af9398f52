"""The two-dimensional front ends, which turn F mel bins into C channels at a lower frame rate.

    a = features
    a = relu(conv(a))                          for each convolution: a stride of 2, n frames become ceil(n/2)
    x = scale out(flatten(a))

A convolution is a full one (Gulati et al. 2020, 2005.08100, section 2: two of them), or a depthwise one and a pointwise
map (FastConformer, Rekesh et al. 2023, 2305.05084: after a first full one, for 8 frames in one).
"""

from typing import NamedTuple

from minihra.arrays import Array
from minihra.layers.activations import ReluCache
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams
from minihra.layers.linear import LinearCache, LinearParams
from minihra.masks import halve
from minihra.ops import (
    conv2d_backward,
    conv2d_forward,
    depthwise_conv2d_backward,
    depthwise_conv2d_forward,
    hot,
    linear_backward,
    linear_forward,
    relu_backward,
    relu_forward,
)


class SeparableConv2dParams(NamedTuple):
    """A depthwise convolution and a pointwise map."""

    depthwise: DepthwiseConv2dParams  # (3, 3, I)
    pointwise: LinearParams  # (I, O)


class SeparableConv2dCache(NamedTuple):
    """What `separable_conv2d_backward` reads."""

    depthwise: DepthwiseConv2dCache
    pointwise: LinearCache


def separable_conv2d_forward(
    x: Array, valid: Array, p: SeparableConv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, SeparableConv2dCache]:
    """Convolve x (B, T, F, I) to y (B, ceil(T/2), ceil(F/2), O)."""
    a, depthwise = depthwise_conv2d_forward(x, valid, p.depthwise, params=params, below=below)  # (1)
    y, pointwise = linear_forward(a, p.pointwise, params=params)  # (2)
    return y, SeparableConv2dCache(depthwise, pointwise)


def separable_conv2d_backward(
    dy: Array, cache: SeparableConv2dCache
) -> tuple[Array | None, SeparableConv2dParams | None]:
    """Return dx (B, T, F, I) and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    da, dpointwise = linear_backward(dy, cache.pointwise)  # (2)
    dx, ddepthwise = depthwise_conv2d_backward(da, cache.depthwise)  # (1)
    return dx, None if dpointwise is None else SeparableConv2dParams(ddepthwise, dpointwise)


class SubsamplingParams(NamedTuple):
    """Parameters of a two-dimensional front end."""

    convs: tuple[Conv2dParams | SeparableConv2dParams, ...]
    out: LinearParams  # (F' O, C)  rows ordered by frequency, then channel


class SubsamplingCache(NamedTuple):
    """What `subsampling_backward` reads."""

    convs: tuple[Conv2dCache | SeparableConv2dCache, ...]
    relus: tuple[ReluCache, ...]  # the last one (B, T', F', O)
    out: LinearCache
    scale: float


FORWARD = {Conv2dParams: conv2d_forward, SeparableConv2dParams: separable_conv2d_forward}
BACKWARD = {Conv2dCache: conv2d_backward, SeparableConv2dCache: separable_conv2d_backward}


def subsampling_forward(
    features: Array,
    valid: Array,
    p: SubsamplingParams,
    *,
    scale: float = 1.0,
    params: bool = True,
    below: bool = True,
) -> tuple[Array, Array, SubsamplingCache]:
    """Map features (B, T, F) to x (B, T', C). Returns x, its mask (B, T') and the cache.

    `below=False` says that nobody wants the gradient of the features.
    """
    a, convs, relus = features[..., None], [], []
    for n, conv in enumerate(p.convs):
        a, cache = FORWARD[type(conv)](a, valid, conv, params=params, below=below or n > 0)  # (1)
        a, relu = relu_forward(a)  # (2)
        valid = halve(valid)
        convs.append(cache)
        relus.append(relu)
    x, out = linear_forward(a.reshape(*a.shape[:2], -1), p.out, params=params)  # (3)
    return scale * x, valid, SubsamplingCache(tuple(convs), tuple(relus), out, scale)  # (4)


def subsampling_backward(dx: Array, cache: SubsamplingCache) -> tuple[Array | None, SubsamplingParams | None]:
    """Return dfeatures (B, T, F) and dp for dx (B, T', C)."""
    da, dout = linear_backward(cache.scale * dx, cache.out)  # (4) (3)
    da, dconvs = da.reshape(cache.relus[-1].positive.shape), []
    for conv, relu in zip(reversed(cache.convs), reversed(cache.relus), strict=True):
        da = relu_backward(da, relu)  # (2)
        da, dconv = BACKWARD[type(conv)](da, conv)  # (1)
        dconvs.append(dconv)
    dfeatures = None if da is None else da[..., 0]
    return dfeatures, None if dout is None else SubsamplingParams(tuple(reversed(dconvs)), dout)


@hot
def subsample(features: Array, valid: Array, p: SubsamplingParams, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Return x (B, T', C) and its mask (B, T') alone, for a frozen front end: no backward goes below its output."""
    return subsampling_forward(features, valid, p, scale=scale, params=False, below=False)[:2]
