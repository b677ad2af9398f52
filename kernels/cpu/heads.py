"""Twins of mixed-task heads: all tasks of a batch in one compiled loop, which finds their matrices by their addresses.

A call from Python for each head would cost as much as the product of one row of 100 frames, and threads would wait for
the interpreter's lock. The threads of OpenMP share the frames of a batch, unless the caller has but its own thread.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from minihra.arrays import Array
from minihra.kernels.cpu.addresses import table_of
from minihra.kernels.cpu.compiled import ZERO, bounds_for, compiled, copy_row, must_have
from minihra.kernels.cpu.openmp import compiled_for_threads
from minihra.kernels.cpu.product import NARROW, Matrix, after, matrix, multiply, turn
from minihra.layers.activations import ReluCache
from minihra.layers.heads import FFNHeadCache, FFNHeadParams, GroupedHeadsCache, HeadParams, Segments
from minihra.layers.linear import LinearCache, LinearParams

FRAMES = 128
"""How many frames of a task give their share of its gradients together, while they are in the cache."""


@compiled_for_threads
def _shared_maps(x: Array, starts: Array, Ws: Array, bs: Array, y: Array, bounds: Array) -> None:
    """Compute the rows between two bounds as one portion."""
    for n in prange(len(bounds) - 1):
        _maps(x, starts, Ws, bs, y, bounds[n], bounds[n + 1])


@compiled
def _maps(x: Array, starts: Array, Ws: Array, bs: Array, y: Array, low: int, high: int) -> None:
    """Let the rows `low` ... of y (N, O) be those of x (N, I) by the map of their segment, which lies at Ws and bs."""
    (_, I), O, number = x.shape, y.shape[1], x.dtype.type(0)
    all_x, all_y = matrix(x), matrix(y)
    for n in range(len(Ws)):
        first, last = max(low, starts[n]), min(high, starts[n + 1])
        if first < last:
            W, b = Matrix(Ws[n], 0, O, 1), Matrix(bs[n], 0, 0, 1)
            multiply(number, last - first, I, O, after(all_x, first * I), W, b, after(all_y, first * O))


@compiled_for_threads
def _shared_maps_back(
    dy: Array,
    starts: Array,
    Ws: Array,
    xs: Array,
    dx: Array,
    dW: Array,
    db: Array,
    dW_cut: Array,
    db_cut: Array,
    bounds: Array,
) -> None:
    """Compute the rows between two bounds as one portion, each with its own of dW_cut and db_cut."""
    for n in prange(len(bounds) - 1):
        _maps_back(dy, starts, Ws, xs, dx, dW, db, dW_cut[n], db_cut[n], bounds[n], bounds[n + 1])


@compiled
def _maps_back(
    dy: Array,
    starts: Array,
    Ws: Array,
    xs: Array,
    dx: Array,
    dW: Array,
    db: Array,
    dW_cut: Array,
    db_cut: Array,
    low: int,
    high: int,
) -> None:
    """Let the rows `low` ... of dx (N, I) be those of dy (N, O) by the turned matrix of their segment.

    Where xs has the addresses of what went into the maps, let dW (S, I, O) and db (S, O) be the gradients; those of a
    segment that has begun in other rows go to dW_cut (I, O) and db_cut (O,), to be added.
    """
    (_, O), I, number = dy.shape, dx.shape[1], dy.dtype.type(0)
    all_dy, all_dx = matrix(dy), matrix(dx)
    turned, zeros, made = np.empty((O, I), dy.dtype), np.empty(max(I, O), dy.dtype), np.empty((I, O), dy.dtype)
    for i in range(len(zeros)):
        zeros[i] = ZERO
    for n in range(len(Ws)):
        first, last, zero = max(low, starts[n]), min(high, starts[n + 1]), matrix(zeros)
        if first < last:
            turn(number, I, O, Matrix(Ws[n], 0, O, 1), matrix(turned))
        for begin in range(first, last, FRAMES):
            end, its_dy = min(begin + FRAMES, last), after(all_dy, begin * O)
            multiply(number, end - begin, O, I, its_dy, matrix(turned), zero, after(all_dx, begin * I))
            if len(xs) > 0:
                x = Matrix(xs[n], (begin - starts[n]) * I, 1, I)  # turned: its rows are the features
                its_dW, its_db = (dW_cut, db_cut) if first > starts[n] else (dW[n], db[n])
                sums = matrix(its_dW)
                before = zero if begin == first else sums
                if begin == first:
                    for o in range(O):
                        its_db[o] = ZERO
                twice = O % NARROW > 0  # some columns are made twice, the second time from what they were before
                multiply(number, I, end - begin, O, x, its_dy, before, matrix(made) if twice else sums)
                for i in range(I if twice else 0):
                    copy_row(made[i], its_dW[i])
                for row in range(begin, end):
                    for o in range(O):
                        its_db[o] += dy[row, o]


def join(starts: Array, bounds: Array, dW: Array, db: Array, dW_cut: Array, db_cut: Array) -> None:
    """Add to dW (S, I, O) and db (S, O) what a portion has of a segment that began in an earlier one. Segments without
    frames, which no portion has met, have zeros.
    """
    empty = starts[:-1] == starts[1:]
    dW[empty], db[empty] = 0, 0
    for i in range(1, len(bounds) - 1):
        n = np.searchsorted(starts, bounds[i], side="right") - 1
        if starts[n] < bounds[i] < bounds[i + 1]:
            dW[n] += dW_cut[i]
            db[n] += db_cut[i]


class Same:
    """The maps of a batch as a key, which keeps them alive: keys are equal if they name the very same maps."""

    def __init__(self, params: Sequence[LinearParams]) -> None:
        self.params, self.names = params, tuple(map(id, params))

    def __hash__(self) -> int:
        return hash(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.names == other.names


class Maps(NamedTuple):
    """A linear map I -> O of each task in the batch, and where it lies."""

    params: Sequence[LinearParams]
    Ws: Array  # (S,)  addresses
    bs: Array  # (S,)
    no_bias: Array  # (O,)  in place of a bias; it must live as long as its address


@lru_cache(maxsize=8)
def maps_of(batch: Same, dtype: np.dtype) -> Maps | None:
    """Return the maps, or None if they are nothing for the loops. Those of the last batches are kept: all layers of a
    step ask for the same.
    """
    params = batch.params
    S, shape = len(params), params[0].W.shape
    no_bias = np.zeros(shape[1], dtype)
    Ws = table_of([p.W for p in params], repeat(shape, S), dtype)
    bs = table_of([no_bias if p.b is None else p.b for p in params], repeat(no_bias.shape, S), dtype)
    return None if Ws is None or bs is None or min(shape) < NARROW else Maps(params, Ws, bs, no_bias)


def levels_of(heads: Sequence[Any]) -> list[list[Any]]:
    """Return the linear maps that heads consist of, or the maps' caches, from below; nothing if there is no head, or
    heads of several kinds.
    """
    kinds = {type(head) for head in heads}
    if kinds in ({LinearParams}, {LinearCache}):
        return [list(heads)]
    if kinds in ({FFNHeadParams}, {FFNHeadCache}):
        return [[head.up for head in heads], [head.down for head in heads]]
    return []


def starts_of(segments: Segments, T: int) -> Array:
    """Return where the frames of each segment begin, and where the last ones end: (S + 1,)."""
    return T * np.array([start for _, start, _ in segments] + [segments[-1][2]], np.int64)


def grouped_heads_forward(
    h: Array, heads: dict[str, HeadParams], *, segments: Segments, params: bool = True
) -> tuple[Array, GroupedHeadsCache]:
    """Map h (B, T, H), rows sorted by task, to o (B, T, C)."""
    (B, T, H), its = h.shape, [heads[task] for task, _, _ in segments]
    levels = [maps_of(Same(level), h.dtype) for level in levels_of(its)] if isinstance(h, np.ndarray) else []
    if not levels or None in levels:
        return NotImplemented
    must_have((segments[-1][2], T, len(levels[0].params[0].W)), h)
    starts, x, inputs = starts_of(segments, T), np.ascontiguousarray(h).reshape(B * T, H), []
    for maps in levels:
        if inputs:
            np.maximum(x, 0, out=x)
        inputs.append(x.reshape(B, T, -1))
        y = np.empty((B * T, len(maps.no_bias)), x.dtype)
        bounds = bounds_for(B * T, y.size)
        if len(bounds) > 2:
            _shared_maps(x, starts, maps.Ws, maps.bs, y, bounds)
        else:
            _maps(x, starts, maps.Ws, maps.bs, y, *bounds)
        x = y
    caches = {}
    for (task, start, stop), p in zip(segments, its, strict=True):
        kept = [x[start:stop] if params else None for x in inputs]
        if isinstance(p, LinearParams):
            caches[task] = LinearCache(*kept, p)
        else:
            up, down = (LinearCache(x, q) for x, q in zip(kept, p, strict=True))
            caches[task] = FFNHeadCache(up, ReluCache(inputs[1][start:stop] > 0), down)
    return y.reshape(B, T, -1), GroupedHeadsCache(caches, segments)


def level_backward(
    dy: Array, starts: Array, maps: Maps, xs: Array | None
) -> tuple[Array, list[LinearParams] | list[None]]:
    """Return dx (N, I) and the gradients of each map for dy (N, O); xs are the addresses of the frames that it met."""
    (N, O), (I, _), S = dy.shape, maps.params[0].W.shape, len(maps.params)
    dx, bounds, frozen = np.empty((N, I), dy.dtype), bounds_for(N, dy.size), xs is None
    dW, db = (np.empty(shape, dy.dtype) for shape in ((0 if frozen else S, I, O), (0 if frozen else S, O)))
    cut = np.empty((len(bounds) - 1, I, O), dy.dtype), np.empty((len(bounds) - 1, O), dy.dtype)
    arrays = dy, starts, maps.Ws, np.empty(0, np.int64) if frozen else xs, dx, dW, db
    if len(bounds) > 2:
        _shared_maps_back(*arrays, *cut, bounds)
    else:
        _maps_back(*arrays, *(one[0] for one in cut), *bounds)
    if frozen:
        return dx, [None] * S
    join(starts, bounds, dW, db, *cut)
    dbs = [None if p.b is None else its_db for p, its_db in zip(maps.params, db, strict=True)]
    return dx, list(map(LinearParams, dW, dbs))


def grouped_heads_backward(do: Array, cache: GroupedHeadsCache) -> tuple[Array, dict[str, HeadParams | None]]:
    """Return dh (B, T, H) and the gradients of the heads in the batch for do (B, T, C); other tasks have no entry."""
    (B, T, C), segments, its = do.shape, cache.segments, [cache.heads[task] for task, _, _ in cache.segments]
    tables = []
    for level in levels_of(its) if isinstance(do, np.ndarray) else []:
        shapes, xs = ((stop - start, T, len(level[0].p.W)) for _, start, stop in segments), None
        maps, frozen = maps_of(Same([one.p for one in level]), do.dtype), level[0].x is None
        if not frozen:
            xs = table_of([one.x for one in level], shapes, do.dtype)
        if maps is None or (xs is None and not frozen):
            return NotImplemented
        tables.append((maps, xs))
    if not tables:
        return NotImplemented
    must_have((segments[-1][2], T, len(tables[-1][0].no_bias)), do)
    starts, dx = starts_of(segments, T), np.ascontiguousarray(do).reshape(B * T, C)
    dx, dheads = level_backward(dx, starts, *tables[-1])
    if len(tables) == 2:
        dx *= np.concatenate([one.relu.positive for one in its]).reshape(dx.shape)
        dx, dups = level_backward(dx, starts, *tables[0])
        dheads = [None if up is None else FFNHeadParams(up, down) for up, down in zip(dups, dheads, strict=True)]
    return dx.reshape(B, T, -1), {task: g for (task, _, _), g in zip(segments, dheads, strict=True)}
