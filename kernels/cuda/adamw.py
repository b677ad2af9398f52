"""Twins for the GPU of what goes over all leaves of a tree: AdamW, clipping and sums of gradients, a few launches for
each 64 of them.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Grid, Source, addresses, contiguous, per_block, per_element, per_warp

KERNELS = Source("adamw.cu")
LEAVES = 64  # of a table: with what else a kernel takes it has room in the 4 KB of its parameters
PIECE = 4096  # elements of a leaf that a block takes at once


class Group(NamedTuple):
    """Leaves that have their turn together."""

    which: slice
    pieces: slice  # of the pieces of all leaves
    sizes: list[int]
    first: list[int]  # piece of each leaf, of the pieces of the group
    grid: Grid

    @property
    def counts(self) -> dict[str, int]:
        """The arguments of the kernels that say how large all is."""
        return {"n": len(self.sizes), "pieces": self.pieces.stop - self.pieces.start, "P": PIECE}


def groups_of(leaves: Sequence[Array]) -> Iterator[Group]:
    """Yield the leaves in groups that a table holds."""
    threads, before = per_warp(1).threads[0], 0
    for start in range(0, len(leaves), LEAVES):
        sizes = [leaf.size for leaf in leaves[start : start + LEAVES]]
        *first, count = accumulate((-(-size // PIECE) for size in sizes), initial=0)
        yield Group(
            slice(start, start + LEAVES), slice(before, before + count), sizes, first, per_block(count, threads)
        )
        before += count


def adamw_update_leaves(
    ps: Sequence[Array],
    gs: Sequence[Array],
    moments: Sequence[tuple[Array, Array, Array]],
    lr: Array,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decays: Sequence[float],
) -> None:
    """Count a step of each leaf p (...), and move it, by its gradient g (...), and its moments m, v (...) in place."""
    xp, real = array_module(lr), ps[0].dtype
    ms, vs, steps = zip(*moments, strict=True)
    for p, g, m, v in zip(ps, gs, ms, vs, strict=True):
        if not p.shape == g.shape == m.shape == v.shape:
            raise ValueError(f"shapes of a leaf, its gradient and moments: {p.shape}, {g.shape}, {m.shape}, {v.shape}")
        if not all(a.flags.c_contiguous for a in (p, m, v)) or not all(a.dtype == real for a in (p, g, m, v)):
            return NotImplemented  # a copy would move in their place
    of_leaves = {"p": ps, "g": [contiguous(g) for g in gs], "m": ms, "v": vs, "step": steps}
    rates = {"beta1": beta1, "new1": 1 - beta1, "beta2": beta2, "new2": 1 - beta2, "eps": eps}
    scales = xp.empty((len(ps), 3), real)  # of all, so that memory runs out before anything has moved, or not at all
    for group in groups_of(ps):
        arrays, n = {name: all_of[group.which] for name, all_of in of_leaves.items()}, len(group.sizes)
        leaves = KERNELS.table(
            "Leaves",
            **{name: addresses(some) for name, some in arrays.items()},
            **{"decay": decays[group.which], "size": group.sizes, "first": group.first},
        )
        both = {"leaves": leaves, "scales": scales[group.which], "reaches": [*chain(*arrays.values())]}
        KERNELS.run("adamw_scales", per_element(n), **both, lr=lr, n=n, beta1=beta1, beta2=beta2)
        KERNELS.run("adamw_leaves", group.grid, **both, **group.counts, **rates)


def clip_leaves(gs: Sequence[Array], limit: float) -> tuple[list[Array], Array]:
    """Return gs scaled so that their norm over all is at most `limit`, and the norm before."""
    xp, real = array_module(gs[0]), gs[0].dtype
    if any(g.dtype != real for g in gs):
        return NotImplemented
    gs = [contiguous(g) for g in gs]
    scaled, groups, tables = [xp.empty_like(g) for g in gs], list(groups_of(gs)), []
    for group in groups:
        where = {"g": addresses(gs[group.which]), "scaled": addresses(scaled[group.which])}
        tables.append(KERNELS.table("Gradients", **where, size=group.sizes, first=group.first))
    squares, norm, scale = xp.empty(groups[-1].pieces.stop, real), xp.empty((), real), xp.empty((), real)
    both = {"reaches": [*gs, *scaled]}
    for group, leaves in zip(groups, tables, strict=True):
        its = {"leaves": leaves, "squares": squares[group.pieces], **group.counts}
        KERNELS.run("squares_of_pieces", group.grid, **its, **both)
    one = Grid((1,), per_warp(1).threads)
    KERNELS.run("norm_of_pieces", one, squares=squares, norm=norm, scale=scale, pieces=squares.size, limit=limit)
    for group, leaves in zip(groups, tables, strict=True):
        KERNELS.run("scale_leaves", group.grid, leaves=leaves, scale=scale, **group.counts, **both)
    return scaled, norm


def add_leaves(totals: list[Array], others: list[Array]) -> None:
    """Add to each of `totals` the one of `others` in the same place."""
    real, others = totals[0].dtype, [contiguous(other) for other in others]
    if not all(a.flags.c_contiguous and a.dtype == b.dtype == real for a, b in zip(totals, others, strict=True)):
        return NotImplemented  # a copy would be added to in its place
    for total, other in zip(totals, others, strict=True):
        if total.shape != other.shape:
            raise ValueError(f"a sum of the shapes {total.shape} and {other.shape}")
    for group in groups_of(totals):
        arrays = totals[group.which], others[group.which]
        where = dict(zip(("total", "other"), map(addresses, arrays), strict=True))
        leaves = KERNELS.table("Sums", **where, size=group.sizes, first=group.first)
        KERNELS.run("add_leaves", group.grid, leaves=leaves, **group.counts, reaches=[*chain(*arrays)], real=real)
