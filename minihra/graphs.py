"""Steps of adaptation on a GPU as CUDA graphs, one for each shape of a batch (kernels/cuda/capture.py).

A graph reads the arrays that it was recorded with. So everything that differs from batch to batch is an input, which
is written into those arrays before the graph runs again: features, lengths and labels, and where the rows of the tasks
and their heads are. Tasks are known to a graph by the number of their place in the batch, its slot; batches are padded,
so that few shapes occur. A shape that comes for the first time is computed without a graph, as it may be the last time.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.controller import TaskGroups, group_tasks
from minihra.adapters.hra import HRA, HRAEdit
from minihra.arrays import Array, array_module, uploaded
from minihra.blocks.conformer import Conformer
from minihra.blocks.self_attention import Positions, position_table
from minihra.layers.heads import HeadParams, Segments
from minihra.model import Labels, Loss, backward, ctc_loss, forward, pack_labels
from minihra.ops import Switch, twins_in
from minihra.tree import Tree, leaves

SHARE, LEAST, LABELS = 16, 8, 8
"""Batches are padded to a whole multiple of LABELS labels, and of LEAST frames, or where they are longer, of the power
of two that is at most 1/SHARE of their length."""

MOST = 32
"""Shapes that have a graph; what comes after them is computed without one."""


class StepInputs(NamedTuple):
    """What differs between batches of one shape, on the GPU."""

    features: Array  # (B, T, F)
    packed: Array  # bytes of the lengths, the labels, and the rows of TaskGroups
    tables: Array  # bytes: of the heads, which frames are whose, and where its parameters lie
    positions: Positions  # the same in all, but read by the graph, which must find them


class Graphs:
    """The graphs of one adapter on one backbone."""

    def __init__(
        self, model: Conformer, hra: HRA, *, blank: int, train_controller: bool = True, recompute: bool = False
    ) -> None:
        self.model, self.hra, self.blank = model, hra, blank
        self.train_controller, self.recompute = train_controller, recompute
        self._recorded: dict[tuple, tuple[Any, StepInputs]] = {}
        self._seen: Counter[tuple] | None = Counter()  # None: no graph could be recorded
        self._recorder: Any = None

    def gradients(
        self, features: Array, lengths: Array, labels: Sequence[Sequence[int]], tasks: Sequence[str]
    ) -> tuple[Loss, Tree] | None:
        """Return the loss and the adapter's gradients of a batch, of which features (B, T, F) are on the GPU.

        Both lie in arrays that the next step writes into. None where no graph can be: for heads that have no kernel,
        for a batch without a task, and where everything is left to the references.
        """
        kernels = None if Switch.off else twins_in("heads", "cuda")
        if kernels is None:
            return None
        xp, B, hra = self.model.xp, len(features), self.hra
        groups = group_tasks(tasks, hra.p.heads)
        if not groups.segments:
            return None
        heads, segments = slots_of(groups.segments, min(len(groups.rows), len(hra.p.heads)), hra.p.heads)
        config = self.model.config
        words = pack_labels(labels, config.labels, self.blank)
        features = padded(features, multiple_for(features.shape[1]), config.front_end.least)
        padded_labels = padded(words.labels, LABELS)
        T = max(1, config.front_end.frames(features.shape[1]))
        tables = kernels.packed_tables(heads, segments, T)
        if tables is None:
            return None
        packed, small = uploaded([np.asarray(lengths), padded_labels, words.lengths, groups.rows], xp)
        positions = position_table(T, config.width, config.form.attention, features.dtype, xp)
        inputs = StepInputs(features, packed, tables, positions)

        def step() -> tuple[Loss, Tree]:
            lengths, labels, label_lengths, rows = small
            bound = TaskGroups(rows, segments, groups.in_order)
            edit = HRAEdit(hra.p._replace(heads=heads), hra.cell, hra.state_size, bound, B, self.train_controller)
            logits, cache = forward(self.model, inputs.features, lengths, edit, recompute=self.recompute)
            loss, dlogits = ctc_loss(logits, cache.context.valid, Labels(labels, label_lengths), blank=self.blank)
            return loss, backward(dlogits, cache).adapter

        shapes = [a.shape for a in (features, *small, tables)]
        loss, gradients = self._run((*shapes, groups.in_order), inputs, step)
        own = {task: gradients.heads[str(slot)] for slot, (task, _, _) in enumerate(groups.segments)}
        return loss, gradients._replace(heads=own)

    def _run(self, shape: tuple, inputs: StepInputs, step: Callable[[], Tree]) -> Tree:
        """Return what the step gives for its inputs, with the graph of their shape, if it has one."""
        if shape not in self._recorded:
            if self._seen is None or len(self._recorded) == MOST:
                return step()
            self._seen[shape] += 1
            if self._seen[shape] == 1:
                return step()
            self._recorder = self._recorder or twins_in("capture", "cuda").Recorder()
            try:
                self._recorded[shape] = self._recorder.record(step), inputs
            except (RuntimeError, MemoryError) as error:
                print(f"minihra: from here on steps run without new CUDA graphs ({error})", file=sys.stderr)
                self._seen = None
        if shape not in self._recorded:  # and not in `except`, which keeps the arrays of the step that failed alive
            return step()
        captured, kept = self._recorded[shape]
        for (_, place), (_, given) in zip(leaves(kept), leaves(inputs), strict=True):
            if place is not given:
                place[...] = given
        captured.launch()
        return captured.outputs


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


def padded(x: Array, multiple: int, least: int = 0) -> Array:
    """Return x (B, T, ...) with zeros behind it, up to a whole multiple of frames, of `least` or more."""
    T = x.shape[1]
    longer = array_module(x).zeros((len(x), -(-max(T, least) // multiple) * multiple, *x.shape[2:]), x.dtype)
    longer[:, :T] = x
    return longer
