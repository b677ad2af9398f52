"""How much memory a model takes, from its sizes alone: for writing recordings down, and for a step of adaptation.

    working memory = the most that lives at one time, beside the weights, while `model.infer`, or `model.forward`,
                     `ctc_loss` and `backward` with an HRA, run over arrays without content (weightless.py)

So it is what the code keeps, and no formula of what it should; a batch takes what those of its parts (parts.py) take
that are computed at one time, one on each thread. What a part comes to, for feed-forward modules of 4C:

    inference    one layer at a time, the largest of
                   the front end    features, patches (K for each output of a convolution over time), what lies between
                                    its convolutions, but for two full ones over time and frequency
                   the layer        about 24 (B, T, C)
                   its attention    4 (B, A, T, T); 6 with Shaw's positions, 7 with relative ones
                   the logits       3 (B, T, V)
    adaptation   what each layer but the first keeps, about 32 (B, T, C) and one (B, A, T, T);
                 then the largest of the loss, some 5 (B, T, V) and 1 (B, 2S+1, V), and of one layer's backward

T is the number of frames behind the front end. Not in it: the program and its libraries (some 150 MB), the features
while they are computed (one recording at a time), and the decoder.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.controller import HRAParams, group_tasks
from minihra.adapters.hra import HRAEdit
from minihra.adapters.parts import CELLS, HEADS
from minihra.blocks.config import ConformerConfig, Subsampling
from minihra.blocks.conformer import Conformer
from minihra.blocks.parameters import conformer_shapes
from minihra.blocks.protocol import Context, Training
from minihra.blocks.stages import stages_forward
from minihra.blocks.subsampling import subsample
from minihra.evaluate import TOGETHER, batches_of, pieces_of
from minihra.layers.rotary import RotaryTable
from minihra.model import Labels, backward, ctc_loss, forward, infer
from minihra.parts import parts_of
from minihra.recogniser import Recogniser
from minihra.threads import threads
from minihra.tree import count
from minihra.weightless import Weightless, WeightlessArray

BYTES = 4  # of a float32
FRAMES_PER_LABEL = 3
"""Frames of output for each label of a text: about as many as speech has, in characters at 50 Hz and pieces at 12.5."""


class AdapterShape(NamedTuple):
    """The shape of an HRA."""

    state_size: int = 32
    controller: str = "gru"
    head: str = "linear"
    bottleneck: int | None = None


class Memory(NamedTuple):
    """Bytes that a task takes."""

    weights: int  # the backbone's, float32
    adapter: int  # the HRA's parameters and the optimiser's two moments
    kept: int  # of the working memory, what stays from the forward for the backward
    working: int  # the most that lives at one time, beside weights and adapter

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.adapter + self.working


class Rehearsal(Conformer):
    """A Conformer whose masks and tables have no content either."""

    def embed(
        self, inputs: WeightlessArray, lengths: Any, training: Training | None = None
    ) -> tuple[WeightlessArray, Context, None]:
        """Return what `Conformer.embed` does."""
        xp, form, config = inputs.array_module, self.config.front_end, self.config
        valid = xp.empty(inputs.shape[:2], bool)
        if isinstance(form, Subsampling):
            x, valid = subsample(inputs, valid, self.p.front_end, scale=form.scale)
        else:
            x, valid, _ = stages_forward(inputs, valid, self.p.front_end, stages=form.stages, params=False)
        T, positions = x.shape[1], None
        if config.position == "relative":
            positions = xp.empty((2 * T - 1, config.width))
        elif config.position.startswith("rotary"):
            positions = RotaryTable(*(xp.empty((T, config.width // config.heads)) for _ in range(2)))
        return x, Context(valid, positions, None, self.kept), None


def rehearsal(config: ConformerConfig, xp: Weightless) -> Rehearsal:
    """Return a model of weightless parameters."""
    return Rehearsal(config, *map(xp.parameters, conformer_shapes(config))).settled()


def rehearse_infer(
    xp: Weightless, config: ConformerConfig, batch: int, frames: int, shape: AdapterShape | None = None
) -> None:
    """Run `model.infer` over `batch` utterances of `frames` feature frames, with an adapter if there is a shape."""
    edit = None if shape is None else rehearsed_edit(xp, config, shape, batch)
    infer(rehearsal(config, xp), xp.empty((batch, frames, config.mels)), None, edit)


def peak_of_infer(config: ConformerConfig, batch: int, frames: int) -> int:
    """Return the most bytes that live, beside the weights, in `model.infer` of `batch` utterances, inputs included."""
    xp = Weightless()
    rehearse_infer(xp, config, batch, frames)
    return xp.peak


def memory_of_inference(config: ConformerConfig, hop: float, batch: int, seconds: float) -> Memory:
    """Return what recognising `batch` recordings takes, in pieces and batches as evaluate.py makes them."""
    frames = round(seconds / hop)
    chunks = pieces_of(frames, Recogniser(Rehearsal(config, None, None), Pace(hop), None))
    lengths = [chunk.stop - chunk.start for chunk in chunks] * batch
    batches = [[lengths[n] for n in rows] for rows in batches_of(lengths, round(TOGETHER / hop))]
    peak = max(sum(peak_of_infer(config, *part) for part in parts) for parts in {*map(largest_parts, batches)})
    outputs = sum(map(config.front_end.frames, lengths)) * config.labels
    return Memory(weights_of(config), 0, 0, peak + BYTES * (batch * frames * config.mels + outputs))


def largest_parts(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Return (rows, frames) of the parts of a batch that are computed at one time, taken as the largest ones."""
    shapes = [(len(rows), max(lengths[row] for row in rows)) for rows in parts_of(lengths)]
    return tuple(sorted(shapes, key=math.prod, reverse=True)[: threads()])


class Pace(NamedTuple):
    """Of features, how fast they come."""

    hop: float


def weights_of(config: ConformerConfig) -> int:
    """Return the bytes of a backbone's weights and statistics."""
    return BYTES * count(conformer_shapes(config))


def rehearsed_edit(xp: Weightless, config: ConformerConfig, shape: AdapterShape, batch: int) -> HRAEdit:
    """Return the edit of a batch whose rows are all of one task."""
    bottleneck = shape.state_size if shape.bottleneck is None else shape.bottleneck
    controller = CELLS[shape.controller].shapes(config.width, shape.state_size)
    heads = {"task": HEADS[shape.head](config.width, shape.state_size, bottleneck)}
    p, groups = HRAParams(xp.parameters(controller), xp.parameters(heads)), group_tasks(["task"] * batch, heads)
    return HRAEdit(p, shape.controller, shape.state_size, groups, batch, train_controller=True)


def rehearse_step(
    xp: Weightless,
    config: ConformerConfig,
    shape: AdapterShape,
    batch: int,
    frames: int,
    labels: int,
    recompute: bool = False,
) -> int:
    """Run forward, loss and backward of one step of adaptation; return what the forward keeps.

    Every utterance has `frames` feature frames and `labels` labels.
    """
    edit = rehearsed_edit(xp, config, shape, batch)
    features = xp.empty((batch, frames, config.mels))
    logits, cache = forward(rehearsal(config, xp), features, None, edit, recompute=recompute)
    del features
    kept = xp.held
    _, dlogits = ctc_loss(logits, cache.context.valid, same_labels(batch, labels))
    backward(dlogits, cache)
    return kept


def peak_of_step(
    config: ConformerConfig, shape: AdapterShape, batch: int, frames: int, labels: int, recompute: bool = False
) -> tuple[int, int]:
    """Return what the forward keeps, and the most bytes that live, in one step of adaptation, inputs included."""
    xp = Weightless()
    kept = rehearse_step(xp, config, shape, batch, frames, labels, recompute)
    return kept, xp.peak


def same_labels(batch: int, labels: int) -> Labels:
    """Return label sequences of one length."""
    return Labels(np.ones((batch, labels), np.int64), np.full(batch, labels))


def memory_of_step(
    config: ConformerConfig, hop: float, shape: AdapterShape, batch: int, seconds: float, recompute: bool = False
) -> Memory:
    """Return what one step of adaptation takes, for an HRA with a head for one task."""
    frames = round(seconds / hop)
    labels = config.front_end.frames(frames) // FRAMES_PER_LABEL
    parts = [peak_of_step(config, shape, *part, labels, recompute) for part in largest_parts([frames] * batch)]
    bottleneck = shape.state_size if shape.bottleneck is None else shape.bottleneck
    head = HEADS[shape.head](config.width, shape.state_size, bottleneck)
    adapter = count(CELLS[shape.controller].shapes(config.width, shape.state_size)) + count(head)
    features = BYTES * batch * frames * config.mels
    kept, working = (sum(peaks) for peaks in zip(*parts, strict=True))
    return Memory(weights_of(config), 3 * BYTES * adapter, kept, features + working)
