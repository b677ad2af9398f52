"""Rows of `minihra bench` whose time is that of the memory: a pair on large arrays beside a copy.

What a pair must read and write at least is each array that it is given, returns or keeps for its backward, once. The
share is these bytes over the pair's time, of the bytes of `b[...] = a` over the time of that. In the time of a cell are
its products, too.
"""

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from minihra.adapters.parts import CELLS
from minihra.arrays import Array
from minihra.bench_rows import APPLIED, STATE, Row, Run
from minihra.device import moved
from minihra.layers.conv import DepthwiseConvParams
from minihra.layers.norms import LayerNormParams
from minihra.ops import PAIRS, references
from minihra.tree import Tree, leaves, map_leaves

COPIED = 256 * 2**20 // 4  # numbers of float32
KERNEL = 31  # frames of the depthwise convolution
FROZEN = {"layer_norm": {"params": False}, "depthwise_conv": {"params": False}}
"""How layers of the backbone are called while an adapter trains."""


def arguments_of(row: Row) -> dict[str, Any]:
    """Return the arrays that the forward of a row's pair is given."""
    rng, (B, T, C) = np.random.default_rng(1), (row.batch, row.frames, row.width)

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    match row.pair:
        case "layer_norm":
            return {"x": normal(B, T, C), "p": LayerNormParams(normal(C), normal(C))}
        case "glu":
            return {"x": normal(B, T, C)}
        case "depthwise_conv":
            p = DepthwiseConvParams(normal(KERNEL, C), normal(C))
            return {"x": normal(B, T, C), "valid": np.ones((B, T), bool), "p": p}
        case "masked_softmax":
            return {"s": normal(B, C, T, T), "mask": np.ones((B, 1, 1, T), bool)}
    p = map_leaves(lambda leaf: 0.02 * normal(*leaf.shape), CELLS[row.pair].shapes(C, STATE))
    return {"x": normal(B * T, C), "h": normal(B * T, STATE), "p": p}


def bandwidth_runs(row: Row, xp: ModuleType) -> dict[str, Run]:
    """Return "ours", the forward or the backward of a pair, and the "copy" beside it."""
    pair, arguments, frozen = PAIRS[row.pair], moved(arguments_of(row), xp), FROZEN.get(row.pair, {})
    a, b = (xp.full((COPIED,), value, np.float32) for value in (1, 0))

    def copy() -> None:
        b[...] = a

    def forward() -> Array:
        return pair.forward(**arguments, **frozen)[0]

    y, cache = pair.forward(**arguments, **frozen)
    dy = y + 1

    def backward() -> Array:
        dx = pair.backward(dy, cache)
        return dx[0] if isinstance(dx, tuple) else dx

    return {
        "ours": repeated(forward if row.kind == "bandwidth forward" else backward),
        "copy": repeated(copy, b[:1]),
    }


def repeated(run: Callable[[], Array | None], last: Array | None = None) -> Run:
    """Return a run that calls another APPLIED times, and returns the last result or what stands in its place."""

    def runs() -> Array:
        for _ in range(APPLIED):
            result = run()
        return result if last is None else last

    return runs


def share_of_copy(row: Row, seconds: float, copy_seconds: float) -> float:
    """Return which share of the speed of a copy a run of `seconds` has."""
    return least_bytes(row) / seconds / (2 * 4 * COPIED / copy_seconds)


def least_bytes(row: Row) -> int:
    """Return the bytes that one application must read and write at least, from those of one and of two utterances."""
    one, two = (bytes_of(replace(row, batch=batch)) for batch in (1, 2))
    return one + (row.batch - 1) * (two - one)


def bytes_of(row: Row) -> int:
    """Return the bytes of all arrays that a pair is given, returns or keeps, each counted once."""
    pair, arguments = PAIRS[row.pair], arguments_of(row)
    with references():
        y, cache = pair.forward(**arguments, **FROZEN.get(row.pair, {}))
        if row.kind == "bandwidth forward":
            return total((arguments, y, cache))
        dy = np.ones_like(y)
        return total((dy, cache, pair.backward(dy, cache)))


def total(tree: Tree) -> int:
    """Return the bytes of the arrays of a tree, of an array that occurs again only once."""
    return sum({id(leaf): leaf.nbytes for _, leaf in leaves(tree) if isinstance(leaf, np.ndarray)}.values())
