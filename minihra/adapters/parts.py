"""The parts of an HRA: the cells of the controller and the kinds of heads, with their sizes and initial values.

The initial values are our choice (the sources say nothing): weights normal with variance 1 / fan-in, biases 0, IndRNN's
u uniform in [0, 1], and 0 for the last map of every head, so that an untrained HRA is the backbone.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minihra.arrays import Array
from minihra.layers.gru import GRUParams
from minihra.layers.heads import FFNHeadParams, HeadParams
from minihra.layers.indrnn import IndRNNParams
from minihra.layers.li_gru import LiGRUParams
from minihra.layers.linear import LinearParams
from minihra.layers.no_recurrence import NoRecurrenceParams
from minihra.layers.rnn import RNNParams
from minihra.ops import PAIRS, Pair
from minihra.tree import Shape

CellParams = GRUParams | IndRNNParams | RNNParams | LiGRUParams | NoRecurrenceParams


class Cell(NamedTuple):
    """A cell of the controller."""

    pair: Pair
    shapes: Callable[[int, int], CellParams]  # width C, state size H -> a tree of Shape


CELLS: dict[str, Cell] = {
    "gru": Cell(
        PAIRS["gru"],
        lambda C, H: GRUParams(Shape((C, 3 * H)), Shape((H, 3 * H)), Shape((3 * H,)), Shape((H,))),
    ),
    "indrnn": Cell(PAIRS["indrnn"], lambda C, H: IndRNNParams(Shape((C, H)), Shape((H,)), Shape((H,)))),
    "rnn": Cell(PAIRS["rnn"], lambda C, H: RNNParams(Shape((C, H)), Shape((H, H)), Shape((H,)))),
    "li_gru": Cell(PAIRS["li_gru"], lambda C, H: LiGRUParams(Shape((C, 2 * H)), Shape((H, 2 * H)), Shape((2 * H,)))),
    "none": Cell(PAIRS["no_recurrence"], lambda C, H: NoRecurrenceParams(Shape((C, H)), Shape((H,)))),
}
"""The cells by the names that users give them."""


def linear_shapes(I: int, O: int) -> LinearParams:
    """Return the shapes of a linear map."""
    return LinearParams(Shape((I, O)), Shape((O,)))


HEADS: dict[str, Callable[[int, int, int], HeadParams]] = {
    "linear": lambda C, H, R: linear_shapes(H, C),
    "ffn": lambda C, H, R: FFNHeadParams(linear_shapes(H, R), linear_shapes(R, C)),
}
"""Width C, state size H, bottleneck R -> the shapes of a head, by the names that users give them."""


def known(kind: str, name: str, table: dict) -> str:
    """Return `name`, which must be a key of `table`.

    Raises:
        ValueError: it is none; the message lists those that are.
    """
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; known: {', '.join(table)}")
    return name


def weight(shape: Shape, rng: np.random.Generator) -> Array:
    """Return a matrix (fan-in, ...) of variance 1 / fan-in."""
    return rng.standard_normal(shape.shape) / math.sqrt(shape.shape[0])


def initial_controller(cell: str, C: int, H: int, rng: np.random.Generator, dtype: np.dtype) -> CellParams:
    """Return the initial parameters of a controller."""

    def leaf(name: str, shape: Shape) -> Array:
        if name == "u":
            return rng.uniform(0, 1, shape.shape)
        return weight(shape, rng) if name in ("W", "U") else np.zeros(shape.shape)

    shapes = CELLS[cell].shapes(C, H)
    return type(shapes)(*(leaf(name, s).astype(dtype) for name, s in zip(shapes._fields, shapes, strict=True)))


def initial_head(shapes: HeadParams, rng: np.random.Generator, dtype: np.dtype) -> HeadParams:
    """Return the initial parameters of a head, whose last map is zero."""

    def zero(p: LinearParams) -> LinearParams:
        return LinearParams(np.zeros(p.W.shape, dtype), np.zeros(p.b.shape, dtype))

    if isinstance(shapes, LinearParams):
        return zero(shapes)
    up = LinearParams(weight(shapes.up.W, rng).astype(dtype), np.zeros(shapes.up.b.shape, dtype))
    return FFNHeadParams(up, zero(shapes.down))
