"""Twins of mixed-task heads for the GPU (minihra/layers/heads.py): all tasks of a batch in one launch.

A kernel finds the parameters of each task by their addresses, in a table. The tables of a batch are made and uploaded
once, for all layers, forward and backward. Heads of several kinds or sizes, and those that do not lie row by row, are
left to the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module, as_strided, packed, unpacked
from minihra.kernels.cuda.launch import Source, addresses, contiguous, per_block, per_element
from minihra.layers.activations import ReluCache
from minihra.layers.heads import FFNHeadCache, FFNHeadParams, GroupedHeadsCache, HeadParams, Segments
from minihra.layers.linear import LinearCache, LinearParams

ACROSS, TALL, BLOCK = 16, 64, 128
"""As in heads.cu: threads beside each other, rows of a tile, threads of a block."""

KERNELS = {columns: Source("heads.cu", COLUMNS=columns) for columns in (4, 3, 2)}
"""By how many columns a thread sums: a tile has 64, 48 or 32."""

MANY = 264
"""Tiles that fill a GPU: two for each of the 132 multiprocessors of an H100."""

SLICES, LEAST = 128, 128
"""Into how many slices the frames of a batch are cut for the gradients, and the fewest frames that are worth one: each
slice has sums of its own, which must be written, read and added."""


class Maps(NamedTuple):
    """A linear map I -> O of each task in the batch, and where it lies."""

    params: Sequence[LinearParams]
    arrays: list[Array]  # those that the addresses lead to
    Ws: Array  # (S,)  addresses
    bs: Array  # (S,)  0 for a map without bias


@dataclass(eq=False)
class Tables:
    """What the kernels are told of a batch; heads.cu has the columns. The sizes follow from B, T and S alone.

    Views of what went to the GPU are made when a kernel is started with them: a recorded graph needs none.
    """

    maps: list[Maps]  # those that heads consist of, from below, with their addresses on the host
    rows: int  # B
    on_host: list[np.ndarray]  # tiles, slices, splits; the addresses of the maps
    packed: Array  # their bytes

    @cached_property
    def _there(self) -> list[Array]:
        return unpacked(self.packed, self.on_host)

    @property
    def tiles(self) -> Array:
        """Of each tile the segment, its first frame, and how many frames (M, 3)."""
        return self._there[0]

    @property
    def slices(self) -> Array:
        """Of each slice where its sums go, its first frame, and how many frames (S + E, 3)."""
        return self._there[1]

    @property
    def splits(self) -> Array:
        """Of each segment of several slices itself, and which further sums are added to its own (Z, 3)."""
        return self._there[2]

    @cached_property
    def levels(self) -> list[Maps]:
        """The maps with their addresses on the GPU."""
        pairs = zip(self.maps, self._there[3::2], self._there[4::2], strict=True)
        return [maps._replace(Ws=Ws, bs=bs) for maps, Ws, bs in pairs]

    def fit(self, x: Array, W: Array, axis: int) -> bool:
        """Whether x (B, T, ...) is the batch, and what a matrix W takes (axis 0) or gives (1)."""
        return (len(x), x.shape[2], x.dtype) == (self.rows, W.shape[axis], W.dtype)


class Batch:
    """The segments of a batch and their maps, as the key of their tables.

    Keys are equal if they name the same maps. A map that a key names stays alive, so that no other one takes its place.
    """

    def __init__(self, segments: Segments, T: int, levels: Sequence[Sequence[LinearParams]]) -> None:
        self.segments, self.T, self.levels = segments, T, levels
        self.key = (segments, T, *(id(p) for level in levels for p in level))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and self.key == other.key


def pieces(starts: np.ndarray, most: int, fewest: int) -> tuple[np.ndarray, ...]:
    """Return how segments of frames, which begin at starts[:-1], are cut into pieces of at most `most` frames, but at
    least `fewest` pieces each: of all pieces the segment, the number in it, the first frame, and how many frames.
    """
    counts = np.maximum(-(-np.diff(starts) // most), fewest)
    slot = np.repeat(np.arange(len(counts)), counts)
    nth = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = starts[slot] + nth * most
    return slot, nth, first, np.minimum(most, starts[slot + 1] - first)


def padded(rows: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Return a table of these columns, with rows of -1 behind, n in all."""
    table = np.full((n, len(rows)), -1, np.int32)
    table[: len(rows[0])] = np.stack(rows, axis=1)
    return table


def maps_of(params: Sequence[LinearParams]) -> Maps | None:
    """Return the maps, with their addresses still on the host, or None if a kernel would misread one: it has another
    shape or type, or lies otherwise.
    """
    (I, O), dtype = params[0].W.shape, params[0].W.dtype
    for p in params:
        for array, shape in ((p.W, (I, O)), (p.b, (O,))):
            if array is not None and (array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous):
                return None
    Ws, bs = ([p[n] for p in params] for n in range(2))
    arrays = [array for array in (*Ws, *bs) if array is not None]
    return Maps(params, arrays, addresses(Ws), addresses(bs))


@lru_cache(maxsize=8)
def tables_of(batch: Batch) -> Tables | None:
    """Return the tables of a batch, or None if it is nothing for the kernels; those of the last few are kept."""
    levels, S = [maps_of(level) for level in batch.levels], len(batch.segments)
    rows = [0, *(stop for _, _, stop in batch.segments)]
    if not levels or None in levels or rows[:-1] != [start for _, start, _ in batch.segments]:
        return None
    T, B, starts = batch.T, rows[-1], batch.T * np.array(rows)
    length = max(LEAST, -(-B * T // SLICES))
    E = B * T // length  # slices beside the first of each task, at most
    slot, _, first, frames = pieces(starts, TALL, fewest=0)
    tiles = padded([slot, first, frames], min(B * -(-T // TALL), B * T // TALL + S))
    slot, nth, first, frames = pieces(starts, length, fewest=1)
    slices = padded([np.where(nth == 0, slot, S - 1 + np.cumsum(nth > 0)), first, frames], S + E)
    extra = np.bincount(slot, minlength=S) - 1
    cut, last = extra > 0, np.cumsum(extra)
    splits = padded([np.arange(S)[cut], (last - extra)[cut], last[cut]], min(S, E))
    on_host = [tiles, slices, splits, *(table for maps in levels for table in (maps.Ws, maps.bs))]
    return Tables(levels, B, on_host, packed(on_host, array_module(levels[0].params[0].W)))


def packed_tables(heads: dict[str, HeadParams], segments: Segments, T: int) -> Array | None:
    """Return the bytes of a batch's tables, into which a graph of its step may write those of others of its size; None
    if it is nothing for the kernels.

    They are made anew, and no other ones are kept: into those a graph may have written.
    """
    tables_of.cache_clear()
    tables = tables_of(Batch(segments, T, levels_of([heads[task] for task, _, _ in segments])))
    return None if tables is None else tables.packed


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


def columns_for(width: int, rows: int) -> int:
    """Return how many columns a thread sums of a result of this width: such that least of the tiles is wasted, and then
    the most for which there are many tiles, if each has `rows` beside or below it.
    """
    across = {columns: -(-width // (ACROSS * columns)) for columns in KERNELS}
    least = min(columns * n for columns, n in across.items())
    best = [columns for columns, n in across.items() if columns * n == least]
    return next((columns for columns in best if rows * across[columns] >= MANY), best[-1])


def run(kernel: str, rows: int, width: int, **arguments: Any) -> None:
    """Start a kernel whose result consists of so many rows of tiles, of this width."""
    columns = columns_for(width, rows)
    tiles = rows * -(-width // (ACROSS * columns))
    KERNELS[columns].run(kernel, per_block(tiles, BLOCK), **arguments)


def grouped_heads_forward(
    h: Array, heads: dict[str, HeadParams], *, segments: Segments, params: bool = True
) -> tuple[Array, GroupedHeadsCache]:
    """Map h (B, T, H), rows sorted by task, to o (B, T, C)."""
    (B, T, _), its = h.shape, [heads[task] for task, _, _ in segments]
    tables = tables_of(Batch(segments, T, levels_of(its)))
    if tables is None or not tables.fit(h, tables.levels[0].params[0].W, 0):
        return NotImplemented
    xp, N, S, M = array_module(h), B * T, len(segments), len(tables.tiles)
    y, inputs, positives = contiguous(h), [], []
    for maps in tables.levels:
        x, (I, O) = y, maps.params[0].W.shape
        y, positive = xp.empty((B, T, O), x.dtype), None if maps is tables.levels[-1] else xp.empty((B, T, O), bool)
        arrays = {"x": x, "tiles": tables.tiles, "Ws": maps.Ws, "bs": maps.bs, "y": y, "positive": positive}
        run("heads_forward", M, O, reaches=maps.arrays, **arrays, N=N, I=I, O=O, S=S, M=M)
        inputs.append(x)
        positives.append(positive)
    caches = {}
    for (task, start, stop), p in zip(segments, its, strict=True):
        kept = [x[start:stop] if params else None for x in inputs]
        if isinstance(p, LinearParams):
            caches[task] = LinearCache(*kept, p)
        else:
            up, down = (LinearCache(x, q) for x, q in zip(kept, p, strict=True))
            caches[task] = FFNHeadCache(up, ReluCache(positives[0][start:stop]), down)
    return y, GroupedHeadsCache(caches, segments)


def whole(parts: Sequence[Array], B: int) -> Array:
    """Return the array (B, ...) whose rows are those of the parts: without a copy if they lie one after the other, as
    views of one array do.
    """
    parts = [part for part in parts if part.size] or [parts[0]]
    (_, T, C), size, places = parts[0].shape, parts[0].dtype.itemsize, addresses(parts)
    ends = places + np.array([size * part.size for part in parts], np.uint64)
    if np.array_equal(ends[:-1], places[1:]) and all(part.flags.c_contiguous for part in parts):
        return as_strided(parts[0], (B, T, C), (size * T * C, size * C, size))
    return array_module(parts[0]).concatenate(parts)


def gradients_of(x: Array, dy: Array, maps: Maps, tables: Tables) -> list[LinearParams]:
    """Return the gradients of each map for dy (B, T, O), where x (B, T, I) went in: views of one array."""
    xp, (B, T, O), I, S = array_module(dy), dy.shape, x.shape[2], len(maps.params)
    Z, G = len(tables.slices), (I + 1) * O
    E = Z - S
    gradients, more = xp.empty((S, I + 1, O), dy.dtype), xp.empty((E, I + 1, O), dy.dtype)
    arrays = {"x": x, "dy": dy, "slices": tables.slices, "gradients": gradients, "more": more}
    run("heads_gradients", Z * -(-I // TALL), O, **arrays, N=B * T, I=I, O=O, S=S, Z=Z, E=E)
    if E:
        Z, arrays = len(tables.splits), {"more": more, "splits": tables.splits, "gradients": gradients}
        KERNELS[4].run("heads_gradients_sum", per_element(Z * G), **arrays, S=S, E=E, G=G, Z=Z)
    return [LinearParams(gradients[s, :I], None if p.b is None else gradients[s, I]) for s, p in enumerate(maps.params)]


def grouped_heads_backward(do: Array, cache: GroupedHeadsCache) -> tuple[Array, dict[str, HeadParams | None]]:
    """Return dh (B, T, H) and the gradients of the heads in the batch for do (B, T, C); other tasks have no entry."""
    (B, T, _), segments, its = do.shape, cache.segments, [cache.heads[task] for task, _, _ in cache.segments]
    levels = levels_of(its)
    tables = tables_of(Batch(segments, T, [[one.p for one in level] for level in levels]))
    if tables is None or not tables.fit(do, tables.levels[-1].params[0].W, 1):
        return NotImplemented
    xp, N, S, M, dx, dmaps = array_module(do), B * T, len(segments), len(tables.tiles), contiguous(do), []
    for n in reversed(range(len(levels))):
        maps, dy, xs = tables.levels[n], dx, [one.x for one in levels[n]]
        dmaps.append([None] * S if xs[0] is None else gradients_of(whole(xs, B), dy, maps, tables))
        I, O = maps.params[0].W.shape
        dx, positive = xp.empty((B, T, I), dy.dtype), whole([one.relu.positive for one in its], B) if n else None
        arrays = {"dy": dy, "tiles": tables.tiles, "Ws": maps.Ws, "positive": positive, "dx": dx}
        run("heads_backward", M, I, reaches=maps.arrays, **arrays, N=N, I=I, O=O, S=S, M=M)
    dheads = dmaps[0]
    if len(levels) == 2:
        dheads = [None if up is None else FFNHeadParams(up, down) for down, up in zip(*dmaps, strict=True)]
    return dx, {task: dhead for (task, _, _), dhead in zip(segments, dheads, strict=True)}
