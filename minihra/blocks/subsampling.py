"""The front end that turns F mel bins into C channels at a quarter of the frame rate. Gulati et al. 2020, section 2.

x = out(flatten(relu(conv2(relu(conv1(features))))))       two strides of 2: n frames -> ceil(ceil(n/2)/2)
"""

from typing import NamedTuple

from minihra.arrays import Array
from minihra.layers.activations import ReluCache
from minihra.layers.conv import Conv2dCache, Conv2dParams
from minihra.layers.linear import LinearCache, LinearParams
from minihra.masks import halve
from minihra.ops import (
    conv2d_backward,
    conv2d_forward,
    linear_backward,
    linear_forward,
    relu_backward,
    relu_forward,
)


class SubsamplingParams(NamedTuple):
    """Parameters of the subsampling front end."""

    conv1: Conv2dParams  # (3, 3, 1, C)
    conv2: Conv2dParams  # (3, 3, C, C)
    out: LinearParams  # (ceil(ceil(F/2)/2) C, C)  rows ordered by frequency, then channel


class SubsamplingCache(NamedTuple):
    """What `subsampling_backward` reads."""

    conv1: Conv2dCache
    relu1: ReluCache
    conv2: Conv2dCache
    relu2: ReluCache  # (B, T4, F4, C)
    out: LinearCache


def subsampling_forward(
    features: Array, valid: Array, p: SubsamplingParams, *, params: bool = True
) -> tuple[Array, Array, SubsamplingCache]:
    """Map features (B, T, F) to x (B, T4, C). Returns x, its mask (B, T4) and the cache."""
    a, conv1 = conv2d_forward(features[..., None], valid, p.conv1, params=params)  # (1)
    a, relu1 = relu_forward(a)  # (2)
    a, conv2 = conv2d_forward(a, halve(valid), p.conv2, params=params)  # (3)
    a, relu2 = relu_forward(a)  # (4)
    x, out = linear_forward(a.reshape(*a.shape[:2], -1), p.out, params=params)  # (5)
    return x, halve(halve(valid)), SubsamplingCache(conv1, relu1, conv2, relu2, out)


def subsampling_backward(dx: Array, cache: SubsamplingCache) -> tuple[Array, SubsamplingParams | None]:
    """Return dfeatures (B, T, F) and dp for dx (B, T4, C)."""
    da, dout = linear_backward(dx, cache.out)  # (5)
    da = relu_backward(da.reshape(cache.relu2.positive.shape), cache.relu2)  # (4)
    da, dconv2 = conv2d_backward(da, cache.conv2)  # (3)
    da = relu_backward(da, cache.relu1)  # (2)
    da, dconv1 = conv2d_backward(da, cache.conv1)  # (1)
    return da[..., 0], None if dout is None else SubsamplingParams(dconv1, dconv2, dout)
