"""Twins of what goes over all leaves of a tree, AdamW and clipping: a call for all of them."""

import math
from collections.abc import Sequence

import numpy as np

from minihra.arrays import Array
from minihra.kernels.cpu.addresses import array_at, table_of
from minihra.kernels.cpu.compiled import compiled, compiled_inside


@compiled_inside
def _adamw(
    p: Array, g: Array, m: Array, v: Array, step: float, lr: float, beta1: float, beta2: float, eps: float, decay: float
) -> None:
    number = p.dtype.type
    old1, new1, old2, new2, least = number(beta1), number(1 - beta1), number(beta2), number(1 - beta2), number(eps)
    first, second, shrink = number(lr / (1 - beta1**step)), number(1 / (1 - beta2**step)), number(1 - lr * decay)
    for i in range(p.size):
        m[i] = old1 * m[i] + new1 * g[i]
        v[i] = old2 * v[i] + new2 * (g[i] * g[i])
        p[i] = shrink * p[i] - first * m[i] / (math.sqrt(v[i] * second) + least)


@compiled
def _adamw_leaves(
    number: float,
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
        p, g = array_at(number, ps[n], sizes[n]), array_at(number, gs[n], sizes[n])
        m, v = array_at(number, ms[n], sizes[n]), array_at(number, vs[n], sizes[n])
        _adamw(p, g, m, v, steps[n], lr, beta1, beta2, eps, decays[n])


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
    dtype, shapes, (ms, vs, steps) = ps[0].dtype, [p.shape for p in ps], zip(*moments, strict=True)
    gs = [np.asarray(g, order="C") for g in gs]
    tables = [table_of(leaves, shapes, dtype) for leaves in (ps, gs, ms, vs)]
    counted = all(step.shape == () and step.dtype == np.float64 for step in steps)
    whole = counted and all(table is not None for table in tables)
    if not whole or not all(a.flags.writeable for a in (*ps, *ms, *vs, *steps)):
        return NotImplemented  # a copy would move in the place of what is no array of rows
    for step in steps:
        np.add(step, 1, out=step)
    sizes, counts = np.array([p.size for p in ps]), np.array(steps, float)
    _adamw_leaves(dtype.type(0), sizes, np.array(decays), *tables, counts, float(lr), beta1, beta2, eps)
    return None


@compiled
def _squares(number: float, sizes: Array, gs: Array) -> float:
    """Return the sum of the squares of all elements, in float64 from leaf to leaf."""
    total = 0.0
    for n in range(len(sizes)):
        g, its = array_at(number, gs[n], sizes[n]), number
        for i in range(g.size):
            its += g[i] * g[i]
        total += its
    return total


@compiled
def _scale_leaves(scale: float, sizes: Array, gs: Array, scaled: Array) -> None:
    for n in range(len(sizes)):
        g, y = array_at(scale, gs[n], sizes[n]), array_at(scale, scaled[n], sizes[n])
        for i in range(g.size):
            y[i] = g[i] * scale


def clip_leaves(gs: Sequence[Array], limit: float) -> tuple[Sequence[Array], Array]:
    """Return gs scaled so that their norm over all is at most `limit`, or themselves if it is, and the norm before."""
    dtype, shapes = gs[0].dtype, [g.shape for g in gs]
    its = [np.asarray(g, order="C") for g in gs]
    table = table_of(its, shapes, dtype)
    if table is None:
        return NotImplemented
    sizes, number = np.array([g.size for g in gs]), dtype.type
    norm = number(math.sqrt(_squares(number(0), sizes, table)))
    if norm <= limit:
        return gs, norm
    scaled = [np.empty(shape, dtype) for shape in shapes]
    _scale_leaves(number(limit / norm), sizes, table, table_of(scaled, shapes, dtype))
    return scaled, norm
