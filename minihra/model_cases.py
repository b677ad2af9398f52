"""The tiny inputs of every block and of the whole model: a Conformer of three layers up to the CTC loss, with every
cell and head over its depth, a batch of mixed tasks and ragged lengths; and the same Conformer in training.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from minihra.adapters.controller import HRAParams, depth_step_backward, depth_step_forward, group_tasks
from minihra.adapters.hra import HRAEdit
from minihra.adapters.parts import CELLS, HEADS
from minihra.arrays import Array
from minihra.blocks.config import POSITIONS, ConformerConfig, Stages, Subsampling
from minihra.blocks.conformer import Conformer
from minihra.blocks.conformer_block import (
    ConformerBlockCache,
    ConformerBlockParams,
    conformer_block_backward,
    conformer_block_forward,
)
from minihra.blocks.convolution import convolution_backward, convolution_forward
from minihra.blocks.feed_forward import feed_forward_backward, feed_forward_forward
from minihra.blocks.initial import initial_conformer
from minihra.blocks.parameters import ConformerParams
from minihra.blocks.protocol import Context, Training
from minihra.blocks.self_attention import position_table, self_attention_backward, self_attention_forward
from minihra.blocks.stages import stages_backward, stages_forward
from minihra.blocks.subsampling import subsampling_backward, subsampling_forward
from minihra.cases import Case, filled, filled_cell, filled_head, filled_statistics, layer_cases, numbers
from minihra.masks import valid_from_lengths
from minihra.model import backward, forward, pack_labels
from minihra.open_cases import OPEN
from minihra.ops import Pair, ctc_backward, ctc_forward
from minihra.tree import whole

CONFIG = ConformerConfig(labels=11, mels=9, width=8, layers=3, heads=2, kernel=5, inner=16)
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
    backbone = tiny_conformer()
    layer = backbone.p.layers[0]
    x, valid = numbers(5, 6, CONFIG.width), valid_from_lengths((6, 4, 2, 0, 3), 6)

    def block(name: str, pair: Pair, p: Any, **constants: Any) -> Case:
        return Case(name, pair, {"x": x, "p": p}, constants, timed=("x",))

    def attention(name: str, **changes: Any) -> Case:
        config = replace(CONFIG, **changes)
        form = config.form.attention
        positions = position_table(x.shape[1], x.shape[2], form, x.dtype, np)
        p = tiny_conformer(config).p.layers[0].attention
        pair = Pair(self_attention_forward, self_attention_backward)
        return block(f"self_attention{name}", pair, p, positions=positions, valid=valid, form=form)

    def convolution(name: str, conv_norm: str, **constants: Any) -> Case:
        backbone = tiny_conformer(replace(CONFIG, conv_norm=conv_norm))
        pair, p = Pair(convolution_forward, convolution_backward), backbone.p.layers[0].conv
        return block(f"convolution{name}", pair, p, valid=valid, statistics=backbone.statistics[0], **constants)

    def conformer_block(name: str, training: Training | None = None, **changes: Any) -> Case:
        config = replace(CONFIG, **changes)
        backbone, form = tiny_conformer(config), config.form
        positions = position_table(x.shape[1], x.shape[2], form.attention, x.dtype, np)
        context = Context(valid, positions, training)
        pair, p = Pair(conformer_block_forward, conformer_block_alone_backward), backbone.p.layers[0]
        constants = {"context": context, "statistics": backbone.statistics[0], "form": form}
        return block(f"conformer_block{name}", pair, p, **constants)

    dropped = Training(numbers(CONFIG.layers, 4, *x.shape, k=3) > -0.6, 0.2)
    return [
        block("feed_forward", Pair(feed_forward_forward, feed_forward_backward), layer.ffn1),
        block("feed_forward, gelu", Pair(feed_forward_forward, feed_forward_backward), layer.ffn1, activation="gelu"),
        attention(""),
        attention(", reach (2, 1)", reach=(2, 1)),
        *(
            attention(f", {position}", position=position, shaw=(2, 1))
            for position in POSITIONS
            if position != "relative"
        ),
        convolution("", "batch"),
        convolution(", training", "batch", total=whole),
        convolution(", layer norm", "layer"),
        convolution(", no inner norm, gelu", "none", activation="gelu"),
        convolution(", causal", "layer", causal=True, eps=1e-3),
        *front_end_cases(),
        conformer_block(""),
        conformer_block(", training", dropped),
        *(conformer_block(f", as in {name}", **changes) for name, changes in OPEN.items()),
        *(depth_step_case(cell, head, x) for cell in CELLS for head in HEADS),
    ]


def front_end_cases() -> list[Case]:
    """Return a case for each kind of front end."""
    features, valid = numbers(5, FRAMES, CONFIG.mels), valid_from_lengths(LENGTHS, FRAMES)

    def front_end(name: str, form: Subsampling | Stages) -> Case:
        p = tiny_conformer(replace(CONFIG, front_end=form)).p.front_end
        if isinstance(form, Subsampling):
            pair, constants = Pair(subsampling_forward, subsampling_backward), {"scale": form.scale}
        else:
            pair, constants = Pair(stages_forward, stages_backward), {"stages": form.stages}
        return Case(name, pair, {"features": features, "p": p}, {"valid": valid, **constants}, timed=("features",))

    return [
        front_end("subsampling", CONFIG.front_end),
        front_end("subsampling, separable", OPEN["Parakeet"]["front_end"]),
        front_end("subsampling, separable, 8 frames in one", replace(OPEN["Parakeet"]["front_end"], convs=3)),
        *(
            front_end(f"stages, as in {name}", OPEN[name]["front_end"])
            for name in ("LASR", "Wav2Vec2-BERT", "Wav2Vec2-Conformer", "hama")
        ),
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
    return [
        *(hra_case(cell, head) for cell in CELLS for head in HEADS),
        *(hra_case("gru", "linear", f", as in {name}", **changes) for name, changes in OPEN.items()),
        pretraining_case(),
        *(pretraining_case(f", as in {name}", **changes) for name, changes in OPEN.items()),
    ]


def all_cases() -> list[Case]:
    """Return the cases of every pair, every block and the whole model."""
    return [*layer_cases(), *block_cases(), *model_cases()]


def frames_for(changes: dict[str, Any]) -> int:
    """Return the frames of a batch: more of them for front ends that leave fewer."""
    return 3 * FRAMES if "front_end" in changes else FRAMES


def hra_case(cell: str, head: str, name: str = "", **changes: Any) -> Case:
    """Return the case of an HRA through the frozen Conformer, with `changes`, to the CTC loss of each utterance."""
    backbone, frames = tiny_conformer(replace(CONFIG, **changes)), frames_for(changes)

    def losses(p: HRAParams, features: Array) -> tuple[Array, Any]:
        groups = group_tasks(TASKS, p.heads)
        edit = HRAEdit(p, cell, STATE, groups, len(TASKS), train_controller=True)
        return utterance_losses(backbone, features, edit)

    def dlosses(dloss: Array, cache: Any) -> HRAParams:
        return backward(ctc_backward(dloss, cache[1]), cache[0]).adapter

    constants = {"features": numbers(len(TASKS), frames, CONFIG.mels, k=2)}
    return Case(f"hra to ctc, {cell}, {head}{name}", Pair(losses, dlosses), {"p": tiny_hra(cell, head)}, constants)


def pretraining_case(name: str = "", **changes: Any) -> Case:
    """Return the case of the Conformer, with `changes`, in training, with batch statistics and dropout."""
    backbone, frames = tiny_conformer(replace(CONFIG, **changes)), frames_for(changes)
    keep = numbers(CONFIG.layers, 4, len(TASKS), backbone.config.front_end.frames(frames), CONFIG.width, k=3) > -0.6

    def losses(p: ConformerParams, features: Array) -> tuple[Array, Any]:
        training = Conformer(backbone.config, p, backbone.statistics, frozen=False)
        return utterance_losses(training, features, None, Training(keep, 0.2))

    def dlosses(dloss: Array, cache: Any) -> ConformerParams:
        return backward(ctc_backward(dloss, cache[1]), cache[0]).backbone

    constants = {"features": numbers(len(TASKS), frames, CONFIG.mels, k=2)}
    return Case(f"conformer to ctc, training{name}", Pair(losses, dlosses), {"p": backbone.p}, constants)


def utterance_losses(
    backbone: Conformer, features: Array, edit: HRAEdit | None, training: Training | None = None
) -> tuple[Array, Any]:
    """Return the CTC loss (B,) of each utterance, and the caches of the model and of the loss."""
    labels = pack_labels(LABELS, CONFIG.labels)
    lengths = np.array(LENGTHS) * (features.shape[1] // FRAMES)
    logits, cache = forward(backbone, features, lengths, edit, training)
    losses, ctc_cache = ctc_forward(logits, cache.context.valid, labels.labels, labels.lengths)
    return losses, (cache, ctc_cache)
