"""Products inside compiled loops, so that what follows them finds their results in the cache of the processor.

y = x W is made in tiles of at most ROWS rows and COLUMNS columns, whose sums stay in registers. W lies in panels: in
panel p, row k holds W[k, COLUMNS p : COLUMNS (p + 1)], so that the tile reads it from the first to the last. The
innermost loop is written for LLVM by hand, as a vector for each row: left to itself it keeps the sums in memory.
"""

from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from minihra.arrays import Array
from minihra.kernels.cpu.compiled import compiled

ROWS, COLUMNS = 6, 16
"""Of a tile: with two registers of eight numbers for a row it takes 12 of the 16 that AVX2 has."""


def tile_product(rows: int) -> Callable:
    """Return a function for compiled code, which adds `rows` rows of x, K numbers each, times a panel to a tile.

    Its arguments: x flat; where its first row begins, and how far from there the second; the panels flat; where the
    first row of one begins, and K; the tile.
    """

    @intrinsic
    def add(context, x, first_x, next_x, panels, first, K, tile):  # noqa: ANN001, ANN202  Numba reads no annotations
        return types.void(x, types.intp, types.intp, panels, types.intp, types.intp, tile), write

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        number = context.get_data_type(signature.args[0].dtype)
        vector, width = ir.VectorType(number, COLUMNS), number.get_abi_size(context.target_data)
        name = f"llvm.fmuladd.v{COLUMNS}f{8 * width}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), COLUMNS), None)

        def address(array: int, *steps: ir.Value) -> ir.Value:
            """Return that of the element so many steps from the beginning of an array."""
            place = context.make_array(signature.args[array])(context, builder, value=arguments[array]).data
            for step in steps:
                place = builder.gep(place, [step])
            return place

        def times(a: ir.Value, b: int) -> ir.Value:
            return builder.mul(a, ir.Constant(a.type, b))

        def vector_at(place: ir.Value) -> ir.Value:
            return builder.bitcast(place, vector.as_pointer())

        x_rows = [address(0, arguments[1], times(arguments[2], m)) for m in range(rows)]
        tile_rows = [vector_at(address(6, ir.Constant(arguments[1].type, m * COLUMNS))) for m in range(rows)]
        sums = [cgutils.alloca_once_value(builder, builder.load(row, align=width)) for row in tile_rows]
        with cgutils.for_range(builder, arguments[5]) as loop:
            row_k = builder.load(vector_at(address(3, arguments[4], times(loop.index, COLUMNS))), align=width)
            for x_row, total in zip(x_rows, sums, strict=True):
                value = builder.load(builder.gep(x_row, [loop.index]))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                everywhere = builder.shuffle_vector(one, one, zeros)
                builder.store(builder.call(fma, [everywhere, row_k, builder.load(total)]), total)
        for row, total in zip(tile_rows, sums, strict=True):
            builder.store(builder.load(total), row, align=width)
        return context.get_dummy_value()

    return add


_add1, _add2, _add3, _add4, _add5, _add6 = (tile_product(rows) for rows in range(1, ROWS + 1))


@compiled
def add_to_tile(rows: int, x: Array, first_x: int, next_x: int, panels: Array, first: int, K: int, tile: Array) -> None:
    """Call the function for `rows` rows."""
    if rows == 6:
        _add6(x, first_x, next_x, panels, first, K, tile)
    elif rows == 5:
        _add5(x, first_x, next_x, panels, first, K, tile)
    elif rows == 4:
        _add4(x, first_x, next_x, panels, first, K, tile)
    elif rows == 3:
        _add3(x, first_x, next_x, panels, first, K, tile)
    elif rows == 2:
        _add2(x, first_x, next_x, panels, first, K, tile)
    else:
        _add1(x, first_x, next_x, panels, first, K, tile)


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
    panels = np.empty((-(-O // COLUMNS), K, COLUMNS), W.dtype)
    _fill(W, panels)
    return panels


@compiled
def multiply(x: Array, panels: Array, b: Array, y: Array) -> None:
    """Let y (N, O) be x (N, K) W + b."""
    (N, K), O = x.shape, y.shape[1]
    tiles = (N + ROWS - 1) // ROWS
    flat_x, flat_panels, tile = x.reshape(-1), panels.reshape(-1), np.empty((ROWS, COLUMNS), x.dtype)
    for p in range(len(panels)):
        left, first = p * COLUMNS, p * K * COLUMNS
        width = min(COLUMNS, O - left)  # LLVM makes a worse loop of the constant alone
        for i in range(tiles):
            top, rows = N * i // tiles, N * (i + 1) // tiles - N * i // tiles  # no tile of one row after sixes
            tile[:] = 0
            add_to_tile(rows, flat_x, top * K, K, flat_panels, first, K, tile)
            for m in range(rows):
                for n in range(width):
                    y[top + m, left + n] = tile[m, n] + b[left + n]
