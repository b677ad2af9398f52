"""Products inside compiled loops: of what follows each other in the cache, and of many small matrices in one call.

y = start + x w is made in tiles of at most ROWS rows and COLUMNS columns, whose sums stay in registers. The innermost
loop is written for LLVM by hand, as two vectors for each row: left to itself it keeps the sums in memory.

The linear maps of a thread that has no others are made so, too (`product`): of a matrix whose columns lie in panels of
COLUMNS, and the bias with them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, compiled_inside, launch, must_have
from minihra.threads import alone

ROWS, COLUMNS = 6, 16
"""Of a tile: with two registers of eight numbers for a row it takes 12 of the 16 that AVX2 has."""

AT_ONCE = 8 * ROWS
"""How many rows of y are made of one panel after the other: those of x stay in the cache."""

SIDE = 8
"""Of the squares in which a matrix is turned."""

LEAST_ROWS, MOST_SIZE = 96, 2**18
"""Rows of x from which on panels are worth filling, and elements of W up to which they stay in a cache: beyond, BLAS is
faster.
"""


class Matrix(NamedTuple):
    """Where compiled code finds a matrix, in numbers from an address; nobody looks whether it is there."""

    base: int
    first: int  # number of its upper left
    next: int  # from a row to the next; 0 for rows that are all the same, as those of a bias
    step: int  # from a column to the next: not 1 where rows of x are columns of what is stored


@compiled_inside
def matrix(array: Array) -> Matrix:
    """Return that which begins where a contiguous array does, with its rows; a single row stands for all."""
    return Matrix(np.intp(array.ctypes.data), 0, array.shape[-1] if array.ndim > 1 else 0, 1)


@compiled_inside
def after(m: Matrix, numbers: int) -> Matrix:
    """Return the matrix that begins so many numbers further on."""
    return Matrix(m.base, m.first + numbers, m.next, m.step)


@intrinsic
def number_at(context, number, m, k):  # noqa: ANN001, ANN201  Numba reads no annotations
    """Return the k-th number of a matrix, of the type of `number`."""

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        pointer = context.get_data_type(signature.args[0]).as_pointer()
        base, first, _, _ = cgutils.unpack_tuple(builder, arguments[1])
        return builder.load(builder.gep(builder.inttoptr(base, pointer), [builder.add(first, arguments[2])]))

    return number(number, m, types.intp), write


def unexplained(builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
    """Return a pointer as if nothing were known of it: LLVM would not keep those of all rows in registers, but compute
    most of them anew for every number that it reads, and a tile would take a tenth longer.
    """
    kind = ir.FunctionType(pointer.type, [pointer.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0"), [pointer])


def tile_product(rows: int) -> Callable:
    """Return a function for compiled code, which makes `rows` rows of a tile.

    Its arguments: a number of their type; K; and as a Matrix x, w, start and y.
    """

    @intrinsic
    def tile(context, number, K, x, w, start, y):  # noqa: ANN001, ANN202  Numba reads no annotations
        return types.void(number, types.intp, x, w, start, y), write

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        number = context.get_data_type(signature.args[0])
        half, width = ir.VectorType(number, COLUMNS // 2), number.get_abi_size(context.target_data)
        name = f"llvm.fmuladd.v{COLUMNS // 2}f{8 * width}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(half, [half] * 3), name)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS // 2), None)
        x, w, start, y = (cgutils.unpack_tuple(builder, argument) for argument in arguments[2:])

        def rows_of(m: list[ir.Value]) -> list[ir.Value]:
            base, first, apart, _ = m
            place = builder.gep(builder.inttoptr(base, number.as_pointer()), [first])
            return [builder.gep(place, [builder.mul(apart, ir.Constant(apart.type, n))]) for n in range(rows)]

        def halves_at(row: ir.Value) -> list[ir.Value]:
            halves = builder.bitcast(row, half.as_pointer())
            return [halves, builder.gep(halves, [ir.Constant(ir.IntType(32), 1)])]

        def load(row: ir.Value) -> list[ir.Value]:
            return [builder.load(place, align=width) for place in halves_at(row)]

        x_rows, w_row = [unexplained(builder, row) for row in rows_of(x)], rows_of(w)[0]
        sums = [[cgutils.alloca_once_value(builder, value) for value in load(row)] for row in rows_of(start)]
        with cgutils.for_range(builder, arguments[1]) as loop:
            w_k = load(builder.gep(w_row, [builder.mul(w[2], loop.index)]))
            k = builder.mul(x[3], loop.index)
            for x_row, totals in zip(x_rows, sums, strict=True):
                value = builder.load(builder.gep(x_row, [k]))
                one = builder.insert_element(ir.Constant(half, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                everywhere = builder.shuffle_vector(one, one, zeros)
                for total, its_w in zip(totals, w_k, strict=True):
                    builder.store(builder.call(fma, [everywhere, its_w, builder.load(total)]), total)
        for row, totals in zip(rows_of(y), sums, strict=True):
            for place, total in zip(halves_at(row), totals, strict=True):
                builder.store(builder.load(total), place, align=width)
        return context.get_dummy_value()

    return tile


_tile1, _tile5, _tile6 = tile_product(1), tile_product(5), tile_product(6)


@compiled_inside
def rows_of_tile(left: int) -> int:
    """Return how many of the rows that are left the next tile makes: as many as six and five go, from 20 rows on."""
    tiles = (left + ROWS - 1) // ROWS
    if 5 * tiles <= left:
        return 6 if left > 5 * tiles else 5
    return 6 if left >= 6 else 1


@njit(inline="always")  # by Numba, so that each place knows what is constant there
def make_tile(rows: int, number: float, K: int, x: Matrix, w: Matrix, start: Matrix, y: Matrix) -> None:
    """Let COLUMNS columns of six rows of y, of five or of one, be start + x w, a sum of K terms."""
    if rows == 6:
        _tile6(number, K, x, w, start, y)
    elif rows == 5:
        _tile5(number, K, x, w, start, y)
    else:
        _tile1(number, K, x, w, start, y)


@compiled_inside
def multiply(number: float, N: int, K: int, O: int, x: Matrix, w: Matrix, start: Matrix, y: Matrix) -> None:
    """Let y (N, O) be start + x (N, K) w (K, O), for O of COLUMNS at least; some columns may be made twice."""
    n = 0
    while n < N:
        rows = rows_of_tile(N - n)
        its_x = after(x, n * x.next)
        for p in range(0, O, COLUMNS):
            c = min(p, O - COLUMNS)
            its_w, from_start, to = after(w, c), after(start, n * start.next + c), after(y, n * y.next + c)
            make_tile(rows, number, K, its_x, its_w, from_start, to)
        n += rows


@compiled_inside
def add_product(number: float, N: int, K: int, x: Matrix, panel: Matrix, y: Matrix) -> None:
    """Add to y (N, COLUMNS) what is x (N, K) times a panel (K, COLUMNS)."""
    w, n = Matrix(panel.base, panel.first, COLUMNS, 1), 0
    while n < N:
        rows = rows_of_tile(N - n)
        its_x = Matrix(x.base, x.first + n * x.next, x.next, 1)  # of which the tile knows how its numbers lie
        its_y = Matrix(y.base, y.first + n * COLUMNS, COLUMNS, 1)
        make_tile(rows, number, K, its_x, w, its_y, its_y)
        n += rows


@compiled_inside
def left_of(p: int, wide: int, O: int) -> int:
    """Return the first of the O columns that are in panel p: the last panel has as many as the others."""
    return max(0, min(p * wide, O - wide))


@intrinsic
def turn_square(context, number, x, y):  # noqa: ANN001, ANN201  Numba reads no annotations
    """Let y (SIDE, SIDE) be the transpose of x, of numbers of the type of `number`."""

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        number = context.get_data_type(signature.args[0])
        vector, width = ir.VectorType(number, SIDE), number.get_abi_size(context.target_data)

        def places(m: ir.Value) -> list[ir.Value]:
            base, first, apart, _ = cgutils.unpack_tuple(builder, m)
            place = builder.gep(builder.inttoptr(base, number.as_pointer()), [first])
            rows = [builder.gep(place, [builder.mul(apart, ir.Constant(apart.type, n))]) for n in range(SIDE)]
            return [builder.bitcast(row, vector.as_pointer()) for row in rows]

        rows = [builder.load(place, align=width) for place in places(arguments[1])]
        size = SIDE // 2
        while size:  # in each square of 2 x 2 blocks of this size, the upper right and the lower left change places
            upper = [i + SIDE - size if i & size else i for i in range(SIDE)]
            lower = [i + SIDE if i & size else i + size for i in range(SIDE)]
            for n in range(SIDE):
                if not n & size:
                    pair = rows[n], rows[n + size]
                    masks = [ir.Constant(ir.VectorType(ir.IntType(32), SIDE), mask) for mask in (upper, lower)]
                    rows[n], rows[n + size] = (builder.shuffle_vector(*pair, mask) for mask in masks)
            size //= 2
        for row, place in zip(rows, places(arguments[2]), strict=True):
            builder.store(row, place, align=width)
        return context.get_dummy_value()

    return types.void(number, x, y), write


@compiled
def _fill(W: Array, turned: bool, panels: Array) -> None:
    """Let panels (P, K, COLUMNS) be those of W (K, O), or where it is to be turned, of W (O, K)."""
    (P, K, wide), O, number = panels.shape, W.shape[0] if turned else W.shape[1], W.dtype.type(0)
    its, to, no_terms = matrix(W), matrix(panels), K - K  # of a literal 0 Numba would compile a tile anew
    for p in range(P):
        panel, left = panels[p], left_of(p, wide, O)
        if turned:
            squares = K - K % SIDE
            for k in range(0, squares, SIDE):
                for c in range(0, wide, SIDE):
                    turn_square(number, after(its, (left + c) * K + k), after(to, (p * K + k) * wide + c))
            for k in range(squares, K):
                for c in range(wide):
                    panel[k, c] = number_at(number, its, (left + c) * K + k)
        else:
            for k in range(K):  # a tile of no terms is what it starts from
                _tile1(number, no_terms, its, its, after(its, k * O + left), after(to, (p * K + k) * wide))


def panels_of(W: Array) -> Array:
    """Return W (K, O) in panels (ceil(O / COLUMNS), K, COLUMNS).

    The last one has the last columns of W, some of which the one before may have, too; a matrix that is narrower than
    one panel is filled up with zeros.
    """
    xp, (K, O) = array_module(W), W.shape
    if O < COLUMNS:
        W = xp.concatenate([W, xp.zeros((K, COLUMNS - O), W.dtype)], axis=1)
    panels = xp.empty((-(-O // COLUMNS), K, COLUMNS), W.dtype)
    launch(_fill, xp.ascontiguousarray(W), False, panels)
    return panels


@compiled_inside
def multiply_panels(x: Array, panels: Array, b: Array, y: Array) -> None:
    """Let y (N, O) be x (N, K) W + b, for the panels of W, O of COLUMNS at least and N of ROWS."""
    (N, O), (P, K, wide), number = y.shape, panels.shape, x.dtype.type(0)
    all_x, all_w, all_b, all_y = matrix(x), matrix(panels), matrix(b), matrix(y)
    for first in range(0, N, AT_ONCE):
        for p in range(P):
            c = left_of(p, wide, O)
            w, start, to = after(all_w, p * K * wide), after(all_b, c), after(all_y, c)
            for row in range(first, min(first + AT_ONCE, N), ROWS):
                n = min(row, N - ROWS)  # the last tile makes some rows of the one before again
                _tile6(number, K, after(all_x, n * K), w, start, after(to, n * O))


@compiled
def _product(x: Array, W: Array, turned: bool, b: Array, panels: Array, y: Array) -> None:
    _fill(W, turned, panels)
    multiply_panels(x, panels, b, y)


def product(x: Array, W: Array, b: Array | None = None) -> Array:
    """Return y (N, O) = x (N, K) W + b: in tiles for a caller who has but its own thread, by BLAS for others and where
    tiles would not be faster.
    """
    (N, K), O = x.shape, W.shape[1]
    if isinstance(x, np.ndarray) and alone() and N >= LEAST_ROWS and O >= COLUMNS and W.size <= MOST_SIZE:
        must_have((K, O), W)
        must_have((O,), *(() if b is None else (b,)))
        turned, b = W.strides[0] == W.itemsize, np.zeros(O, x.dtype) if b is None else b
        panels, y = np.empty((-(-O // COLUMNS), K, COLUMNS), x.dtype), np.empty((N, O), x.dtype)
        _product(np.ascontiguousarray(x), np.ascontiguousarray(W.T if turned else W), turned, b, panels, y)
    else:
        y = x @ W
        if b is not None:
            y += b
    return y
