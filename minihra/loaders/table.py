"""From the tensors of a checkpoint to our parameter tree: rows of (our leaf, their tensor, how the axes change)."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.parameters import ConformerParams, Statistics, conformer_shapes
from minihra.blocks.stages import Stage
from minihra.loaders.tensors import STORED, StoredTensor
from minihra.tree import from_leaves, leaves

Form = Callable[[Array], Array]
SHOWN = 8
"""How many names an error lists of each kind."""


class Row(NamedTuple):
    """Where one of our leaves comes from."""

    ours: str  # dotted name in {"p": ..., "statistics": ...}
    theirs: str
    form: Form


# How PyTorch's tensors become ours. All give views of them, but `flattened_by_channel`, which must copy.


def same(a: Array) -> Array:
    """Return (...) as it is."""
    return a


def transposed(a: Array) -> Array:
    """Linear: (O, I) -> (I, O)."""
    return a.T


def pointwise(a: Array) -> Array:
    """A convolution of kernel 1 in one or two dimensions: (O, I, 1, ...) -> (I, O)."""
    return a.reshape(a.shape[:2]).T


def over_time(a: Array) -> Array:
    """A convolution over time: (O, I, K) -> (K, I, O)."""
    return a.transpose(2, 1, 0)


def depthwise(a: Array) -> Array:
    """A depthwise convolution over time: (C, 1, K) -> (K, C)."""
    return a[:, 0].T


def in_two_dimensions(a: Array) -> Array:
    """A convolution over time and frequency: (O, I, 3, 3) -> (3, 3, I, O)."""
    return a.transpose(2, 3, 1, 0)


def depthwise_in_two_dimensions(a: Array) -> Array:
    """A depthwise one: (C, 1, 3, 3) -> (3, 3, C)."""
    return a[:, 0].transpose(1, 2, 0)


def flattened_by_channel(channels: int) -> Form:
    """Linear after a flattening by channel, then frequency: (C, O F) -> (F O, C), rows by frequency, then channel."""

    def form(a: Array) -> Array:
        return a.reshape(len(a), channels, -1).transpose(2, 1, 0).reshape(-1, len(a))

    return form


def columns(part: int, parts: int) -> Form:
    """One of several equal parts of the last axis: (..., parts n) -> (..., n)."""

    def form(a: Array) -> Array:
        n = a.shape[-1] // parts
        return a[..., part * n : (part + 1) * n]

    return form


def shape_before(form: Form, shape: tuple[int, ...], dimensions: int = 1) -> tuple[int, ...]:
    """Return the shape of a tensor of which `form` makes `shape`; pointwise maps are in so many dimensions.

    Raises:
        ValueError: there is none, or several.
    """
    theirs = {
        same: shape,
        pointwise: (*shape[::-1], *(1,) * dimensions),
        depthwise: (*shape[:0:-1], 1, *shape[:1]),
        in_two_dimensions: (*shape[:1:-1], *shape[:2]),
        depthwise_in_two_dimensions: (*shape[2:], 1, *shape[:2]),
    }.get(form, shape[::-1])
    if shape_after(form, theirs) != shape:
        raise ValueError(f"no one shape of a tensor becomes {shape}")
    return theirs


def norm(ours: str, theirs: str) -> list[Row]:
    """Return the rows of a norm."""
    return [Row(f"{ours}.g", f"{theirs}.weight", same), Row(f"{ours}.b", f"{theirs}.bias", same)]


def affine(ours: str, theirs: str, form: Form = transposed) -> list[Row]:
    """Return the rows of a weight, whose axes `form` changes, and its bias."""
    return [Row(f"{ours}.W", f"{theirs}.weight", form), Row(f"{ours}.b", f"{theirs}.bias", same)]


def running(ours: str, theirs: str) -> list[Row]:
    """Return the rows of a batch norm's running statistics."""
    return [Row(f"{ours}.mean", f"{theirs}.running_mean", same), Row(f"{ours}.var", f"{theirs}.running_var", same)]


def convolution(stage: Stage) -> Form:
    """Return the form of a convolution over time, which is a linear map where it reads one frame at a time."""
    return pointwise if stage.linear else over_time


def matched_rows(
    place: str, config: ConformerConfig, rows: Iterable[Row], stored: Mapping[str, StoredTensor], unused: Sequence[str]
) -> dict[str, Row]:
    """Return the row of each leaf of a model; names that match a pattern of `unused` are passed over.

    Raises:
        ValueError: tensors are missing, extra, misshapen or no floats; the message lists them.
    """
    p, statistics = conformer_shapes(config)
    wanted = dict(leaves({"p": p, "statistics": statistics}))
    of_leaf = {row.ours: row for row in rows if row.ours in wanted}
    if unknown := wanted.keys() - of_leaf.keys():
        raise AssertionError(f"the table has no row for {sorted(unknown)}")  # a mistake of ours, not of the user
    asked = {row.theirs for row in of_leaf.values()}
    missing = sorted(asked - stored.keys())
    extra = sorted(name for name in stored.keys() - asked if not any(re.fullmatch(u, name) for u in unused))
    misshapen = [
        f"{row.theirs} {stored[row.theirs].shape}"
        for ours, row in of_leaf.items()
        if row.theirs in stored and shape_after(row.form, stored[row.theirs].shape) != wanted[ours].shape
    ]
    foreign = [
        f"{name} {stored[name].type}" for name in sorted(asked & stored.keys()) if stored[name].type not in STORED
    ]
    faults = [
        f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{', ...' * (len(names) > SHOWN)}"
        for kind, names in (
            ("missing", missing),
            ("extra", extra),
            ("misshapen", misshapen),
            (f"of a type other than {', '.join(STORED)}", foreign),
        )
        if names
    ]
    if faults:
        raise ValueError(f"{place}: other tensors than its config.json asks for: {'; '.join(faults)}")
    return of_leaf


def read_parameters(
    place: str, config: ConformerConfig, rows: Iterable[Row], stored: Mapping[str, StoredTensor], unused: Sequence[str]
) -> tuple[ConformerParams, Statistics]:
    """Return parameters and statistics of a model.

    Raises:
        ValueError: as `matched_rows`.
    """
    of_leaf, (p, statistics) = matched_rows(place, config, rows, stored, unused), conformer_shapes(config)
    values = {ours: row.form(stored[row.theirs].read()) for ours, row in of_leaf.items()}
    tree = from_leaves({"p": p, "statistics": statistics}, values)
    return tree["p"], tree["statistics"]


def shape_after(form: Form, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape that `form` makes of a tensor of `shape`; None where it cannot be applied."""
    try:
        return form(np.broadcast_to(np.float32(0), shape)).shape
    except (ValueError, IndexError, TypeError):  # TypeError: a number has no axes
        return None
