"""One step of HRA over depth, for a batch of mixed tasks. Munkhdalai et al. 2024, arXiv 2403.19709.

    h_l = cell(x_l, h_{l-1}; controller)         every frame on its own; h_0 = 0
    u_l = head_n(h_l)                            n the task of the row; the block adds it: x'_l = x_l + u_l

Rows without a task ("base") are left out of both lines, and u is 0 there. The others stand sorted by task in h, so
that the state of a task is one segment and meets its head in one product. Where tasks change within a row, as in a
recording of several speakers, its frames stand sorted so, each as if it were a row of one frame.
"""

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.parts import CELLS, CellParams
from minihra.arrays import Array, array_module
from minihra.layers.heads import GroupedHeadsCache, HeadParams, Segments
from minihra.ops import grouped_heads_backward, grouped_heads_forward

BASE = "base"
"""The task of a row that wants the frozen model itself."""


class HRAParams(NamedTuple):
    """Parameters of an HRA."""

    controller: CellParams
    heads: dict[str, HeadParams]


Ranges = Sequence[tuple[str, int, int]]
"""The tasks of the frames of a row: (task, first frame, the one behind the last); frames in none are "base"."""


PADDING = 1 / 8
"""Share of the frames of a batch that are padding from which on a step takes less time if its others are gathered."""


def without_padding(tasks: Sequence[str], lengths: Sequence[int], frames: int) -> list[Ranges] | None:
    """Return the ranges of the real frames, `lengths` (B,) of `frames`; None where so few are padding that rows are
    better left as they are, and where nothing is real.

    Raises:
        ValueError: there are lengths of another number of rows.
    """
    if len(tasks) != len(lengths):
        raise ValueError(f"{len(tasks)} tasks were given for a batch of {len(lengths)} rows")
    if not any(lengths) or sum(lengths) > (1 - PADDING) * frames * len(lengths):
        return None
    return [[(task, 0, n)] if n else [] for task, n in zip(tasks, lengths, strict=True)]


class TaskGroups(NamedTuple):
    """Which rows of a batch an adapter edits, grouped by task once for all layers."""

    rows: Array | tuple[Array, Array]  # (M,)  the rows with a task, sorted by task; or row and frame, (M,) each
    segments: Segments  # (task, start, stop) into them
    in_order: bool  # they are the whole batch as it stands, of which nothing need be copied

    def count(self, T: int) -> int:
        """Return how many frames they have, in rows of T frames."""
        return len(self.rows[0]) if isinstance(self.rows, tuple) else len(self.rows) * T


def group_tasks(tasks: Sequence[str], names: Collection[str], xp: ModuleType = np) -> TaskGroups:
    """Group the rows of a batch by their task, in the order of first appearance.

    Raises:
        ValueError: a task is neither "base" nor in `names`; the message lists the known ones.
    """
    rows_of: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        if task != BASE:
            check_task(row, task, names)
            rows_of.setdefault(task, []).append(row)
    order = [row for rows in rows_of.values() for row in rows]
    segments = segments_of({task: len(rows) for task, rows in rows_of.items()})
    return TaskGroups(xp.asarray(order, dtype=int), segments, order == list(range(len(tasks))))


def group_frames(tasks: Sequence[str | Ranges], names: Collection[str], frames: int, xp: ModuleType = np) -> TaskGroups:
    """Group the frames of a batch, whose rows have `frames` of them, by their task.

    Raises:
        ValueError: an unknown task, or a range that is empty, beyond the frames, or overlaps another one of its row.
    """
    places_of: dict[str, list[tuple[Array, Array]]] = {}
    for row, given in enumerate(tasks):
        behind, ranges = 0, [(given, 0, frames)] if isinstance(given, str) else given
        for task, first, stop in sorted(ranges, key=itemgetter(1)):
            if not behind <= first < stop <= frames:
                which = f"frames {first} to {stop} of {task!r}"
                raise ValueError(f"row {row}: {which}: ranges are of the frames 0 to {frames} and do not overlap")
            behind = stop
            if task != BASE:
                check_task(row, task, names)
                its = np.arange(first, stop)
                places_of.setdefault(task, []).append((np.full_like(its, row), its))
    segments = segments_of({task: sum(len(its) for _, its in places) for task, places in places_of.items()})
    places = [place for of_task in places_of.values() for place in of_task] or [(np.zeros(0, int), np.zeros(0, int))]
    rows, its = (xp.asarray(np.concatenate(some)) for some in zip(*places, strict=True))
    return TaskGroups((rows, its), segments, in_order=False)


def check_task(row: int, task: str, names: Collection[str]) -> None:
    """Raise what `group_tasks` says of an unknown task."""
    if task not in names:
        raise ValueError(f"row {row}: unknown task {task!r}; known: {', '.join([BASE, *names])}")


def segments_of(counts: dict[str, int]) -> Segments:
    """Return the segments of tasks that have so many rows, one after the other."""
    ends = [*accumulate(counts.values(), initial=0)]
    return tuple((task, start, stop) for task, (start, stop) in zip(counts, pairwise(ends), strict=True))


def scattered(some: Array, rows: Array | tuple[Array, Array], like: Array) -> Array:
    """Return a batch like `like` with `some` in these rows, or frames of them, and zeros in the others."""
    all_rows = array_module(like).zeros_like(like)
    all_rows[rows] = some
    return all_rows


class DepthStepCache(NamedTuple):
    """What `depth_step_backward` reads."""

    cell: str
    state: Any  # the cell's cache
    heads: GroupedHeadsCache
    groups: TaskGroups


def depth_step_forward(
    x: Array, h: Array, p: HRAParams, *, cell: str, groups: TaskGroups, params: bool = True
) -> tuple[Array, Array, DepthStepCache]:
    """Step the controller from h (M T, H) to h_next on layer output x (B, T, C).

    `params=False` says that the controller is frozen; heads always train. Returns u (B, T, C), h_next (M T, H) and the
    cache.
    """
    rows = x if groups.in_order else x[groups.rows]  # (M, T, C), or frames (M, C)
    h_next, state = CELLS[cell].pair.forward(rows.reshape(-1, x.shape[2]), h, p.controller, params=params)  # (1)
    by_row = h_next.reshape(len(rows), -1, h_next.shape[1])
    u, heads = grouped_heads_forward(by_row, p.heads, segments=groups.segments)  # (2)
    if not groups.in_order:
        u = scattered(u.reshape(rows.shape), groups.rows, x)  # (3)
    return u, h_next, DepthStepCache(cell, state, heads, groups)


def depth_step_backward(
    du: Array, dh_next: Array | None, cache: DepthStepCache
) -> tuple[Array, Array | None, HRAParams]:
    """Return dx (B, T, C), dh (M T, H) and dp for du (B, T, C) and dh_next (M T, H) from the layer above (None = 0)."""
    do = du if cache.groups.in_order else du[cache.groups.rows]  # (3)
    dh_head, dheads = grouped_heads_backward(do.reshape(len(do), -1, do.shape[-1]), cache.heads)  # (2)
    dh_head = dh_head.reshape(-1, dh_head.shape[-1])
    dh_next = dh_head if dh_next is None else dh_head + dh_next
    dx_rows, dh, dcontroller = CELLS[cache.cell].pair.backward(dh_next, cache.state)  # (1)
    dx = dx_rows.reshape(do.shape)
    if not cache.groups.in_order:
        dx = scattered(dx, cache.groups.rows, du)  # (1)
    return dx, dh, HRAParams(dcontroller, dheads)
