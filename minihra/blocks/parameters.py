"""The parameters that a configuration asks for: one description, of which are made initial values or only shapes."""

from typing import NamedTuple, Protocol

from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig, Subsampling
from minihra.blocks.conformer_block import ConformerBlockParams
from minihra.blocks.convolution import ConvolutionParams
from minihra.blocks.feed_forward import FeedForwardParams
from minihra.blocks.self_attention import SelfAttentionParams
from minihra.blocks.stages import NORMS, StageParams
from minihra.blocks.subsampling import SeparableConv2dParams, SubsamplingParams
from minihra.layers.conv import Conv1dParams, DepthwiseConvParams
from minihra.layers.conv2d import Conv2dParams, DepthwiseConv2dParams
from minihra.layers.linear import LinearParams
from minihra.layers.norms import BatchNormParams, BatchStatistics, LayerNormParams
from minihra.layers.relative_attention import RelativePositionParams
from minihra.layers.shaw_attention import ShawPositionParams
from minihra.tree import Shape


class ReadoutParams(NamedTuple):
    """Parameters between the last block and the logits."""

    norm: LayerNormParams | None  # (C,)
    linear: LinearParams  # (C, V)


class ConformerParams(NamedTuple):
    """Parameters of a Conformer."""

    front_end: SubsamplingParams | tuple[StageParams, ...]
    layers: tuple[ConformerBlockParams, ...]
    readout: ReadoutParams


Statistics = tuple[BatchStatistics | None, ...]
"""The running statistics of each layer's convolution module; None where its inner norm is no batch norm."""


class Maker(Protocol):
    """What makes the leaves."""

    def weight(self, *shape: int, gain: float = 1.0) -> Array | Shape:
        """Return a weight; its fan-in is the product of all axes but the last, its variance gain / fan-in."""
        ...

    def zeros(self, *shape: int) -> Array | Shape:
        """Return zeros."""
        ...

    def ones(self, *shape: int) -> Array | Shape:
        """Return ones."""
        ...


class Shapes:
    """A maker of shapes."""

    def weight(self, *shape: int, gain: float = 1.0) -> Shape:
        """Return the shape."""
        return Shape(shape)

    zeros = ones = weight


def conformer_parameters(config: ConformerConfig, make: Maker) -> tuple[ConformerParams, Statistics]:
    """Return the parameters and the running statistics of a Conformer."""
    C, A, K, D = config.width, config.heads, config.kernel, config.width // config.heads

    def linear(I: int, O: int, bias: bool = True) -> LinearParams:
        return LinearParams(make.weight(I, O), make.zeros(O) if bias else None)

    def norm(width: int = C, bias: bool = True) -> LayerNormParams:
        return LayerNormParams(make.ones(width), make.zeros(width) if bias else None)

    def block_norm() -> LayerNormParams:
        return norm(bias=config.norm_bias)

    def feed_forward() -> FeedForwardParams:
        I = config.feed_forward
        return FeedForwardParams(block_norm(), linear(C, I, config.bias), linear(I, C, config.bias))

    def position() -> RelativePositionParams | ShawPositionParams | None:
        match config.position:
            case "relative":
                return RelativePositionParams(make.weight(C, C), make.zeros(A, D), make.zeros(A, D))
            case "shaw":
                return ShawPositionParams(make.weight(sum(config.shaw) + 1, D))
        return None

    def block() -> ConformerBlockParams:
        places = position()
        maps = [linear(C, C, config.bias) for _ in range(4)]
        attention = SelfAttentionParams(block_norm(), *maps[:3], places, maps[3])
        inner = {
            "batch": lambda: BatchNormParams(make.ones(C), make.zeros(C)),
            "layer": lambda: norm(bias=config.norm_bias),
            "none": lambda: None,
        }[config.conv_norm]()
        depthwise = DepthwiseConvParams(make.weight(K, C), make.zeros(C) if config.conv_bias else None)
        pointwise1, pointwise2 = linear(C, 2 * C, config.conv_bias), linear(C, C, config.conv_bias)
        conv = ConvolutionParams(block_norm(), pointwise1, depthwise, inner, pointwise2)
        return ConformerBlockParams(feed_forward(), attention, conv, feed_forward(), block_norm())

    if isinstance(config.front_end, Subsampling):
        front_end = subsampling_parameters(config.front_end, config.mels, C, make)
    else:
        front_end = stage_parameters(config, make)
    layers = tuple(block() for _ in range(config.layers))
    out_norm = None if config.out_norm is None else block_norm()
    readout = ReadoutParams(out_norm, linear(C, config.labels))
    batch_norm = config.conv_norm == "batch"
    statistics = tuple(
        BatchStatistics(make.zeros(C), make.ones(C)) if batch_norm else None for _ in range(config.layers)
    )
    return ConformerParams(front_end, layers, readout), statistics


def subsampling_parameters(form: Subsampling, F: int, C: int, make: Maker) -> SubsamplingParams:
    """Return the parameters of a two-dimensional front end."""
    O = form.channels or C

    def conv(I: int) -> Conv2dParams | SeparableConv2dParams:
        if I > 1 and form.separable:
            depthwise = DepthwiseConv2dParams(make.weight(3, 3, I), make.zeros(I))
            return SeparableConv2dParams(depthwise, LinearParams(make.weight(I, O, gain=2.0), make.zeros(O)))
        return Conv2dParams(make.weight(3, 3, I, O, gain=2.0), make.zeros(O))

    convs = tuple(conv(O if n else 1) for n in range(form.convs))
    rows = -(-F // form.stride) * O
    return SubsamplingParams(convs, LinearParams(make.weight(rows, C), make.zeros(C)))


def stage_parameters(config: ConformerConfig, make: Maker) -> tuple[StageParams, ...]:
    """Return the parameters of a one-dimensional front end."""
    width, parameters = config.mels, []
    for stage in config.front_end.stages:
        mapped = None
        if stage.width is not None:
            gain = 1.0 if stage.activation is None else 2.0
            bias = make.zeros(stage.width) if stage.bias else None
            if stage.linear:
                mapped = LinearParams(make.weight(width, stage.width, gain=gain), bias)
            else:
                mapped = Conv1dParams(make.weight(stage.kernel, width, stage.width, gain=gain), bias)
            width = stage.width
        norm = None if stage.norm is None else NORMS[stage.norm](make.ones(width), make.zeros(width))
        parameters.append(StageParams(mapped, norm))
    if width != config.width:
        raise ValueError(f"the front end gives frames of width {width}, but the model takes {config.width}")
    return tuple(parameters)


def conformer_shapes(config: ConformerConfig) -> tuple[ConformerParams, Statistics]:
    """Return the shapes of all parameters and running statistics; nothing is allocated."""
    return conformer_parameters(config, Shapes())
