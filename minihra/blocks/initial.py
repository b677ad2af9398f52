"""Initial values of a Conformer that is trained from nothing.

Weights are normal with variance 1 / fan-in (2 / fan-in before a relu, He et al. 2015, 1502.01852), gains 1, biases 0.
"""

import math

import numpy as np

from minihra.arrays import Array
from minihra.blocks.conformer import Conformer, ConformerConfig, ConformerParams
from minihra.blocks.conformer_block import ConformerBlockParams
from minihra.blocks.convolution import ConvolutionParams
from minihra.blocks.feed_forward import FeedForwardParams
from minihra.blocks.self_attention import SelfAttentionParams
from minihra.blocks.subsampling import SubsamplingParams
from minihra.layers.attention import RelativePositionParams
from minihra.layers.conv import Conv2dParams, DepthwiseConvParams
from minihra.layers.linear import LinearParams
from minihra.layers.norms import BatchNormParams, BatchStatistics, LayerNormParams


def initial_conformer(config: ConformerConfig, seed: int, dtype: np.dtype = np.float32) -> Conformer:
    """Return an untrained Conformer, not frozen, with parameters of `dtype`."""
    rng = np.random.default_rng(seed)
    C, A, K = config.width, config.heads, config.kernel
    bands = -(-config.mels // 4)  # mel bins after two strides of 2

    def normal(*shape: int, fan_in: int, gain: float = 1.0) -> Array:
        return (rng.standard_normal(shape) * math.sqrt(gain / fan_in)).astype(dtype)

    def zeros(*shape: int) -> Array:
        return np.zeros(shape, dtype)

    def ones(*shape: int) -> Array:
        return np.ones(shape, dtype)

    def linear(I: int, O: int) -> LinearParams:
        return LinearParams(normal(I, O, fan_in=I), zeros(O))

    def norm() -> LayerNormParams:
        return LayerNormParams(ones(C), zeros(C))

    def conv2d(I: int) -> Conv2dParams:
        return Conv2dParams(normal(3, 3, I, C, fan_in=9 * I, gain=2.0), zeros(C))

    def feed_forward() -> FeedForwardParams:
        return FeedForwardParams(norm(), linear(C, config.expansion * C), linear(config.expansion * C, C))

    def block() -> ConformerBlockParams:
        position = RelativePositionParams(normal(C, C, fan_in=C), zeros(A, C // A), zeros(A, C // A))
        attention = SelfAttentionParams(norm(), linear(C, C), linear(C, C), linear(C, C), position, linear(C, C))
        inner = BatchNormParams(ones(C), zeros(C)) if config.conv_norm == "batch" else norm()
        depthwise = DepthwiseConvParams(normal(K, C, fan_in=K), zeros(C))
        conv = ConvolutionParams(norm(), linear(C, 2 * C), depthwise, inner, linear(C, C))
        return ConformerBlockParams(feed_forward(), attention, conv, feed_forward(), norm())

    subsampling = SubsamplingParams(conv2d(1), conv2d(C), linear(bands * C, C))
    layers = tuple(block() for _ in range(config.layers))
    statistics = BatchStatistics(zeros(C), ones(C)) if config.conv_norm == "batch" else None
    p = ConformerParams(subsampling, layers, linear(C, config.labels))
    return Conformer(config, p, (statistics,) * config.layers, frozen=False)
