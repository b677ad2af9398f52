"""What a GPU computes for a batch as CUDA graphs, one for each shape of a batch (kernels/cuda/capture.py).

A graph reads the arrays that it was recorded with. So everything that differs from batch to batch is an input, which
is written into those arrays before the graph runs again: features, lengths and labels, masks, and where the rows of the
tasks and their heads are. Tasks are known to a graph by the number of their place in the batch, its slot; batches are
padded, so that few shapes occur. A shape that comes for the first time is computed without a graph, as it may be the
last time.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.controller import TaskGroups, group_tasks
from minihra.adapters.hra import HRA, HRAEdit
from minihra.arrays import Array, array_module, packed, unpacked
from minihra.blocks.conformer import Conformer
from minihra.blocks.parameters import Statistics
from minihra.blocks.protocol import Training
from minihra.blocks.self_attention import Positions, position_table
from minihra.layers.heads import HeadParams, Segments
from minihra.model import Labels, Loss, backward, ctc_loss, forward, infer, pack_labels
from minihra.ops import Switch, twins_in
from minihra.optim import AdamW
from minihra.tree import Tree, leaves

SHARE, LEAST, LABELS = 16, 8, 8
"""Batches are padded to a whole multiple of LABELS labels, and of LEAST frames, or where they are longer, of the power
of two that is at most 1/SHARE of their length."""

MOST = 32
"""Shapes that have a graph; what comes after them is computed without one."""


class Inputs(NamedTuple):
    """What differs between batches of one shape, on the GPU."""

    features: Array  # (B, T, F)
    packed: Array  # bytes of what is small: lengths, labels, the rows of TaskGroups
    positions: Positions  # the same in all, but read by the graph, which must find them
    tables: Array | None = None  # bytes: of the heads, which frames are whose, and where its parameters lie
    keep: Array | None = None  # (L, steps, B, T', C)  bool, of dropout


class Slots(NamedTuple):
    """The tasks of a batch as a graph knows them."""

    tasks: list[str]  # in the order of their slots
    heads: dict[str, HeadParams]  # by slot
    segments: Segments
    rows: Array  # (M,)  on the host
    in_order: bool
    tables: Array  # see Inputs

    def edit(self, hra: HRA, rows: Array, batch: int, train_controller: bool) -> HRAEdit:
        """Return the adapter bound to a batch whose `rows` are on the GPU."""
        bound, p = TaskGroups(rows, self.segments, self.in_order), hra.p._replace(heads=self.heads)
        return HRAEdit(p, hra.cell, hra.state_size, bound, batch, train_controller)


class Recordings:
    """The graphs of one computation, by the shape of what goes in."""

    def __init__(self) -> None:
        self._recorded: dict[tuple, tuple[Any, Tree]] = {}
        self._seen: Counter[tuple] | None = Counter()  # None: no graph could be recorded
        self._recorder: Any = None

    def run(self, shape: tuple, inputs: Tree, step: Callable[[], Tree]) -> Tree:
        """Return what the step gives for its inputs, with the graph of their shape, if it has one.

        What a graph gives lies in arrays that it writes into when it runs again. The step runs once for each call.
        """
        if shape not in self._recorded:
            if self._seen is None or len(self._recorded) == MOST:
                return step()
            self._seen[shape] += 1
            if self._seen[shape] == 1:
                return step()
            return self._run_and_record(shape, inputs, step)
        captured, kept = self._recorded[shape]
        for (_, place), (_, given) in zip(leaves(kept), leaves(inputs), strict=True):
            if place is not given:
                place[...] = given
        captured.launch()
        return captured.outputs

    def _run_and_record(self, shape: tuple, inputs: Tree, step: Callable[[], Tree]) -> Tree:
        """Return what the step gives, and record it for the next batch of its shape."""
        self._recorder = self._recorder or twins_in("capture", "cuda").Recorder()
        outputs = None
        try:
            outputs = self._recorder.run(step)
            self._recorded[shape] = self._recorder.record(step), inputs
        except (RuntimeError, MemoryError) as error:
            print(f"minihra: from here on steps run without new CUDA graphs ({error})", file=sys.stderr)
            self._seen = None
        return step() if outputs is None else outputs  # not in `except`, which keeps the arrays of what failed alive


class BatchGraphs(Recordings):
    """The graphs of what a model computes for a batch."""

    def __init__(self, model: Conformer) -> None:
        super().__init__()
        self.model = model

    def inputs_of(self, features: Array, small: Sequence[Array], **more: Array | None) -> Inputs:
        """Return the inputs for padded features (B, T, F), and for the `small` arrays, which are on the host."""
        xp, config = self.model.xp, self.model.config
        T = max(1, config.front_end.frames(features.shape[1]))
        positions = position_table(T, config.width, config.form.attention, features.dtype, xp)
        return Inputs(features, packed(small, xp), positions, **more)

    def padded_features(self, features: Array) -> Array:
        """Return features (B, T, F) of the length of a graph."""
        return padded(features, multiple_for(features.shape[1]), self.model.config.front_end.least)


class AdaptationGraphs(BatchGraphs):
    """Forward, loss and backward of one adapter on one frozen backbone."""

    def __init__(
        self, model: Conformer, hra: HRA, *, blank: int, train_controller: bool = True, recompute: bool = False
    ) -> None:
        super().__init__(model)
        self.hra, self.blank = hra, blank
        self.train_controller, self.recompute = train_controller, recompute

    def gradients(
        self, features: Array, lengths: Array, labels: Sequence[Sequence[int]], tasks: Sequence[str]
    ) -> tuple[Loss, Tree] | None:
        """Return the loss and the adapter's gradients of a batch, of which features (B, T, F) are on the GPU.

        None where no graph can be: for heads that have no kernel, for a batch without a task, and where everything is
        left to the references.
        """
        features = self.padded_features(features)
        if (slots := slots_for(self.model, self.hra, tasks, features.shape[1])) is None:
            return None
        words = padded_labels(labels, self.model.config.labels, self.blank)
        small = [np.asarray(lengths), *words, slots.rows]
        inputs = self.inputs_of(features, small, tables=slots.tables)

        def step() -> tuple[Loss, Tree]:
            lengths, labels, label_lengths, rows = unpacked(inputs.packed, small)
            edit = slots.edit(self.hra, rows, len(features), self.train_controller)
            logits, cache = forward(self.model, features, lengths, edit, recompute=self.recompute)
            loss, dlogits = ctc_loss(logits, cache.context.valid, Labels(labels, label_lengths), blank=self.blank)
            return loss, backward(dlogits, cache).adapter

        loss, gradients = self.run((*shapes(features, *small, slots.tables), slots.in_order), inputs, step)
        own = {task: gradients.heads[slot] for slot, task in zip(slots.heads, slots.tasks, strict=False)}
        return loss, gradients._replace(heads=own)


class PretrainingGraphs(BatchGraphs):
    """Forward, loss and backward of a backbone that trains, whose parameters and running statistics stay in place."""

    def __init__(self, model: Conformer, *, blank: int) -> None:
        super().__init__(model)
        self.blank, self._updates = blank, Recordings()

    def gradients(
        self, features: Array, lengths: Array, labels: Sequence[Sequence[int]], training: Training
    ) -> tuple[Loss, Tree, Statistics] | None:
        """Return the loss, the gradients and the next running statistics of a batch, of which features (B, T, F) and
        the masks of `training` are on the GPU; None where everything is left to the references.
        """
        if not possible():
            return None
        features, keep = self.padded_features(features), training.keep
        if keep is not None:
            front_end = self.model.config.front_end
            keep = padded(keep, max(1, front_end.frames(features.shape[1])), axis=3)
        words = padded_labels(labels, self.model.config.labels, self.blank)
        small = [np.asarray(lengths), *words]
        inputs = self.inputs_of(features, small, keep=keep)

        def step() -> tuple[Loss, Tree, Statistics]:
            lengths, labels, label_lengths = unpacked(inputs.packed, small)
            logits, cache = forward(self.model, features, lengths, None, training._replace(keep=keep))
            loss, dlogits = ctc_loss(logits, cache.context.valid, Labels(labels, label_lengths), blank=self.blank)
            return loss, backward(dlogits, cache).backbone, tuple(layer.statistics for layer in cache.layers)

        return self.run(shapes(features, *small), inputs, step)

    def update(self, optimiser: AdamW, gradients: Tree, rate: float, clip: float) -> Array:
        """Clip the gradients, move the parameters, and return the norm before; as a graph if one gave the gradients."""
        outputs = [captured.outputs for captured, _ in self._recorded.values()]
        number = next((n for n, (_, given, _) in enumerate(outputs) if given is gradients), None)
        rate = self.model.xp.asarray(rate, np.float64)

        def step() -> Array:
            return optimiser.clipped_update(self.model.p, gradients, rate, clip)

        return step() if number is None else self._updates.run((number, id(optimiser), clip), rate, step)


class InferenceGraphs(BatchGraphs):
    """The outputs of a frozen backbone, alone or with an adapter."""

    def __init__(self, model: Conformer, hra: HRA | None = None) -> None:
        super().__init__(model)
        self.hra = hra

    def outputs(self, features: Array, lengths: Array, tasks: Sequence[str]) -> tuple[Array, Array] | None:
        """Return the logits (B, T', V) and their mask (B, T') of features (B, T, F) on the GPU, or None where no graph
        can be: for heads that have no kernel, and where everything is left to the references.
        """
        features, slots = self.padded_features(features), None
        if self.hra is not None and group_tasks(tasks, self.hra.p.heads).segments:
            if (slots := slots_for(self.model, self.hra, tasks, features.shape[1])) is None:
                return None
        elif not possible():
            return None
        rows, tables = ([], None) if slots is None else ([slots.rows], slots.tables)
        small = [np.asarray(lengths), *rows]
        inputs = self.inputs_of(features, small, tables=tables)

        def step() -> tuple[Array, Array]:
            there, *rows = unpacked(inputs.packed, small)
            edit = None if slots is None else slots.edit(self.hra, *rows, len(features), train_controller=False)
            return infer(self.model, features, there, edit)

        key = None if slots is None else (*shapes(*rows, tables), slots.in_order)
        return self.run((features.shape, key), inputs, step)


def possible() -> bool:
    """Whether steps on the GPU can be recorded: not where they are left to the references, whose products cannot."""
    return not Switch.off and twins_in("capture", "cuda") is not None


def shapes(*arrays: Array) -> tuple:
    """Return the shapes of arrays, by which graphs are known."""
    return tuple(a.shape for a in arrays)


def padded_labels(labels: Sequence[Sequence[int]], size: int, blank: int) -> Labels:
    """Return the label sequences of a batch, on the host, padded to the length of a graph."""
    words = pack_labels(labels, size, blank)
    return words._replace(labels=padded(words.labels, LABELS))


def slots_for(model: Conformer, hra: HRA, tasks: Sequence[str], frames: int) -> Slots | None:
    """Return the tasks of a batch of so many feature frames, or None where its heads have no kernel, or no row a task.

    There are as many slots as the batch could have tasks, so that a graph is for any of them.
    """
    kernels, groups = twins_in("heads", "cuda") if possible() else None, group_tasks(tasks, hra.p.heads)
    if kernels is None or not groups.segments:
        return None
    heads, segments = slots_of(groups.segments, min(len(groups.rows), len(hra.p.heads)), hra.p.heads)
    tables = kernels.packed_tables(heads, segments, max(1, model.config.front_end.frames(frames)))
    names = [task for task, _, _ in groups.segments]
    return None if tables is None else Slots(names, heads, segments, groups.rows, groups.in_order, tables)


def slots_of(segments: Segments, slots: int, heads: dict[str, HeadParams]) -> tuple[dict[str, HeadParams], Segments]:
    """Return heads by the number of their task in the batch, and the segments of these; there are as many as `slots`,
    the last ones without rows.
    """
    tasks, end = [task for task, _, _ in segments], segments[-1][2]
    bounds = [(start, stop) for _, start, stop in segments] + [(end, end)] * (slots - len(segments))
    tasks += tasks[:1] * (slots - len(tasks))
    named = {str(slot): heads[task] for slot, task in enumerate(tasks)}
    return named, tuple((slot, *bound) for slot, bound in zip(named, bounds, strict=True))


def multiple_for(frames: int) -> int:
    """Return of what a batch of so many frames is padded to a whole multiple."""
    return max(LEAST, 1 << max(0, (frames // SHARE).bit_length() - 1))


def padded(x: Array, multiple: int, least: int = 0, axis: int = 1) -> Array:
    """Return x (B, T, ...) with zeros behind it, up to a whole multiple of frames, of `least` or more; frames may lie
    along another axis.
    """
    before, T, behind = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    longer = array_module(x).zeros((*before, -(-max(T, least) // multiple) * multiple, *behind), x.dtype)
    longer[(*(slice(None),) * axis, slice(T))] = x
    return longer
