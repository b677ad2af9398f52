"""A Conformer with a linear readout, behind the backbone protocol. Gulati et al. 2020, 2005.08100.

features (B, T, F) -> front end -> L blocks -> (norm ->) readout -> logits (B, T', V)
"""

from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module
from minihra.blocks.config import ConformerConfig, Subsampling
from minihra.blocks.conformer_block import (
    SITES,
    STEPS,
    ConformerBlockCache,
    ConformerBlockParams,
    conformer_block_backward,
    conformer_block_forward,
)
from minihra.blocks.parameters import ConformerParams, ReadoutParams, Statistics
from minihra.blocks.protocol import Context, Edit, Training
from minihra.blocks.self_attention import position_table
from minihra.blocks.stages import StageParams, StagesCache, stages_backward, stages_forward
from minihra.blocks.subsampling import (
    SubsamplingCache,
    SubsamplingParams,
    subsample,
    subsampling_backward,
    subsampling_forward,
)
from minihra.layers.linear import LinearCache
from minihra.layers.norms import LayerNormCache
from minihra.layers.relative_attention import Projections
from minihra.masks import valid_from_lengths
from minihra.ops import draw_keep, layer_norm_backward, layer_norm_forward, linear_backward, linear_forward
from minihra.tree import Tree

FrontEndCache = SubsamplingCache | StagesCache


class ReadoutCache(NamedTuple):
    """What `Conformer.readout_backward` reads."""

    norm: LayerNormCache | None
    linear: LinearCache


@dataclass
class Conformer:
    """A Conformer as a backbone. Frozen, it runs as at inference, and its backward gives no gradients of its own."""

    config: ConformerConfig
    p: ConformerParams
    statistics: Statistics
    frozen: bool = True
    kept: Projections | None = None  # see `settled`
    sites = SITES

    @property
    def depth(self) -> int:
        """The number of layers, L."""
        return self.config.layers

    @property
    def xp(self) -> ModuleType:
        """The array module where its parameters live, and where it computes."""
        return array_module(self.p.readout.linear.W)

    @property
    def widths(self) -> tuple[int, ...]:
        """The width C of each layer's output."""
        return (self.config.width,) * self.depth

    def settled(self) -> "Conformer":
        """Return this model, frozen, as one whose weights nobody moves any more: what its layers compute from them
        alone, they compute once.
        """
        return self if self.frozen and self.kept is not None else replace(self, frozen=True, kept=Projections())

    def embed(
        self, inputs: Array, lengths: Array, training: Training | None = None
    ) -> tuple[Array, Context, FrontEndCache | None]:
        """Map features (B, T, F) of `lengths` (B,) frames to x (B, T', C); padding may hold anything, NaN too.

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
        params, form = not self.frozen, self.config.front_end
        if (short := form.least - inputs.shape[1]) > 0:  # too few for one frame of x: it is a padded one
            inputs = xp.concatenate([inputs, xp.zeros((len(inputs), short, F), inputs.dtype)], axis=1)
        valid = valid_from_lengths(lengths, inputs.shape[1], xp)
        cache = None
        if isinstance(form, Subsampling) and self.frozen:
            x, valid = subsample(inputs, valid, self.p.front_end, scale=form.scale)
        elif isinstance(form, Subsampling):
            x, valid, cache = subsampling_forward(inputs, valid, self.p.front_end, scale=form.scale, below=False)
        else:
            x, valid, cache = stages_forward(inputs, valid, self.p.front_end, stages=form.stages, params=params)
        positions = position_table(x.shape[1], x.shape[2], self.config.form.attention, x.dtype, xp)
        context = Context(xp.ascontiguousarray(valid), positions, training, self.kept if self.frozen else None)
        return x, context, cache if params else None

    def embed_backward(self, dx: Array, cache: FrontEndCache) -> SubsamplingParams | tuple[StageParams, ...]:
        """Return the gradient of the front end for dx (B, T', C)."""
        backward = subsampling_backward if isinstance(cache, SubsamplingCache) else stages_backward
        return backward(dx, cache)[1]

    def layer_forward(
        self, l: int, x: Array, context: Context, edit: Edit | None, carry: Any, *, keep: bool = True
    ) -> tuple[Array, Any, ConformerBlockCache]:
        """Return x (B, T', C) after layer l, the carry and the cache; with `keep=False`, of no use for a backward."""
        return conformer_block_forward(
            x,
            context,
            self.statistics[l],
            self.p.layers[l],
            l=l,
            edit=edit,
            carry=carry,
            form=self.config.form,
            params=not self.frozen,
            below=not self.frozen or (edit is not None and l > 0),
            keep=keep,
        )

    def layer_backward(
        self, l: int, dx: Array, dcarry: Any, cache: ConformerBlockCache
    ) -> tuple[Array | None, Any, ConformerBlockParams | None, Tree]:
        """Return dx, dcarry, dp and dedit; dx is None where nothing further down is trained."""
        return conformer_block_backward(dx, dcarry, cache, l=l)

    def readout_forward(self, x: Array, context: Context) -> tuple[Array, ReadoutCache]:
        """Return logits (B, T', V) for x (B, T', C)."""
        params, p, norm = not self.frozen, self.p.readout, None
        if p.norm is not None:
            x, norm = layer_norm_forward(x, p.norm, eps=self.config.out_norm, params=params)
        y, linear = linear_forward(x, p.linear, params=params)
        return y, ReadoutCache(norm, linear)

    def readout_backward(self, dy: Array, cache: ReadoutCache) -> tuple[Array, ReadoutParams | None]:
        """Return dx (B, T', C) and dp for dy (B, T', V)."""
        dx, dlinear = linear_backward(dy, cache.linear)
        dnorm = None
        if cache.norm is not None:
            dx, dnorm = layer_norm_backward(dx, cache.norm)
        return dx, None if dlinear is None else ReadoutParams(dnorm, dlinear)

    def draw_dropout(self, rate: float, batch: int, frames: int, rng: np.random.Generator) -> Training:
        """Draw the masks of one training step for `batch` utterances of at most `frames` feature frames."""
        if rate == 0:
            return Training(None, 0.0)
        shape = (self.depth, len(STEPS), batch, max(1, self.config.front_end.frames(frames)), self.config.width)
        return Training(draw_keep(self.p.readout.linear.W, rng, shape, rate=rate), rate)
