"""The tiny inputs of every block and of the whole model: a Conformer of three layers up to the CTC loss, with every
cell and head over its depth, a batch of mixed tasks and ragged lengths; and the same Conformer in training.
"""

from typing import Any

import numpy as np

from minihra.adapters.controller import HRAParams, depth_step_backward, depth_step_forward, group_tasks
from minihra.adapters.hra import HRAEdit
from minihra.adapters.parts import CELLS, HEADS
from minihra.arrays import Array
from minihra.blocks.conformer import Conformer, ConformerConfig, ConformerParams
from minihra.blocks.conformer_block import (
    ConformerBlockCache,
    ConformerBlockParams,
    conformer_block_backward,
    conformer_block_forward,
)
from minihra.blocks.convolution import convolution_backward, convolution_forward
from minihra.blocks.feed_forward import feed_forward_backward, feed_forward_forward
from minihra.blocks.initial import initial_conformer
from minihra.blocks.protocol import Context, Training
from minihra.blocks.self_attention import self_attention_backward, self_attention_forward
from minihra.blocks.subsampling import subsampling_backward, subsampling_forward
from minihra.cases import Case, filled, filled_cell, filled_head, filled_statistics, layer_cases, numbers
from minihra.layers.attention import relative_positions
from minihra.masks import valid_from_lengths
from minihra.model import backward, forward, pack_labels
from minihra.ops import Pair, ctc_backward, ctc_forward

CONFIG = ConformerConfig(labels=11, mels=9, width=8, layers=3, heads=2, kernel=5, expansion=2)
STATE, BOTTLENECK = 7, 5
FRAMES = 23  # 6 after subsampling
LENGTHS = (23, 14, 5, 0, 9)
LABELS = ([3, 3, 1], [5, 10], [2], [], [1, 2, 3, 4])  # the last row is too short for its labels
TASKS = ("bob", "base", "ann", "ann", "bob")  # of "ann", "bob" and the absent "eve"


def tiny_conformer(config: ConformerConfig = CONFIG) -> Conformer:
    """Return a frozen Conformer of the sizes of `config`, float64."""
    backbone = initial_conformer(config, seed=0, dtype=np.dtype(np.float64))
    statistics = tuple(filled_statistics(config.width, 2 * l) for l in range(config.layers))
    return Conformer(config, filled(backbone.p), statistics if config.conv_norm == "batch" else backbone.statistics)


def tiny_hra(cell: str, head: str) -> HRAParams:
    """Return an HRA for `tiny_conformer` with heads for ann, bob and eve."""
    heads = {
        task: filled_head(head, CONFIG.width, STATE, BOTTLENECK, k)
        for task, k in (("ann", 20), ("bob", 24), ("eve", 28))
    }
    return HRAParams(filled_cell(cell, CONFIG.width, STATE), heads)


def block_cases() -> list[Case]:
    """Return a case for every block; some have several."""
    backbone, width, frames = tiny_conformer(), CONFIG.width, 6
    layer, statistics = backbone.p.layers[0], backbone.statistics[0]
    layer_norms = tiny_conformer(ConformerConfig(**{**vars(CONFIG), "conv_norm": "layer"})).p.layers[0]
    x, valid = numbers(5, frames, width), valid_from_lengths((6, 4, 2, 0, 3), frames)
    positions = relative_positions(frames, width, np.dtype(np.float64))

    def block(name: str, pair: Pair, p: Any, **constants: Any) -> Case:
        return Case(name, pair, {"x": x, "p": p}, constants, timed=("x",))

    attention = Pair(self_attention_forward, self_attention_backward)
    convolution = Pair(convolution_forward, convolution_backward)
    conformer_block = Pair(conformer_block_forward, conformer_block_alone_backward)
    dropped = Training(numbers(CONFIG.layers, 4, *x.shape, k=3) > -0.6, 0.2)
    return [
        block("feed_forward", Pair(feed_forward_forward, feed_forward_backward), layer.ffn1),
        block("self_attention", attention, layer.attention, positions=positions, valid=valid),
        block(
            "self_attention, reach (2, 1)", attention, layer.attention, positions=positions, valid=valid, reach=(2, 1)
        ),
        block("convolution", convolution, layer.conv, valid=valid, statistics=statistics),
        block("convolution, training", convolution, layer.conv, valid=valid, statistics=statistics, train=True),
        block("convolution, layer norm", convolution, layer_norms.conv, valid=valid, statistics=None),
        Case(
            "subsampling",
            Pair(subsampling_forward, subsampling_backward),
            {"features": numbers(5, FRAMES, CONFIG.mels), "p": backbone.p.subsampling},
            {"valid": valid_from_lengths(LENGTHS, FRAMES)},
            timed=("features",),
        ),
        *(
            block(
                f"conformer_block{name}",
                conformer_block,
                layer,
                context=Context(valid, positions, training),
                statistics=statistics,
            )
            for name, training in (("", None), (", training", dropped))
        ),
        *(depth_step_case(cell, head, x) for cell in CELLS for head in HEADS),
    ]


def conformer_block_alone_backward(dx: Array, cache: ConformerBlockCache) -> tuple[Array, ConformerBlockParams]:
    """Return dx and dp of a block without an edit."""
    dx, _, dp, _ = conformer_block_backward(dx, None, cache)
    return dx, dp


def depth_step_case(cell: str, head: str, x: Array) -> Case:
    """Return the case of one step of HRA over depth on x (B, T, C)."""
    groups = group_tasks(TASKS, ("ann", "bob", "eve"))
    h = numbers(len(groups.rows) * x.shape[1], STATE, k=5)
    return Case(
        f"depth_step, {cell}, {head}",
        Pair(depth_step_forward, depth_step_backward),
        {"x": x, "h": h, "p": tiny_hra(cell, head)},
        {"cell": cell, "groups": groups},
        outputs=2,
        timed=("x",),
    )


def model_cases() -> list[Case]:
    """Return the cases of the whole model: HRA with each cell and head, and training from nothing."""
    return [*(hra_case(cell, head) for cell in CELLS for head in HEADS), pretraining_case()]


def all_cases() -> list[Case]:
    """Return the cases of every pair, every block and the whole model."""
    return [*layer_cases(), *block_cases(), *model_cases()]


def hra_case(cell: str, head: str, conv_norm: str = "batch") -> Case:
    """Return the case of an HRA through the frozen Conformer to the CTC loss of each utterance."""
    backbone = tiny_conformer(ConformerConfig(**{**vars(CONFIG), "conv_norm": conv_norm}))

    def losses(p: HRAParams, features: Array) -> tuple[Array, Any]:
        groups = group_tasks(TASKS, p.heads)
        edit = HRAEdit(p, cell, STATE, groups, len(TASKS), train_controller=True)
        return utterance_losses(backbone, features, edit)

    def dlosses(dloss: Array, cache: Any) -> HRAParams:
        return backward(ctc_backward(dloss, cache[1]), cache[0]).adapter

    constants = {"features": numbers(len(TASKS), FRAMES, CONFIG.mels, k=2)}
    return Case(f"hra to ctc, {cell}, {head}", Pair(losses, dlosses), {"p": tiny_hra(cell, head)}, constants)


def pretraining_case() -> Case:
    """Return the case of the Conformer in training, with batch statistics and dropout."""
    backbone = tiny_conformer()
    keep = numbers(CONFIG.layers, 4, len(TASKS), 6, CONFIG.width, k=3) > -0.6

    def losses(p: ConformerParams, features: Array) -> tuple[Array, Any]:
        training = Conformer(CONFIG, p, backbone.statistics, frozen=False)
        return utterance_losses(training, features, None, Training(keep, 0.2))

    def dlosses(dloss: Array, cache: Any) -> ConformerParams:
        return backward(ctc_backward(dloss, cache[1]), cache[0]).backbone

    constants = {"features": numbers(len(TASKS), FRAMES, CONFIG.mels, k=2)}
    return Case("conformer to ctc, training", Pair(losses, dlosses), {"p": backbone.p}, constants)


def utterance_losses(
    backbone: Conformer, features: Array, edit: HRAEdit | None, training: Training | None = None
) -> tuple[Array, Any]:
    """Return the CTC loss (B,) of each utterance, and the caches of the model and of the loss."""
    labels = pack_labels(LABELS, CONFIG.labels)
    logits, cache = forward(backbone, features, np.array(LENGTHS), edit, training)
    losses, ctc_cache = ctc_forward(logits, cache.context.valid, labels.labels, labels.lengths)
    return losses, (cache, ctc_cache)
