"""Twins of attention: a head of an utterance after the other, all of it in one compiled loop.

The scores of ROWS queries, their softmax and what they weigh are made while they are in the cache. They start from a
mask, to which the product with the keys is added, and then that with positions: only with the distances that these
queries see, and shifted by where its tiles are written. What products read is copied together, with zeros up to a
multiple of STRIP. The threads of OpenMP share the heads of a batch, unless the caller has but its own thread.
"""

import math
from functools import partial

import numpy as np
from numba import prange

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import (
    LOWEST,
    ONE,
    STRIP,
    ZERO,
    bounds_for,
    compiled,
    compiled_inside,
    exp,
    largest,
    launch,
    must_have,
    strips,
)
from minihra.kernels.cpu.openmp import compiled_for_threads
from minihra.kernels.cpu.product import (
    ROWS,
    Matrix,
    after,
    matrix,
    multiply,
    portions_of,
    product,
    turn,
    turned_product,
)
from minihra.layers.attention import AttentionCache, Reach
from minihra.layers.relative_attention import Projections, RelativeAttentionCache, RelativePositionParams
from minihra.layers.softmax import MaskedSoftmaxCache


def limits(reach: Reach, T: int) -> tuple[int, int]:
    """Return how many frames attention sees to the left and to the right."""
    left, right = reach or (None, None)
    return T if left is None else left, T if right is None else right


@compiled_inside
def _gather(x: Array, b: int, a: int, bias: Array, scale: float, rows: Array) -> None:
    """Let the first rows be those of head a of x (B, T, A, D), with a bias (A, D), and scaled."""
    _, T, _, D = x.shape
    for t in range(T):
        for d in range(D):
            rows[t, d] = (x[b, t, a, d] + bias[a, d]) * scale


@compiled_inside
def _scatter(rows: Array, b: int, t: int, a: int, n: int, y: Array) -> None:
    """Let frames t ... t + n of head a of y (B, T, A, D) be the first n rows."""
    for i in range(n):
        for d in range(y.shape[3]):
            y[b, t + i, a, d] = rows[i, d]


@compiled_inside
def _softmax(scores: Array, i: int, wide: int, y: Array, b: int, a: int, t: int) -> None:
    """Let the weights y[b, a, t] be the softmax of row i of the scores, which begins in column STRIP."""
    row = scores[i, STRIP : STRIP + wide]
    most, total = largest(row), ZERO
    for j in range(wide):
        e = exp(row[j] - most)
        row[j] = e
        total += e
    scale = ONE / total
    for j in range(y.shape[3]):
        y[b, a, t, j] = row[j] * scale


@compiled
def _attend(
    q: Array,
    k: Array,
    value: Array,
    r: Array,
    u: Array,
    v: Array,
    mask: Array,
    left: int,
    right: int,
    scale: float,
    weights: Array,
    y: Array,
    none: Array,
    room: tuple[Array, ...],
    low: int,
    high: int,
) -> None:
    """Let weights (B, A, T, T) and y (B, T, A, D) be those of the pairs low ... high of a head and an utterance.

    `mask` (B, strips of T) is 0 on valid frames and LOWEST elsewhere: scores start from it. Attention reaches `left`
    frames before a query and `right` after it. r (A, D, 2T - 1 + STRIP) are projected positions T-1, ..., -(T-1), or
    those of more frames, each row of one feature; it is empty where positions count for nothing. `none` (A, strips of
    D) are zeros.

    Room, with zeros: four (wide, across), that is strips of T and of D, one (across, wide), and of ROWS rows one with
    3 STRIP more than wide, one wide and one across.
    """
    (B, T, A, D), wide, number, positions = q.shape, mask.shape[1], q.dtype.type(0), len(r) > 0
    four, turned, scores, near, out = room
    to_content, to_position, rows, values = four[0], four[1], four[2], four[3]
    across, apart, longest = four.shape[2], scores.shape[1], (r.shape[2] - STRIP + 1) // 2
    for pair in range(low, high):
        a, b = pair // B, pair % B
        _gather(k, b, a, none, ONE, rows)
        turn(number, wide, across, matrix(rows), matrix(turned))
        _gather(value, b, a, none, ONE, values)
        _gather(q, b, a, u, scale, to_content)
        if positions:
            _gather(q, b, a, v, scale, to_position)
        for t in range(0, T, ROWS):
            n, start = min(ROWS, T - t), Matrix(matrix(mask).base, b * wide, 0, 1)
            its_scores = after(matrix(scores), STRIP)
            if left < T or right < T:
                for i in range(n):
                    for j in range(wide):
                        near[i, j] = mask[b, j] if t + i - left <= j <= t + i + right else LOWEST
                start = matrix(near)
            multiply(number, n, D, wide, after(matrix(to_content), t * across), matrix(turned), start, its_scores)
            if positions:
                # The nearest position that they see is that of the last query and key 0, in whose row the first column
                # is key 0's; in the row before it is key -1's: rows that are 1 longer are shifted by 1.
                shifted = Matrix(its_scores.base, STRIP - (n - 1), apart + 1, 1)
                nearest = Matrix(matrix(r).base, a * D * r.shape[2] + longest - t - n, r.shape[2], 1)
                its = after(matrix(to_position), t * across)
                multiply(number, n, D, strips(T + n - 1), its, nearest, shifted, shifted)
            for i in range(n):
                if mask[b, t + i] == 0:
                    _softmax(scores, i, wide, weights, b, a, t + i)
                else:
                    for j in range(T):
                        weights[b, a, t + i, j] = ZERO
            its = after(matrix(weights), ((b * A + a) * T + t) * T)
            multiply(number, n, T, across, its, matrix(values), Matrix(matrix(none).base, 0, 0, 1), matrix(out))
            _scatter(out, b, t, a, n, y)


@compiled_for_threads
def _shared_attend(
    q: Array,
    k: Array,
    value: Array,
    r: Array,
    u: Array,
    v: Array,
    mask: Array,
    left: int,
    right: int,
    scale: float,
    weights: Array,
    y: Array,
    none: Array,
    rooms: tuple[Array, ...],
    bounds: Array,
) -> None:
    """Attend to the pairs between two bounds as one portion."""
    four, turned, scores, near, out = rooms
    for n in prange(len(bounds) - 1):
        room, low, high = (four[n], turned[n], scores[n], near[n], out[n]), bounds[n], bounds[n + 1]
        _attend(q, k, value, r, u, v, mask, left, right, scale, weights, y, none, room, low, high)


@compiled_inside
def _softmax_back(y: Array, b: int, a: int, t: int, scale: float, ds: Array) -> None:
    """Turn dy of the weights y[b, a, t], in row t from column STRIP on, into ds of the raw scores."""
    along = ZERO
    for j in range(y.shape[3]):
        along += y[b, a, t, j] * ds[t, STRIP + j]
    for j in range(y.shape[3]):
        ds[t, STRIP + j] = y[b, a, t, j] * (ds[t, STRIP + j] - along) * scale


@compiled
def _attend_back(
    dy: Array,
    q: Array,
    k: Array,
    value: Array,
    r: Array,
    u: Array,
    v: Array,
    weights: Array,
    scale: float,
    dq: Array,
    dk: Array,
    dvalue: Array,
    dr: Array,
    du: Array,
    dv: Array,
    none: Array,
    room: tuple[Array, ...],
    low: int,
    high: int,
) -> None:
    """Let dq, dk, dvalue (B, T, A, D) be those of the pairs low ... high for dy (B, T, A, D).

    Here a row of r (A, 2T - 1, strips of D) is one position; it may be of more frames. Add to dr, which is like r, du
    and dv (A, D) what they get, where dr is not empty. `none` (A, strips of T or of D, whichever are more) are zeros.

    Room, with zeros: five (wide, across), one (across, wide), ds (T, wide + 3 STRIP), and out of T rows and of ROWS.
    """
    (B, T, A, D), R, across, number = q.shape, r.shape[1], r.shape[2], q.dtype.type(0)
    wide, positions, params, longest = strips(T), len(r) > 0, len(dr) > 0, (R + 1) // 2
    five, turned, ds, out, by_position = room
    to_content, to_position, keys, rows, its_dy = five[0], five[1], five[2], five[3], five[4]
    apart, all_ds, zeros = ds.shape[1], after(matrix(ds), STRIP), Matrix(matrix(none).base, 0, 0, 1)
    for pair in range(low, high):
        a, b = pair // B, pair % B
        _gather(value, b, a, none, ONE, rows)
        turn(number, wide, across, matrix(rows), matrix(turned))
        _gather(k, b, a, none, ONE, keys)
        _gather(q, b, a, u, ONE, to_content)
        _gather(dy, b, a, none, ONE, its_dy)
        if params:
            _gather(q, b, a, v, ONE, to_position)
        for t in range(0, T, ROWS):
            n, its_ds = min(ROWS, T - t), after(all_ds, t * apart)
            multiply(number, n, D, wide, after(matrix(its_dy), t * across), matrix(turned), zeros, its_ds)
            for i in range(n):
                _softmax_back(weights, b, a, t + i, scale, ds)
            multiply(number, n, T, across, its_ds, matrix(keys), zeros, matrix(out))
            if positions:  # shifted as forward; beside the scores there are zeros
                nearest, shifted = (a * R + longest - t - n) * across, its_ds.first - (n - 1)
                its, to = Matrix(its_ds.base, shifted, apart + 1, 1), matrix(by_position)
                multiply(number, n, T + n - 1, across, its, after(matrix(r), nearest), zeros, to)
                if params:
                    for i in range(n):
                        for d in range(D):
                            du[a, d] += out[i, d]
                            dv[a, d] += by_position[i, d]
                    its, its_dr = Matrix(its_ds.base, shifted, 1, apart + 1), after(matrix(dr), nearest)
                    its_q = after(matrix(to_position), t * across)
                    multiply(number, T + n - 1, n, across, its, its_q, its_dr, its_dr)
                for i in range(n):
                    for d in range(D):
                        out[i, d] += by_position[i, d]
            _scatter(out, b, t, a, n, dq)
        its = Matrix(all_ds.base, STRIP, 1, apart)
        multiply(number, T, T, across, its, matrix(to_content), zeros, matrix(out))
        _scatter(out, b, 0, a, T, dk)
        its = Matrix(matrix(weights).base, (b * A + a) * T * T, 1, T)
        multiply(number, T, T, across, its, matrix(its_dy), zeros, matrix(out))
        _scatter(out, b, 0, a, T, dvalue)


@compiled_for_threads
def _shared_attend_back(
    dy: Array,
    q: Array,
    k: Array,
    value: Array,
    r: Array,
    u: Array,
    v: Array,
    weights: Array,
    scale: float,
    dq: Array,
    dk: Array,
    dvalue: Array,
    dr: Array,
    du: Array,
    dv: Array,
    none: Array,
    rooms: tuple[Array, ...],
    bounds: Array,
) -> None:
    """Compute the pairs between two bounds as one portion, each with its own of dr, du and dv."""
    five, turned, ds, out, by_position = rooms
    for n in prange(len(bounds) - 1):
        room, low, high = (five[n], turned[n], ds[n], out[n], by_position[n]), bounds[n], bounds[n + 1]
        its = dr[n], du[n], dv[n]
        _attend_back(dy, q, k, value, r, u, v, weights, scale, dq, dk, dvalue, *its, none, room, low, high)


def per_root(D: int, dtype: np.dtype) -> float:
    """Return 1 / sqrt(D) in the type of the scores."""
    return dtype.type(1 / math.sqrt(D))


def by_head(x: Array) -> Array:
    """View x (B, T, A, D) as (B, A, T, D), or back again."""
    return x.swapaxes(1, 2)


def head_products(B: int, T: int, A: int, D: int, to_T: int, to_D: int) -> dict[tuple[int, int, int, int], int]:
    """Return how many products each head has: from D columns to T, as scores are made, and from T to D.

    One with positions counts as one of T distances, which is what its result has, or what it reads.
    """
    return {(B * A, T, D, T): to_T, (B * A, T, T, D): to_D}


def for_portions(like: Array, bounds: Array, *shapes: tuple[int, ...]) -> tuple[Array, ...]:
    """Return zeros of each shape for each portion."""
    return tuple(array_module(like).zeros((len(bounds) - 1, *shape), like.dtype) for shape in shapes)


def attend(
    q: Array, k: Array, value: Array, turned: Array, u: Array, v: Array, valid: Array, reach: Reach
) -> tuple[Array, Array]:
    """Return y (B, T, A, D) and the weights (B, A, T, T)."""
    xp, (B, T, A, D) = array_module(q), q.shape
    must_have((B, T), valid)
    must_have((B, T, A, D), k, value)
    must_have((A, D), u, v)
    if len(turned):
        must_have((A, D, max(turned.shape[2], 2 * T - 1 + STRIP)), turned)
    q, k, value = (xp.ascontiguousarray(x) for x in (q, k, value))
    weights, y = xp.empty((B, A, T, T), q.dtype), xp.empty(q.shape, q.dtype)
    mask = xp.full((B, strips(T)), LOWEST, q.dtype)
    mask[:, :T] = xp.where(valid, ZERO, LOWEST)
    wide, across, bounds = mask.shape[1], strips(D), bounds_for(B * A, weights.size)
    shapes = (4, wide, across), (across, wide), (ROWS, wide + 3 * STRIP), (ROWS, wide), (ROWS, across)
    rooms = for_portions(q, bounds, *shapes)
    arrays = q, k, value, turned, u, v, mask, *limits(reach, T), per_root(D, q.dtype), weights, y
    none, products = xp.zeros((A, across), q.dtype), head_products(B, T, A, D, 2 if len(turned) else 1, 1)
    if len(bounds) > 2:
        launch(_shared_attend, *arrays, none, rooms, bounds, products=products)
    else:
        launch(_attend, *arrays, none, tuple(one[0] for one in rooms), *map(int, bounds), products=products)
    return y, weights


def in_strips(r: Array) -> Array:
    """Return the positions r (A, R, D) as rows of strips: (A, R, strips of D)."""
    rows = array_module(r).zeros((*r.shape[:2], strips(r.shape[2])), r.dtype)
    rows[..., : r.shape[2]] = r
    return rows


def attend_back(
    dy: Array, q: Array, k: Array, value: Array, rows: Array, u: Array, v: Array, weights: Array, params: bool
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Return dq, dk, dvalue (B, T, A, D), dr (A, 2T - 1, D), du and dv (A, D), the last three without content if no
    `params` are trained. `rows` (A, 2T - 1, strips of D) are positions, or those of more frames.
    """
    xp, (B, T, A, D) = array_module(dy), dy.shape
    must_have((B, T, A, D), q, k, value)
    must_have((B, A, T, T), weights)
    if len(rows):
        must_have((A, max(rows.shape[1], 2 * T - 1), strips(D)), rows)
    dy, q, k, value, weights = (xp.ascontiguousarray(x) for x in (dy, q, k, value, weights))
    wide, across, bounds, dtype = strips(T), strips(D), bounds_for(B * A, weights.size), dy.dtype
    heads = A if params else 0
    dq, dk, dvalue = (xp.empty(dy.shape, dtype) for _ in range(3))
    dr, du, dv = sums = for_portions(dy, bounds, (heads, *rows.shape[1:]), (heads, D), (heads, D))
    shapes = (5, wide, across), (across, wide), (T, wide + 3 * STRIP), (T, across), (ROWS, across)
    rooms, none = for_portions(dy, bounds, *shapes), xp.zeros((A, max(wide, across)), dtype)
    arrays = dy, q, k, value, rows, u, v, weights, per_root(D, dtype), dq, dk, dvalue
    products = head_products(B, T, A, D, 1, 4 + params if len(rows) else 3)
    if len(bounds) > 2:
        launch(_shared_attend_back, *arrays, *sums, none, rooms, bounds, products=products)
    else:
        its, room = [one[0] for one in sums], tuple(one[0] for one in rooms)
        launch(_attend_back, *arrays, *its, none, room, *map(int, bounds), products=products)
    return dq, dk, dvalue, dr.sum(0)[..., :D], du.sum(0), dv.sum(0)


def attention_forward(
    q: Array, k: Array, value: Array, valid: Array, *, reach: Reach = None
) -> tuple[Array, AttentionCache]:
    """Attend: q, k, value (B, T, A, D), valid (B, T) -> y (B, T, A, D), 0 on padded frames."""
    xp, (_, _, A, D) = array_module(q), q.shape
    no_bias = xp.zeros((A, D), q.dtype)
    y, weights = attend(q, k, value, xp.empty((0, D, 0), q.dtype), no_bias, no_bias, valid, reach)
    return y, AttentionCache(by_head(q), by_head(k), by_head(value), MaskedSoftmaxCache(weights))


def attention_backward(dy: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Return dq, dk, dvalue (B, T, A, D) for dy (B, T, A, D)."""
    xp, (_, _, A, D) = array_module(dy), dy.shape
    q, k, value, (weights,) = cache
    no_bias = xp.zeros((A, D), dy.dtype)
    its, no_positions = map(by_head, (q, k, value)), xp.empty((0, 0, strips(D)), dy.dtype)
    dq, dk, dvalue, *_ = attend_back(dy, *its, no_positions, no_bias, no_bias, weights, False)
    return dq, dk, dvalue


MOST_FRAMES = 1024
"""Of an utterance whose projected positions are kept: in a longer one they are little beside its T x T scores."""


def middle(r: Array, T: int) -> Array:
    """View the positions r (A, D, R) of T frames or more as those of T: (A, D, 2T-1)."""
    longest = (r.shape[2] + 1) // 2
    return r[:, :, longest - T : longest + T - 1]


def project(positions: Array, p: RelativePositionParams, T: int) -> Array:
    """Return r' (A, D, R + STRIP) of the sinusoids, with zeros at the end; those of negative positions follow, as sine
    is odd and cosine even.
    """
    xp, (A, D) = array_module(positions), p.u.shape
    sine, cosine = (product(p.W[i::2].T, xp.ascontiguousarray(positions[:T, i::2]).T) for i in (0, 1))
    zeros = xp.zeros((A * D, STRIP), sine.dtype)
    return xp.concatenate([sine + cosine, (cosine - sine)[:, -2::-1], zeros], axis=1).reshape(A, D, -1)


def relative_attention_forward(
    q: Array,
    k: Array,
    value: Array,
    positions: Array,
    valid: Array,
    p: RelativePositionParams,
    *,
    reach: Reach = None,
    params: bool = True,
    kept: Projections | None = None,
) -> tuple[Array, RelativeAttentionCache]:
    """Attend: q, k, value (B, T, A, D), positions (2T-1, C), valid (B, T) -> y (B, T, A, D), 0 on padded frames.

    With `kept` frozen parameters project positions once, if tiles do, whose bits do not depend on how many there are.
    """
    T, (A, D) = q.shape[1], p.u.shape
    if params or T > MOST_FRAMES or not portions_of(A * D, len(p.W) // 2, T):
        kept = None
    make = partial(project, positions, p, T)
    turned = make() if kept is None else kept.of(p.W, "by feature", T, make)
    y, weights = attend(q, k, value, turned, p.u, p.v, valid, reach)
    r, by_heads = middle(turned[:, :, :-STRIP], T).swapaxes(1, 2), map(by_head, (q, k, value))
    return y, RelativeAttentionCache(*by_heads, r, MaskedSoftmaxCache(weights), positions if params else None, p, kept)


def relative_attention_backward(
    dy: Array, cache: RelativeAttentionCache
) -> tuple[Array, Array, Array, RelativePositionParams | None]:
    """Return dq, dk, dvalue (B, T, A, D) and dp for dy (B, T, A, D)."""
    q, k, value, r, (weights,), positions, p, kept = cache
    its, params = map(by_head, (q, k, value)), positions is not None
    must_have((len(p.u), 2 * dy.shape[1] - 1, p.u.shape[1]), r)
    make = partial(in_strips, r)
    rows = make() if kept is None else kept.of(p.W, "by position", dy.shape[1], make)
    dq, dk, dvalue, dr, du, dv = attend_back(dy, *its, rows, p.u, p.v, weights, params)
    if not params:
        return dq, dk, dvalue, None
    dW = turned_product(positions, dr.swapaxes(0, 1).reshape(len(positions), -1))
    return dq, dk, dvalue, RelativePositionParams(dW, du, dv)
