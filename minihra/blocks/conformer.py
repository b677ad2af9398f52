"""A Conformer with a linear readout, behind the backbone protocol. Gulati et al. 2020, 2005.08100.

features (B, T, F) -> subsampling -> L blocks -> readout -> logits (B, T4, V)
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module
from minihra.blocks.conformer_block import (
    SITES,
    ConformerBlockCache,
    ConformerBlockParams,
    conformer_block_backward,
    conformer_block_forward,
)
from minihra.blocks.protocol import Context, Edit, Training
from minihra.blocks.subsampling import (
    SubsamplingCache,
    SubsamplingParams,
    subsampling_backward,
    subsampling_forward,
)
from minihra.layers.attention import Reach, relative_positions
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.norms import BatchStatistics
from minihra.masks import valid_from_lengths
from minihra.ops import linear_backward, linear_forward
from minihra.tree import Tree


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes of a Conformer.

    Raises:
        ValueError: a size is impossible.
    """

    labels: int  # V, with the blank
    mels: int = 40  # F
    width: int = 96  # C
    layers: int = 4  # L
    heads: int = 4  # A
    kernel: int = 15  # K
    expansion: int = 4  # the feed-forward module is expansion * C wide
    conv_norm: str = "batch"  # the convolution module's inner norm: "batch" or "layer"
    reach: Reach = None  # frames that attention sees to the left and right, after subsampling

    def __post_init__(self) -> None:
        for size in ("labels", "mels", "width", "layers", "heads", "kernel", "expansion"):
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, got {getattr(self, size)}")
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width must be even and a multiple of heads = {self.heads}, got {self.width}")
        if self.conv_norm not in ("batch", "layer"):
            raise ValueError(f"conv_norm must be 'batch' or 'layer', got {self.conv_norm!r}")


class ConformerParams(NamedTuple):
    """Parameters of a Conformer."""

    subsampling: SubsamplingParams
    layers: tuple[ConformerBlockParams, ...]
    readout: LinearParams  # (C, V)


@dataclass
class Conformer:
    """A Conformer as a backbone. Frozen, it runs as at inference, and its backward gives no gradients of its own.

    `statistics` holds the running statistics of each layer's convolution module, None for a layer norm.
    """

    config: ConformerConfig
    p: ConformerParams
    statistics: tuple[BatchStatistics | None, ...]
    frozen: bool = True
    sites = SITES

    @property
    def depth(self) -> int:
        """The number of layers, L."""
        return self.config.layers

    @property
    def widths(self) -> tuple[int, ...]:
        """The width C of each layer's output."""
        return (self.config.width,) * self.depth

    def embed(
        self, inputs: Array, lengths: Array, training: Training | None = None
    ) -> tuple[Array, Context, SubsamplingCache | None]:
        """Map features (B, T, F) of `lengths` (B,) frames to x (B, T4, C); padding may hold anything, NaN too.

        Raises:
            ValueError: the features have no utterance or frame, another number of mel bins than the model, or lengths
                of another number of utterances or beyond T; or a frozen model is given a training step.
        """
        xp, F = array_module(inputs), self.config.mels
        if inputs.ndim != 3 or inputs.shape[1] == 0 or inputs.shape[2] != F:
            raise ValueError(f"features must have shape (B, T, {F}) with T at least 1, got {inputs.shape}")
        if len(inputs) == 0 or len(lengths) != len(inputs):
            raise ValueError(f"{len(lengths)} lengths were given for a batch of {len(inputs)} utterances")
        if self.frozen and training is not None:
            raise ValueError("a frozen model runs as at inference: it takes no training step")
        valid = valid_from_lengths(lengths, inputs.shape[1], xp)
        params = not self.frozen
        x, valid, cache = subsampling_forward(inputs, valid, self.p.subsampling, params=params)
        positions = relative_positions(x.shape[1], x.shape[2], x.dtype, xp)
        return x, Context(valid, positions, training), cache if params else None

    def embed_backward(self, dx: Array, cache: SubsamplingCache) -> SubsamplingParams:
        """Return the gradient of the front end for dx (B, T4, C)."""
        return subsampling_backward(dx, cache)[1]

    def layer_forward(
        self, l: int, x: Array, context: Context, edit: Edit | None, carry: Any
    ) -> tuple[Array, Any, ConformerBlockCache]:
        """Return x (B, T4, C) after layer l, the carry and the cache."""
        return conformer_block_forward(
            x,
            context,
            self.statistics[l],
            self.p.layers[l],
            l=l,
            edit=edit,
            carry=carry,
            reach=self.config.reach,
            params=not self.frozen,
            below=not self.frozen or (edit is not None and l > 0),
        )

    def layer_backward(
        self, l: int, dx: Array, dcarry: Any, cache: ConformerBlockCache
    ) -> tuple[Array | None, Any, ConformerBlockParams | None, Tree]:
        """Return dx, dcarry, dp and dedit; dx is None where nothing further down is trained."""
        return conformer_block_backward(dx, dcarry, cache, l=l)

    def readout_forward(self, x: Array, context: Context) -> tuple[Array, LinearCache]:
        """Return logits (B, T4, V) for x (B, T4, C)."""
        return linear_forward(x, self.p.readout, params=not self.frozen)

    def readout_backward(self, dy: Array, cache: LinearCache) -> tuple[Array, LinearParams | None]:
        """Return dx (B, T4, C) and dp for dy (B, T4, V)."""
        return linear_backward(dy, cache)

    def draw_dropout(self, rate: float, batch: int, frames: int, rng: np.random.Generator) -> Training:
        """Draw the masks of one training step for `batch` utterances of at most `frames` feature frames."""
        if rate == 0:
            return Training(None, 0.0)
        shape = (self.depth, len(SITES) - 1, batch, -(-frames // 4), self.config.width)
        return Training(rng.random(shape, dtype=np.float32) >= rate, rate)
