"""Twins of mixed-task heads: the product of each task's rows goes straight into its place.

Large batches are shared among the threads, some tasks each.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from minihra.arrays import Array, array_module
from minihra.layers.activations import ReluCache
from minihra.layers.heads import FFNHeadCache, FFNHeadParams, GroupedHeadsCache, HeadParams, Segments
from minihra.layers.linear import LinearCache, LinearParams
from minihra.threads import alone, share, threads

WORTH = 2**22
"""Elements of the result from which on it pays to wake the other threads."""


def over_tasks(one_task: Callable[[str, slice], Any], segments: Segments, size: int) -> dict[str, Any]:
    """Return one_task(task, its rows) of each segment by task, computed by several threads if it pays."""

    def some_tasks(some: Segments) -> list[tuple[str, Any]]:
        return [(task, one_task(task, slice(start, stop))) for task, start, stop in some]

    if size < WORTH or alone():
        return dict(some_tasks(segments))
    results = share([partial(some_tasks, some) for some in portions(segments)])
    return dict(pair for part in results for pair in part)


def portions(segments: Segments) -> list[Segments]:
    """Return the segments in as many portions as there are threads, of about as many rows each."""
    rows, n = segments[-1][2], threads()
    cuts = [sum(start < rows * i / n for _, start, _ in segments) for i in range(n + 1)]
    return [segments[i:j] for i, j in pairwise(cuts) if i < j]


def flat(x: Array) -> Array:
    """Return x (B, T, H) as (B T, H)."""
    return x.reshape(-1, x.shape[-1])


def grouped_heads_forward(
    h: Array, heads: dict[str, HeadParams], *, segments: Segments, params: bool = True
) -> tuple[Array, GroupedHeadsCache]:
    """Map h (B, T, H), rows sorted by task, to o (B, T, C)."""
    xp, p = array_module(h), heads[segments[0][0]]
    C = (p.down if isinstance(p, FFNHeadParams) else p).W.shape[1]
    o = xp.empty((*h.shape[:2], C), h.dtype)

    def linear(x: Array, p: LinearParams, rows: slice) -> LinearCache:
        place = flat(o[rows])
        xp.matmul(flat(x), p.W, out=place)
        if p.b is not None:
            place += p.b
        return LinearCache(x if params else None, p)

    def one_task(task: str, rows: slice) -> LinearCache | FFNHeadCache:
        p = heads[task]
        if isinstance(p, LinearParams):
            return linear(h[rows], p, rows)
        a = flat(h[rows]) @ p.up.W
        if p.up.b is not None:
            a += p.up.b
        a = xp.maximum(a, 0).reshape(*h[rows].shape[:2], -1)
        up, relu = LinearCache(h[rows] if params else None, p.up), ReluCache(a > 0)
        return FFNHeadCache(up, relu, linear(a, p.down, rows))

    return o, GroupedHeadsCache(over_tasks(one_task, segments, o.size), segments)


def grouped_heads_backward(do: Array, cache: GroupedHeadsCache) -> tuple[Array, dict[str, HeadParams | None]]:
    """Return dh (B, T, H) and the gradients of the heads in the batch for do (B, T, C); other tasks have no entry."""
    xp, first = array_module(do), cache.heads[cache.segments[0][0]]
    H = (first.up if isinstance(first, FFNHeadCache) else first).p.W.shape[0]
    dh = xp.empty((*do.shape[:2], H), do.dtype)

    def gradients(dy: Array, its: LinearCache) -> LinearParams | None:
        return None if its.x is None else LinearParams(flat(its.x).T @ dy, None if its.p.b is None else dy.sum(0))

    def one_task(task: str, rows: slice) -> HeadParams | None:
        its, dy, place = cache.heads[task], flat(do[rows]), flat(dh[rows])
        if isinstance(its, LinearCache):
            xp.matmul(dy, its.p.W.T, out=place)
            return gradients(dy, its)
        da = dy @ its.down.p.W.T
        da *= flat(its.relu.positive)
        xp.matmul(da, its.up.p.W.T, out=place)
        ddown = gradients(dy, its.down)
        return None if ddown is None else FFNHeadParams(gradients(da, its.up), ddown)

    return dh, over_tasks(one_task, cache.segments, do.size)
