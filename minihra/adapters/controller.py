"""One step of HRA over depth, for a batch of mixed tasks. Munkhdalai et al. 2024, arXiv 2403.19709.

    h_l = cell(x_l, h_{l-1}; controller)         every frame on its own; h_0 = 0
    u_l = head_n(h_l)                            n the task of the row; the block adds it: x'_l = x_l + u_l

Rows without a task ("base") are left out of both lines, and u is 0 there. The others stand sorted by task in h, so
that the state of a task is one segment and meets its head in one product.
"""

from collections.abc import Collection, Sequence
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


class TaskGroups(NamedTuple):
    """Which rows of a batch an adapter edits, grouped by task once for all layers."""

    rows: Array  # (M,)  indices of the rows with a task, sorted by task
    segments: Segments  # (task, start, stop) into them
    in_order: bool  # they are the whole batch as it stands, of which nothing need be copied


def group_tasks(tasks: Sequence[str], names: Collection[str], xp: ModuleType = np) -> TaskGroups:
    """Group the rows of a batch by their task, in the order of first appearance.

    Raises:
        ValueError: a task is neither "base" nor in `names`; the message lists the known ones.
    """
    rows_of: dict[str, list[int]] = {}
    for row, task in enumerate(tasks):
        if task != BASE:
            if task not in names:
                raise ValueError(f"row {row}: unknown task {task!r}; known: {', '.join([BASE, *names])}")
            rows_of.setdefault(task, []).append(row)
    segments, start = [], 0
    for task, rows in rows_of.items():
        segments.append((task, start, start + len(rows)))
        start += len(rows)
    order = [row for rows in rows_of.values() for row in rows]
    return TaskGroups(xp.asarray(order, dtype=int), tuple(segments), order == list(range(len(tasks))))


def scattered(some: Array, rows: Array, like: Array) -> Array:
    """Return a batch like `like` with `some` in these rows and zeros in the others."""
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
    (_, T, C), M = x.shape, len(groups.rows)
    rows = (x if groups.in_order else x[groups.rows]).reshape(M * T, C)
    h_next, state = CELLS[cell].pair.forward(rows, h, p.controller, params=params)  # (1)
    u, heads = grouped_heads_forward(h_next.reshape(M, T, -1), p.heads, segments=groups.segments)  # (2)
    if not groups.in_order:
        u = scattered(u, groups.rows, x)  # (3)
    return u, h_next, DepthStepCache(cell, state, heads, groups)


def depth_step_backward(
    du: Array, dh_next: Array | None, cache: DepthStepCache
) -> tuple[Array, Array | None, HRAParams]:
    """Return dx (B, T, C), dh (M T, H) and dp for du (B, T, C) and dh_next (M T, H) from the layer above (None = 0)."""
    do = du if cache.groups.in_order else du[cache.groups.rows]  # (3)
    dh_head, dheads = grouped_heads_backward(do, cache.heads)  # (2)
    dh_head = dh_head.reshape(-1, dh_head.shape[-1])
    dh_next = dh_head if dh_next is None else dh_head + dh_next
    dx_rows, dh, dcontroller = CELLS[cache.cell].pair.backward(dh_next, cache.state)  # (1)
    dx = dx_rows.reshape(do.shape)
    if not cache.groups.in_order:
        dx = scattered(dx, cache.groups.rows, du)  # (1)
    return dx, dh, HRAParams(dcontroller, dheads)
