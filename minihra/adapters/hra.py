"""Hierarchical Recurrent Adapters: one controller for all tasks, one head for each. Munkhdalai et al. 2024, 2403.19709.

    hra = HRA(width=96, state_size=32)
    hra.add_task("george")
    logits, cache = forward(backbone, features, lengths, hra.edit(tasks))        # see minihra/model.py

An HRA cannot be merged into its backbone, as LoRA can: it is recurrent and non-linear.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minihra.adapters.controller import (
    BASE,
    DepthStepCache,
    HRAParams,
    Ranges,
    TaskGroups,
    depth_step_backward,
    depth_step_forward,
    group_frames,
    group_tasks,
    without_padding,
)
from minihra.adapters.parts import CELLS, HEADS, initial_controller, initial_head, known
from minihra.arrays import Array, array_module
from minihra.device import moved
from minihra.tree import count, map_leaves


class ParameterCount(NamedTuple):
    """How many parameters an adapter has."""

    shared: int  # the controller
    per_task: int  # one head
    tasks: int
    total: int
    share: float | None  # of the backbone's parameters


class HRA:
    """The parameters of one HRA, by name of task, and the ways to change and apply them.

    `bottleneck` is the inner width R of "ffn" heads; without one it is the state size. Parameters have `dtype`.

    Raises:
        ValueError: an unknown cell or head (the message lists the known ones), a size below 1, or a bottleneck for
            heads that have none.
    """

    def __init__(
        self,
        width: int,
        state_size: int,
        *,
        cell: str = "gru",
        head: str = "linear",
        bottleneck: int | None = None,
        seed: int = 0,
        dtype: np.dtype = np.float32,
    ) -> None:
        if head == "linear" and bottleneck is not None:
            raise ValueError("a linear head has no bottleneck; leave it out, or take head='ffn'")
        self.cell, self.head = known("cell", cell, CELLS), known("head", head, HEADS)
        self.width, self.state_size = width, state_size
        self.bottleneck = state_size if bottleneck is None else bottleneck
        for size in ("width", "state_size", "bottleneck"):
            if getattr(self, size) < 1:
                raise ValueError(f"{size} must be at least 1, got {getattr(self, size)}")
        self.dtype = np.dtype(dtype)
        self._rng = np.random.default_rng(seed)
        self.p = HRAParams(initial_controller(cell, width, state_size, self._rng, self.dtype), {})

    @property
    def task_names(self) -> tuple[str, ...]:
        """The names of the tasks, in the order in which they were added."""
        return tuple(self.p.heads)

    def add_task(self, name: str, like: str | None = None) -> None:
        """Add a task, whose head changes nothing until it is trained; or starts as a copy of the task `like`.

        Raises:
            ValueError: the name is no text, taken, empty, or "base", the name of the frozen model; or there is no task
                `like`.
        """
        self.check_new_name(name)
        if like is not None:
            self.p.heads[name] = map_leaves(lambda leaf: leaf.copy(), self.p.heads[known("task", like, self.p.heads)])
            return
        shapes = HEADS[self.head](self.width, self.state_size, self.bottleneck)
        self.p.heads[name] = initial_head(shapes, self._rng, self.dtype)

    def check_new_name(self, name: str) -> None:
        """Raise the ValueError of `add_task` if no new task can have this name."""
        if not isinstance(name, str):
            raise ValueError(f"the name of a task is a text, got {name!r}")
        if name in ("", BASE):
            raise ValueError(f"a task cannot be named {name!r}; 'base' is the frozen model")
        if name in self.p.heads:
            raise ValueError(f"task {name!r} exists already; known: {', '.join(self.task_names)}")

    def remove_task(self, name: str) -> None:
        """Remove a task and its head. An optimiser keeps the moments of its name: train a successor with a new one.

        Raises:
            ValueError: there is no such task.
        """
        del self.p.heads[known("task", name, self.p.heads)]

    def move(self, xp: ModuleType) -> None:
        """Take its parameters to the array module `xp`, where those of its backbone are."""
        self.p = moved(self.p, xp)

    def count_parameters(self, backbone: int | None = None) -> ParameterCount:
        """Count the parameters, and their share of `backbone`, the number of parameters of the frozen model."""
        shapes = HEADS[self.head](self.width, self.state_size, self.bottleneck)
        shared, total = count(self.p.controller), count(self.p)
        per_task = count(shapes)
        return ParameterCount(shared, per_task, len(self.p.heads), total, backbone and total / backbone)

    def edit(
        self,
        tasks: Sequence[str | Ranges],
        *,
        frames: int | None = None,
        lengths: Sequence[int] | None = None,
        train_controller: bool = True,
    ) -> "HRAEdit | None":
        """Bind the adapter to a batch whose row b is of task `tasks[b]`; None where every row is "base".

        Within a row tasks may change, as in a recording of several speakers: `tasks[b]` then lists (task, first frame,
        the one behind the last) of the layers' frames, of which there are `frames` in a row, T'; what is in no range
        is "base". For tasks of rows, `lengths` (B,) are how many of the frames are real: where many are padding,
        nothing is computed for those. With `train_controller=False` the backward gives no gradient of the controller:
        for tasks that are added later.

        Raises:
            ValueError: an unknown task; the message lists the known ones. Ranges that overlap or lie beyond `frames`;
                lengths of another number of rows, without `frames`, or for rows of several tasks.
        """
        xp = array_module(self.p.controller.W)
        if lengths is not None:
            if frames is None or any(not isinstance(task, str) for task in tasks):
                raise ValueError("`lengths` need `frames`, how many frames a row has, and a task for each row")
            group_tasks(tasks, self.p.heads)  # a mistake is told of a row without frames, too
            ranges = without_padding(tasks, lengths, frames)
            tasks, frames = (tasks, None) if ranges is None else (ranges, frames)
        if frames is None:
            if any(not isinstance(task, str) for task in tasks):
                raise ValueError("tasks of ranges of frames need `frames`, how many frames a row has")
            groups = group_tasks(tasks, self.p.heads, xp)
        else:
            groups = group_frames(tasks, self.p.heads, frames, xp)
        if not groups.segments:
            return None
        return HRAEdit(self.p, self.cell, self.state_size, groups, len(tasks), train_controller, frames)


class HRAEdit(NamedTuple):
    """An HRA bound to the tasks of one batch: an edit (blocks/protocol.py) whose carry is the controller's state."""

    p: HRAParams
    cell: str
    state_size: int
    groups: TaskGroups
    batch: int
    train_controller: bool
    frames: int | None = None  # of a row, where tasks are those of frames
    sites = frozenset({"block"})

    def forward(
        self, site: str, l: int, x: Array, u: Array | None, carry: Array | None
    ) -> tuple[Array, Array, DepthStepCache]:
        """Return u_l (B, T, C), h_l (M T, H) and the cache for layer output x (B, T, C) and carry h_{l-1}, None = h_0.

        Raises:
            ValueError: the batch has another number of rows, or of frames, than tasks were given for, or the layer
                another width than the adapter.
        """
        width = self.p.controller.W.shape[0]
        if x.shape[2] != width:
            raise ValueError(f"the adapter is for layers of width {width}, but layer {l + 1} has {x.shape[2]}")
        if len(x) != self.batch:
            raise ValueError(f"{self.batch} tasks were given for a batch of {len(x)} rows")
        if self.frames not in (None, x.shape[1]):
            raise ValueError(f"tasks were given for rows of {self.frames} frames, but layer {l + 1} has {x.shape[1]}")
        if carry is None:
            carry = array_module(x).zeros((self.groups.count(x.shape[1]), self.state_size), x.dtype)
        return depth_step_forward(x, carry, self.p, cell=self.cell, groups=self.groups, params=self.train_controller)

    def backward(
        self, site: str, l: int, du: Array, dcarry: Array | None, cache: DepthStepCache
    ) -> tuple[Array, None, Array | None, HRAParams]:
        """Return dx, du = None (there was no u before), dh_{l-1} and the gradient of controller and heads."""
        dx, dh, dp = depth_step_backward(du, dcarry, cache)
        return dx, None, dh, dp
