"""Products inside compiled loops: of what follows each other in the cache, and of many small matrices in one call.

y = start + x w is made in tiles of at most ROWS rows and COLUMNS columns, whose sums stay in registers. The innermost
loop is written for LLVM by hand, as a vector for each row: left to itself it keeps the sums in memory.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch

ROWS, COLUMNS = 6, 16
"""Of a tile: with two registers of eight numbers for a row it takes 12 of the 16 that AVX2 has."""


class Matrix(NamedTuple):
    """Where compiled code finds a matrix, in numbers from an address; nobody looks whether it is there."""

    base: int
    first: int  # number of its upper left
    next: int  # from a row to the next; 0 for rows that are all the same, as those of a bias
    step: int  # from a column to the next: not 1 where rows of x are columns of what is stored


@compiled
def matrix(array: Array, next_row: int) -> Matrix:
    """Return that which begins where a contiguous array does."""
    return Matrix(np.intp(array.ctypes.data), 0, next_row, 1)


@compiled
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


def tile_product(rows: int) -> Callable:
    """Return a function for compiled code, which makes `rows` rows of a tile.

    Its arguments: a number of their type; K; and as a Matrix x, w, start and y.
    """

    @intrinsic
    def tile(context, number, K, x, w, start, y):  # noqa: ANN001, ANN202  Numba reads no annotations
        return types.void(number, types.intp, x, w, start, y), write

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        number = context.get_data_type(signature.args[0])
        vector, width = ir.VectorType(number, COLUMNS), number.get_abi_size(context.target_data)
        name = f"llvm.fmuladd.v{COLUMNS}f{8 * width}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), None)
        x, w, start, y = (cgutils.unpack_tuple(builder, argument) for argument in arguments[2:])

        def rows_of(m: list[ir.Value]) -> list[ir.Value]:
            base, first, apart, _ = m
            place = builder.gep(builder.inttoptr(base, number.as_pointer()), [first])
            return [builder.gep(place, [builder.mul(apart, ir.Constant(apart.type, n))]) for n in range(rows)]

        def vector_at(place: ir.Value) -> ir.Value:
            return builder.bitcast(place, vector.as_pointer())

        x_rows, w_row = rows_of(x), rows_of(w)[0]
        sums = [cgutils.alloca_once_value(builder, builder.load(vector_at(row), align=width)) for row in rows_of(start)]
        with cgutils.for_range(builder, arguments[1]) as loop:
            w_k = builder.load(vector_at(builder.gep(w_row, [builder.mul(w[2], loop.index)])), align=width)
            k = builder.mul(x[3], loop.index)
            for x_row, total in zip(x_rows, sums, strict=True):
                value = builder.load(builder.gep(x_row, [k]))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                everywhere = builder.shuffle_vector(one, one, zeros)
                builder.store(builder.call(fma, [everywhere, w_k, builder.load(total)]), total)
        for row, total in zip(rows_of(y), sums, strict=True):
            builder.store(builder.load(total), vector_at(row), align=width)
        return context.get_dummy_value()

    return tile


_tile1, _tile2, _tile3, _tile4, _tile5, _tile6 = (tile_product(rows) for rows in range(1, ROWS + 1))


@compiled
def make_tile(rows: int, number: float, K: int, x: Matrix, w: Matrix, start: Matrix, y: Matrix) -> None:
    """Let COLUMNS columns of `rows` rows of y be start + x w, a sum of K terms."""
    if rows == 6:
        _tile6(number, K, x, w, start, y)
    elif rows == 5:
        _tile5(number, K, x, w, start, y)
    elif rows == 4:
        _tile4(number, K, x, w, start, y)
    elif rows == 3:
        _tile3(number, K, x, w, start, y)
    elif rows == 2:
        _tile2(number, K, x, w, start, y)
    elif rows == 1:
        _tile1(number, K, x, w, start, y)


@compiled
def multiply(number: float, N: int, K: int, O: int, x: Matrix, w: Matrix, start: Matrix, y: Matrix) -> None:
    """Let y (N, O) be start + x (N, K) w (K, O), for O of COLUMNS at least; some columns may be made twice."""
    tiles = (N + ROWS - 1) // ROWS
    for i in range(tiles):
        n, rows = N * i // tiles, N * (i + 1) // tiles - N * i // tiles  # no tile of one row after sixes
        its_x = after(x, n * x.next)
        for p in range(0, O, COLUMNS):
            c = min(p, O - COLUMNS)
            from_start, to = after(start, n * start.next + c), after(y, n * y.next + c)
            make_tile(rows, number, K, its_x, after(w, c), from_start, to)


@compiled
def _fill(W: Array, panels: Array) -> None:
    K, O = W.shape
    for p in range(len(panels)):
        width = min(COLUMNS, O - p * COLUMNS)
        for k in range(K):
            for n in range(width):
                panels[p, k, n] = W[k, p * COLUMNS + n]
            for n in range(width, COLUMNS):
                panels[p, k, n] = 0


def panels_of(W: Array) -> Array:
    """Return W (K, O) in panels (ceil(O / COLUMNS), K, COLUMNS), the last of which is filled up with zeros."""
    K, O = W.shape
    panels = array_module(W).empty((-(-O // COLUMNS), K, COLUMNS), W.dtype)
    launch(_fill, W, panels)
    return panels


@compiled
def multiply_panels(x: Array, panels: Array, b: Array, y: Array) -> None:
    """Let y (N, O) be x (N, K) W + b, for W in panels and b that is filled up as the last one."""
    (N, K), O = x.shape, y.shape[1]
    tiles, number = (N + ROWS - 1) // ROWS, x.dtype.type(0)
    tile, rows_of_x = np.empty((ROWS, COLUMNS), x.dtype), matrix(x, K)
    for p in range(len(panels)):
        left = p * COLUMNS
        width, w, start = min(COLUMNS, O - left), matrix(panels[p], COLUMNS), matrix(b[left:], 0)
        for i in range(tiles):
            n, rows = N * i // tiles, N * (i + 1) // tiles - N * i // tiles
            make_tile(rows, number, K, after(rows_of_x, n * K), w, start, matrix(tile, COLUMNS))
            for m in range(rows):
                for c in range(width):
                    y[n + m, left + c] = tile[m, c]
