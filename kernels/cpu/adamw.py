"""Twins of what goes over all leaves of a tree, AdamW and clipping: a call for all of them, or for each thread's."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from minihra.arrays import Array
from minihra.kernels.cpu.addresses import array_at, table_of
from minihra.kernels.cpu.compiled import compiled, compiled_inside
from minihra.threads import alone, share, threads

LARGE = 2**18
"""Elements that are worth several threads: 0.2 ms of AdamW."""


def in_portions(sizes: Array, loop: Callable[[slice], None]) -> None:
    """Call a loop with the leaves of each portion: if they are LARGE one a thread, of about as many elements each."""
    ends = np.cumsum(sizes)
    portions = 1 if ends[-1] < LARGE or alone() else threads()
    middles = ends - sizes / 2  # a leaf belongs to the portion that its middle lies in
    cuts = [0, *np.searchsorted(middles, ends[-1] * np.arange(1, portions) / portions), len(sizes)]
    share([partial(loop, slice(*bound)) for bound in pairwise(cuts)])


@compiled_inside
def _adamw(
    p: Array,
    g: Array,
    scale: float,
    m: Array,
    v: Array,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    number = p.dtype.type
    old1, new1, old2, new2, least = number(beta1), number(1 - beta1), number(beta2), number(1 - beta2), number(eps)
    first, second, shrink = number(lr / (1 - beta1**step)), number(1 / (1 - beta2**step)), number(1 - lr * decay)
    for i in range(p.size):
        its = g[i] * scale
        m[i] = old1 * m[i] + new1 * its
        v[i] = old2 * v[i] + new2 * (its * its)
        p[i] = shrink * p[i] - first * m[i] / (math.sqrt(v[i] * second) + least)


@compiled
def _adamw_leaves(
    scale: float,
    sizes: Array,
    decays: Array,
    ps: Array,
    gs: Array,
    ms: Array,
    vs: Array,
    steps: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    for n in range(len(sizes)):
        p, g = array_at(scale, ps[n], sizes[n]), array_at(scale, gs[n], sizes[n])
        m, v = array_at(scale, ms[n], sizes[n]), array_at(scale, vs[n], sizes[n])
        _adamw(p, g, scale, m, v, steps[n], lr, beta1, beta2, eps, decays[n])


def in_order(gs: Sequence[Array]) -> list[Array]:
    """Return gradients that lie row by row, those of a Fortran order as copies."""
    return [np.asarray(g, order="C") for g in gs]


def step(
    ps: Sequence[Array],
    gs: Sequence[Array],
    moments: Sequence[tuple[Array, Array, Array]],
    lr: Array,
    limit: float | None,
    decays: Sequence[float],
    *rates: float,
) -> Array | None:
    """Count a step of each leaf, and move it by its gradient; with a `limit` by gradients scaled so that their norm
    over all is at most that, and return their norm before. NotImplemented where a copy would move in the place of what
    is no array of rows.
    """
    (ms, vs, steps), shapes, number = zip(*moments, strict=True), [p.shape for p in ps], ps[0].dtype.type
    its = in_order(gs)  # kept until all is done: tables are of addresses
    tables = [table_of(leaves, shapes, ps[0].dtype) for leaves in (ps, its, ms, vs)]
    counted = all(count.shape == () and count.dtype == np.float64 for count in steps)
    whole = counted and all(table is not None for table in tables)
    if not whole or not all(a.flags.writeable for a in (*ps, *ms, *vs, *steps)):
        return NotImplemented
    sizes = np.array([p.size for p in ps])
    norm = None if limit is None else norm_of(sizes, tables[1], number)
    scale = number(1) if norm is None or norm <= limit else number(limit / norm)
    for count in steps:
        np.add(count, 1, out=count)
    of_leaves = sizes, np.array(decays), *tables, np.array(steps, float)
    in_portions(sizes, lambda some: _adamw_leaves(scale, *(array[some] for array in of_leaves), float(lr), *rates))
    return norm


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
    return step(ps, gs, moments, lr, None, decays, beta1, beta2, eps)


def clipped_adamw_leaves(
    ps: Sequence[Array],
    gs: Sequence[Array],
    moments: Sequence[tuple[Array, Array, Array]],
    lr: Array,
    limit: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decays: Sequence[float],
) -> Array:
    """Do so with gradients whose norm over all is made to be at most `limit`, and return their norm before."""
    return step(ps, gs, moments, lr, limit, decays, beta1, beta2, eps)


@compiled
def _squares(number: float, sizes: Array, gs: Array, sums: Array) -> None:
    """Let the sums be those of the squares of each leaf's elements."""
    for n in range(len(sizes)):
        g, its = array_at(number, gs[n], sizes[n]), number
        for i in range(g.size):
            its += g[i] * g[i]
        sums[n] = its


@compiled
def _scale_leaves(scale: float, sizes: Array, gs: Array, scaled: Array) -> None:
    for n in range(len(sizes)):
        g, y = array_at(scale, gs[n], sizes[n]), array_at(scale, scaled[n], sizes[n])
        for i in range(g.size):
            y[i] = g[i] * scale


def norm_of(sizes: Array, table: Array, number: type) -> Array:
    """Return the norm over all gradients of a table, whose squares are summed in float64 from leaf to leaf."""
    sums = np.empty(len(sizes), number)
    in_portions(sizes, lambda some: _squares(number(0), sizes[some], table[some], sums[some]))
    return number(math.sqrt(sums.sum(dtype=float)))


def clip_leaves(gs: Sequence[Array], limit: float) -> tuple[Sequence[Array], Array]:
    """Return gs scaled so that their norm over all is at most `limit`, or themselves if it is, and the norm before."""
    dtype, shapes, its = gs[0].dtype, [g.shape for g in gs], in_order(gs)
    table = table_of(its, shapes, dtype)
    if table is None:
        return NotImplemented
    sizes, number = np.array([g.size for g in gs]), dtype.type
    norm = norm_of(sizes, table, number)
    if norm <= limit:
        return gs, norm
    scaled, scale = [np.empty(shape, dtype) for shape in shapes], number(limit / norm)
    to = table_of(scaled, shapes, dtype)
    in_portions(sizes, lambda some: _scale_leaves(scale, sizes[some], table[some], to[some]))
    return scaled, norm
