"""A tiny frozen Conformer, HRAs for it and a batch of mixed tasks, of the sizes of minihra.model_cases, in any type."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.blocks.conformer import Conformer
from minihra.cases import numbers
from minihra.model import Gradients, Labels, Loss, backward, ctc_loss, forward, pack_labels
from minihra.model_cases import BOTTLENECK, CONFIG, FRAMES, LABELS, LENGTHS, STATE, TASKS, tiny_conformer
from minihra.tree import Tree, leaves, map_leaves

ALL_TASKS = ("ann", "bob", "eve")  # TASKS, those of the batch, are without eve


class Batch(NamedTuple):
    features: Array  # (B, T, F)
    lengths: Array  # (B,)
    labels: Labels


def batch(dtype: type = np.float32) -> Batch:
    """Five ragged utterances, one of them empty and one too short for its labels."""
    features = numbers(len(TASKS), FRAMES, CONFIG.mels, k=2).astype(dtype)
    return Batch(features, np.array(LENGTHS), pack_labels(LABELS, CONFIG.labels))


def frozen_backbone(dtype: type = np.float32, **changes: Any) -> Conformer:
    """A frozen Conformer whose parameters nobody can write to; `changes` to model_cases.CONFIG."""

    def fixed(leaf: Array) -> Array:
        leaf = leaf.astype(dtype)
        leaf.flags.writeable = False
        return leaf

    backbone = tiny_conformer(replace(CONFIG, **changes))
    return replace(backbone, p=map_leaves(fixed, backbone.p), statistics=map_leaves(fixed, backbone.statistics))


def new_hra(cell: str = "gru", head: str = "linear", tasks: Sequence[str] = ALL_TASKS, **more: Any) -> HRA:
    """An untrained HRA for `frozen_backbone`."""
    bottleneck = BOTTLENECK if head == "ffn" else None
    hra = HRA(CONFIG.width, STATE, cell=cell, head=head, bottleneck=bottleneck, **more)
    for task in tasks:
        hra.add_task(task)
    return hra


def trained_hra(cell: str = "gru", head: str = "linear", **more: Any) -> HRA:
    """An HRA as after training: no parameter is zero, so every task changes the model."""
    hra, rng = new_hra(cell, head, **more), np.random.default_rng(1)
    hra.p = map_leaves(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape).astype(leaf.dtype), hra.p)
    return hra


def logits_of(backbone: Conformer, given: Batch, hra: HRA | None = None, tasks: Sequence[str] = TASKS) -> Array:
    return forward(backbone, given.features, given.lengths, hra and hra.edit(tasks))[0]


def gradients_of(
    backbone: Conformer, given: Batch, hra: HRA, tasks: Sequence[str] = TASKS, **how: Any
) -> tuple[Loss, Gradients]:
    logits, cache = forward(backbone, given.features, given.lengths, hra.edit(tasks, **how))
    loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
    return loss, backward(dlogits, cache)


def bits(tree: Tree) -> dict[str, bytes]:
    """The bytes of every leaf, to compare to the bit."""
    return {name: leaf.tobytes() for name, leaf in leaves(tree)}
