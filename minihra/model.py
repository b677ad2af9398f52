"""Backbone, edit and loss: the forward up the depth of the network, and the backward down again.

The model works for any backbone and any edit (blocks/protocol.py). With a frozen backbone only the edit has
gradients, and the backward ends at the first layer's output.
"""

import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module
from minihra.blocks.protocol import Backbone, Context, Edit, Training
from minihra.ops import ctc_backward, ctc_forward, hot
from minihra.tree import Total, Tree, add, whole


class ModelCache(NamedTuple):
    """What `backward` reads. `context.valid` (B, T) tells which frames of the output are real."""

    backbone: Backbone
    context: Context
    embed: Any  # None when the backbone is frozen
    layers: tuple[Any, ...]
    readout: Any


class LayerInput(NamedTuple):
    """Of a layer that the backward runs a second time: what went into it, in place of its cache."""

    x: Array  # (B, T, C)
    edit: Edit | None
    carry: Any


class Gradients(NamedTuple):
    """The gradients of a model: trees like the parameters of the backbone and of the adapter."""

    backbone: Tree  # None when it is frozen
    adapter: Tree  # None without an edit


def forward(
    backbone: Backbone,
    inputs: Array,
    lengths: Array,
    edit: Edit | None = None,
    training: Training | None = None,
    *,
    recompute: bool = False,
) -> tuple[Array, ModelCache]:
    """Return the outputs y (B, T, V) of padded inputs, of which `lengths` (B,) frames are real.

    With `recompute` only what goes into each layer is kept, and the backward runs the layer once more: the same bits
    for less memory and more time. Chen et al. 2016, 1604.06174. The running statistics of a training step are lost.
    """
    x, context, embed = backbone.embed(inputs, lengths, training)  # (1)
    layers, carry = [], None
    for l in range(backbone.depth):
        given = LayerInput(x, edit, carry)
        x, carry, cache = backbone.layer_forward(l, x, context, edit, carry, keep=not recompute)  # (2)
        layers.append(given if recompute else cache)
    y, readout = backbone.readout_forward(x, context)  # (3)
    return y, ModelCache(backbone, context, embed, tuple(layers), readout)


def infer(backbone: Backbone, inputs: Array, lengths: Array, edit: Edit | None = None) -> tuple[Array, Array]:
    """Return the outputs y (B, T', V) and their mask (B, T'), as `forward` but keeping nothing for a backward."""
    x, context, _ = backbone.embed(inputs, lengths)
    carry = None
    for l in range(backbone.depth):
        x, carry, _ = backbone.layer_forward(l, x, context, edit, carry, keep=False)
    return backbone.readout_forward(x, context)[0], context.valid


@hot
def add_leaves(totals: list[Array], others: list[Array]) -> None:
    """Add to each of `totals` the one of `others` in the same place."""
    for total, other in zip(totals, others, strict=True):
        operator.iadd(total, other)


def add_into(total: Tree, tree: Tree) -> Tree:
    """Return the sum of two gradient trees as `tree.add` does, but in the arrays of `total`, which nobody else needs.

    Where the total has nothing yet it takes the arrays of `tree`, to which the next call adds.
    """
    totals, others = [], []

    def note(a: Array, b: Array) -> Array:
        totals.append(a)
        others.append(b)
        return a

    total = add(total, tree, note)
    if totals:
        add_leaves(totals, others)
    return total


def backward(dy: Array, cache: ModelCache) -> Gradients:
    """Return the gradients of everything that trains for dy (B, T, V)."""
    backbone, context, embed, caches, readout = cache
    dx, dreadout = backbone.readout_backward(dy, readout)  # (3)
    dlayers, dcarry, dadapter = [None] * backbone.depth, None, None
    for l in reversed(range(backbone.depth)):
        layer = caches[l]
        if isinstance(layer, LayerInput):
            _, _, layer = backbone.layer_forward(l, layer.x, context, layer.edit, layer.carry)
        dx, dcarry, dlayers[l], dedit = backbone.layer_backward(l, dx, dcarry, layer)  # (2)
        dadapter = add_into(dadapter, dedit)
        if dx is None:
            break
    if dreadout is None:
        return Gradients(None, dadapter)
    dembed = backbone.embed_backward(dx, embed)  # (1)
    return Gradients(type(backbone.p)(dembed, tuple(dlayers), dreadout), dadapter)


class Labels(NamedTuple):
    """Label sequences of a batch, padded to the longest."""

    labels: Array  # (B, S)
    lengths: Array  # (B,)


def pack_labels(sequences: Sequence[Sequence[int]], size: int, blank: int = 0) -> Labels:
    """Pad label sequences with `blank`.

    Raises:
        ValueError: a label is the blank, or outside 0 ... size - 1 (which row, which label).
    """
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    labels = np.full((len(sequences), lengths.max(initial=0)), blank, dtype=np.int64)
    flat = np.array([*chain.from_iterable(sequences)], dtype=np.int64)
    wrong = (flat < 0) | (flat >= size) | (flat == blank)
    if wrong.any():
        first = int(wrong.argmax())
        row = int(np.searchsorted(lengths.cumsum(), first, side="right"))
        raise ValueError(f"row {row}: label {flat[first]} is not one of 0 ... {size - 1} without the blank {blank}")
    labels[np.arange(labels.shape[1]) < lengths[:, None]] = flat
    return Labels(labels, lengths)


class Loss(NamedTuple):
    """The CTC loss of a batch."""

    mean: Array  # 0-d, over the feasible utterances; 0 where there is none
    utterances: Array  # (B,)
    feasible: Array  # (B,)  bool


def ctc_loss(
    logits: Array, valid: Array, labels: Labels, *, blank: int = 0, total: Total = whole
) -> tuple[Loss, Array]:
    """Return the mean loss over the feasible utterances and its gradient dlogits (B, T, V).

    Of a part of a batch, where `total` adds up what all parts have, it is what the part adds to the mean of the batch.

    Raises:
        ValueError: there are labels for another number of utterances.
    """
    xp = array_module(logits)
    if len(labels.labels) != len(logits):
        raise ValueError(f"labels of {len(labels.labels)} utterances were given for a batch of {len(logits)}")
    losses, cache = ctc_forward(logits, valid, xp.asarray(labels.labels), xp.asarray(labels.lengths), blank=blank)
    share = cache.feasible.astype(logits.dtype)
    share = share / xp.maximum(total(share.sum()), 1)  # (B,)  the derivative of the mean
    return Loss((losses * share).sum(), losses, cache.feasible), ctc_backward(share, cache)
