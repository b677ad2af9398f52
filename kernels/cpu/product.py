"""Products inside compiled loops: of what follows each other in the cache, and of many small matrices in one call.

y = start + x w is made in tiles of at most ROWS rows and COLUMNS columns, whose sums stay in registers; what is left of
the columns then has tiles of NARROW ones. The innermost loop is written for LLVM by hand, as vectors for each row: left
to itself it keeps the sums in memory.

Linear maps are made so, too (`product`): of a matrix whose columns lie in panels of COLUMNS, and the bias with them.
Unless the caller has but its own thread, those of OpenMP share the rows, or the columns of a large W.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import njit, prange
from numba.core import cgutils, types
from numba.extending import intrinsic

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import OPENMP, compiled, compiled_inside, launch, must_have
from minihra.kernels.cpu.openmp import compiled_for_threads
from minihra.threads import alone, threads


def has_avx512() -> bool:
    """Whether the processor has registers of 16 numbers, 32 of them."""
    try:
        return bool(binding.get_host_cpu_features().get("avx512f"))
    except RuntimeError:  # LLVM knows no features of some processors
        return False


WIDE = has_avx512()

LANES = 16 if WIDE else 8
ROWS, COLUMNS, NARROW = (8, 48, 16) if WIDE else (6, 16, 16)
"""Of a tile: its sums take 24 of the 32 registers of AVX-512, or 12 of the 16 of AVX2."""

ALONE = 3 if WIDE else ROWS - 1
"""As many rows that are left have a tile together; fewer are made one by one, which takes less time. Tiles of AVX2 have
all their rows, as to choose among rows takes their steps 3 % more time.
"""

AT_ONCE = 8 * ROWS
"""How many rows of y are made of one panel after the other: those of x stay in the cache."""

AHEAD = 4
"""As many rows of w before they are read, tiles of AVX-512 ask for them; with AVX2 this takes more than it gives."""

SIDE = 8
"""Of the squares in which a matrix is turned."""

LEAST_ROWS, MOST_SIZE = 96, 2**18
"""Rows of x from which on panels are worth filling for one thread, and elements of W up to which all of them stay in a
cache: beyond, each is read as soon as it is filled.
"""

TERMS = 128
"""How many terms of a sum over frames are added at once: those of dy stay in the cache."""

WORTH_SHARING = 2**18
"""Multiplications up to which BLAS makes a product with one of its threads. More of them would be in the way of
OpenMP's, which look for more to do for a while.
"""


class Matrix(NamedTuple):
    """Where compiled code finds a matrix, in numbers from an address; nobody looks whether it is there.

    Numba gives an array back after the last line that names it, whoever has its address. Code that makes an array
    itself reads its address in the loop that uses it: what a loop names stays to its end (tests/test_house.py).
    """

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


def fetch_ahead(builder: ir.IRBuilder, place: ir.Value) -> None:
    """Let what lies at a place come into the cache meanwhile; it may be nothing."""
    place, number = builder.bitcast(place, ir.IntType(8).as_pointer()), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(prefetch, [place, *(ir.Constant(number, n) for n in (0, 3, 1))])  # to be read, soon and often, data


def tile_product(rows: int, columns: int) -> Callable:
    """Return a function for compiled code, which makes a tile of so many rows and columns.

    Its arguments: a number of their type; how many rows there are, of which the last one is made again in place of
    those that are missing (where registers are WIDE, else all must be there); K; and as a Matrix x, w, start and y.
    Meanwhile the rows of x that follow come into the cache, if they lie one after the other, and those of w.
    """

    @intrinsic
    def tile(context, number, there, K, x, w, start, y):  # noqa: ANN001, ANN202  Numba reads no annotations
        return types.void(number, types.intp, types.intp, x, w, start, y), write

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        number = context.get_data_type(signature.args[0])
        vector, width = ir.VectorType(number, LANES), number.get_abi_size(context.target_data)
        name = f"llvm.fmuladd.v{LANES}f{8 * width}"
        fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * 3), name)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
        x, w, start, y = (cgutils.unpack_tuple(builder, argument) for argument in arguments[3:])
        last = builder.sub(arguments[1], ir.Constant(arguments[1].type, 1))

        def rows_of(m: list[ir.Value]) -> list[ir.Value]:
            base, first, apart, _ = m
            place = builder.gep(builder.inttoptr(base, number.as_pointer()), [first])
            numbers = [ir.Constant(last.type, n) for n in range(rows)]
            if WIDE:
                numbers[1:] = [builder.select(builder.icmp_signed("<", n, last), n, last) for n in numbers[1:]]
            return [builder.gep(place, [builder.mul(apart, n)]) for n in numbers]

        def vectors_at(row: ir.Value) -> list[ir.Value]:
            first = builder.bitcast(row, vector.as_pointer())
            return [builder.gep(first, [ir.Constant(ir.IntType(32), n)]) for n in range(columns // LANES)]

        def load(row: ir.Value) -> list[ir.Value]:
            return [builder.load(place, align=width) for place in vectors_at(row)]

        x_rows, w_row = [unexplained(builder, row) for row in rows_of(x)], rows_of(w)[0]
        sums = [[cgutils.alloca_once_value(builder, value) for value in load(row)] for row in rows_of(start)]
        following = builder.gep(rows_of(x)[0], [builder.mul(x[2], ir.Constant(last.type, rows))])
        with cgutils.for_range(builder, arguments[2]) as loop:
            fetch_ahead(builder, builder.gep(following, [builder.mul(loop.index, ir.Constant(last.type, rows))]))
            if WIDE:
                ahead = builder.add(loop.index, ir.Constant(last.type, AHEAD))
                for place in vectors_at(builder.gep(w_row, [builder.mul(w[2], ahead)])):
                    fetch_ahead(builder, place)
            w_k = load(builder.gep(w_row, [builder.mul(w[2], loop.index)]))
            k = builder.mul(x[3], loop.index)
            for x_row, totals in zip(x_rows, sums, strict=True):
                value = builder.load(builder.gep(x_row, [k]))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
                everywhere = builder.shuffle_vector(one, one, zeros)
                for total, its_w in zip(totals, w_k, strict=True):
                    builder.store(builder.call(fma, [everywhere, its_w, builder.load(total)]), total)
        for row, totals in zip(rows_of(y), sums, strict=True):
            for place, total in zip(vectors_at(row), totals, strict=True):
                builder.store(builder.load(total), place, align=width)
        return context.get_dummy_value()

    return tile


_one, _less, _most = (tile_product(rows, COLUMNS) for rows in (1, ROWS - 1, ROWS))
_narrow_one, _narrow_less, _narrow_most = (tile_product(rows, NARROW) for rows in (1, ROWS - 1, ROWS))


@compiled_inside
def rows_of_tile(left: int) -> int:
    """Return how many rows the next tile has room for: ROWS, or one less where that takes no more tiles, or a single
    one where few are left.
    """
    tiles = (left + ROWS - 1) // ROWS
    fewer = (ROWS - 1) * tiles
    if left < ALONE:
        return 1
    if WIDE:
        return ROWS if left > fewer else ROWS - 1
    return ROWS - 1 if left == fewer else ROWS  # so that no row is missing


@compiled_inside
def columns_of_tile(left: int) -> int:
    """Return how many columns the next tile has."""
    return COLUMNS if left >= COLUMNS else NARROW


@njit(inline="always")  # by Numba, so that each place knows what is constant there
def make_tile(
    rows: int, columns: int, number: float, there: int, K: int, x: Matrix, w: Matrix, start: Matrix, y: Matrix
) -> None:
    """Let a tile of y be start + x w, a sum of K terms; `there` of its rows are, at most `rows`."""
    if NARROW < COLUMNS and columns < COLUMNS:
        if rows == ROWS:
            _narrow_most(number, there, K, x, w, start, y)
        elif rows == ROWS - 1:
            _narrow_less(number, there, K, x, w, start, y)
        else:
            _narrow_one(number, there, K, x, w, start, y)
    elif rows == ROWS:
        _most(number, there, K, x, w, start, y)
    elif rows == ROWS - 1:
        _less(number, there, K, x, w, start, y)
    else:
        _one(number, there, K, x, w, start, y)


@compiled_inside
def multiply(number: float, N: int, K: int, O: int, x: Matrix, w: Matrix, start: Matrix, y: Matrix) -> None:
    """Let y (N, O) be start + x (N, K) w (K, O), for O of NARROW at least; some columns may be made twice."""
    n = 0
    while n < N:
        rows, c = rows_of_tile(N - n), 0
        there, its_x = min(rows, N - n), after(x, n * x.next)
        while c < O:
            columns = columns_of_tile(O - c)
            left = min(c, O - columns)
            its_w, from_start, to = after(w, left), after(start, n * start.next + left), after(y, n * y.next + left)
            make_tile(rows, columns, number, there, K, its_x, its_w, from_start, to)
            c += columns
        n += rows


@compiled_inside
def add_product(number: float, N: int, K: int, x: Matrix, panel: Matrix, y: Matrix, first: int) -> None:
    """Add to y (N, COLUMNS) what is x (N, K) times a panel (K, COLUMNS), in the columns from the `first` one on, which
    is a whole multiple of NARROW.
    """
    w, to = Matrix(panel.base, panel.first + first, COLUMNS, 1), Matrix(y.base, y.first + first, COLUMNS, 1)
    multiply(number, N, K, COLUMNS - first, x, w, to, to)


@compiled_inside
def left_of(p: int, wide: int, O: int) -> int:
    """Return the first of the O columns that are in panel p: the last panel has as many as the others."""
    return max(0, min(p * wide, O - wide))


@compiled_inside
def first_new(p: int, wide: int, O: int) -> int:
    """Return the first column of panel p that tiles must make: the panel before has made those further left."""
    return (p * wide - left_of(p, wide, O)) // NARROW * NARROW


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


@compiled_inside
def turn(number: float, I: int, O: int, x: Matrix, y: Matrix) -> None:
    """Let y (O, I) be the transpose of x (I, O), for I and O of SIDE at least; the last squares overlap."""
    for i in range(0, I, SIDE):
        for o in range(0, O, SIDE):
            row, column = min(i, I - SIDE), min(o, O - SIDE)
            turn_square(number, after(x, row * x.next + column), after(y, column * y.next + row))


@compiled
def _fill(W: Array, turned: bool, skipped: int, panels: Array) -> None:
    """Let panels (P, K, COLUMNS) be those of W (K, O), or where it is to be turned, of W (O, K), after so many that are
    skipped.
    """
    (P, K, wide), O, number = panels.shape, W.shape[0] if turned else W.shape[1], W.dtype.type(0)
    its, to, no_terms = matrix(W), matrix(panels), K - K  # of a literal 0 Numba would compile a tile anew
    if wide > O:
        for k in range(K if P > 0 else 0):
            for c in range(O):
                panels[0, k, c] = number_at(number, its, c * K + k if turned else k * O + c)
    elif turned:
        for p in range(P):
            panel, left, squares = panels[p], left_of(skipped + p, wide, O), K - K % SIDE
            for k in range(0, squares, SIDE):
                for c in range(0, wide, SIDE):
                    turn_square(number, after(its, (left + c) * K + k), after(to, (p * K + k) * wide + c))
            for k in range(squares, K):
                for c in range(wide):
                    panel[k, c] = number_at(number, its, (left + c) * K + k)
    else:
        for k in range(K):
            for p in range(P):  # a tile of no terms is what it starts from
                place = after(its, k * O + left_of(skipped + p, wide, O))
                _one(number, 1, no_terms, its, its, place, after(to, (p * K + k) * wide))


def panels_of(W: Array) -> Array:
    """Return W (K, O) in panels (ceil(O / COLUMNS), K, COLUMNS).

    The last one has the last columns of W, some of which the one before may have, too; a matrix that is narrower than
    one panel is filled up with zeros.
    """
    xp, (K, O) = array_module(W), W.shape
    if O < COLUMNS:
        W = xp.concatenate([W, xp.zeros((K, COLUMNS - O), W.dtype)], axis=1)
    panels = xp.empty((-(-O // COLUMNS), K, COLUMNS), W.dtype)
    launch(_fill, xp.ascontiguousarray(W), False, 0, panels)
    return panels


@compiled_inside
def multiply_panels(x: Array, panels: Array, b: Array, y: Array) -> None:
    """Let y (N, O) be x (N, K) W + b, for the panels of W, O of NARROW at least and N of ROWS."""
    multiply_some_panels(x, 0, panels, b, y)


@compiled_inside
def multiply_some_panels(x: Array, skipped: int, panels: Array, b: Array, y: Array) -> None:
    """Do so in the columns of some panels, which follow so many that are skipped."""
    (N, O), (P, K, wide), number = y.shape, panels.shape, x.dtype.type(0)
    all_x, all_w, all_b, all_y = matrix(x), matrix(panels), matrix(b), matrix(y)
    for first in range(0, N, AT_ONCE):
        for p in range(P):
            begin = (skipped + p) * wide
            left, until = left_of(skipped + p, wide, O), min(begin + wide, O)
            whole = NARROW == COLUMNS or until == begin + wide
            for column in range(left if whole else begin, until, COLUMNS if whole else NARROW):
                c = column if whole else min(column, O - NARROW)
                w, start, to = after(all_w, p * K * wide + c - left), after(all_b, c), after(all_y, c)
                for row in range(first, min(first + AT_ONCE, N), ROWS):
                    n = min(row, N - ROWS)  # the last tile makes some rows of the one before again
                    if whole:
                        _most(number, ROWS, K, after(all_x, n * K), w, start, after(to, n * O))
                    else:
                        _narrow_most(number, ROWS, K, after(all_x, n * K), w, start, after(to, n * O))


@compiled
def _product(x: Array, W: Array, turned: bool, b: Array, panels: Array, y: Array) -> None:
    _fill(W, turned, 0, panels)
    multiply_panels(x, panels, b, y)


@compiled_for_threads
def _shared_product(
    x: Array, W: Array, turned: bool, b: Array, panels: Array, y: Array, cuts: Array, bounds: Array
) -> None:
    """Fill the panels between two cuts as one portion, and then make the rows between two bounds."""
    for n in prange(len(cuts) - 1):
        _fill(W, turned, cuts[n], panels[cuts[n] : cuts[n + 1]])
    for n in prange(len(bounds) - 1):
        low, high = bounds[n], bounds[n + 1]
        multiply_panels(x[low:high], panels, b, y[low:high])


@compiled
def _panel_by_panel(x: Array, W: Array, turned: bool, b: Array, panel: Array, y: Array, first: int, last: int) -> None:
    """Make the columns of y that lie in some panels of W, with the room of one (1, K, COLUMNS)."""
    for p in range(first, last):
        _fill(W, turned, p, panel)
        multiply_some_panels(x, p, panel, b, y)


@compiled_for_threads
def _shared_columns(x: Array, W: Array, turned: bool, b: Array, panels: Array, y: Array, cuts: Array) -> None:
    """Make the columns in the panels between two cuts as one portion."""
    for n in prange(len(cuts) - 1):
        _panel_by_panel(x, W, turned, b, panels[n : n + 1], y, cuts[n], cuts[n + 1])


def portions_of(N: int, K: int, O: int) -> int:
    """Return how many threads make a product of N rows in tiles, each 2 ROWS at least; 0 where BLAS makes it."""
    if O < NARROW:
        return 0
    if alone():
        return int(N >= LEAST_ROWS)
    portions = min(threads(), N // (2 * ROWS)) if OPENMP else 1
    return portions if portions > 1 and N * K * O > WORTH_SHARING else 0


def product(x: Array, W: Array, b: Array | None = None) -> Array:
    """Return y (N, O) = x (N, K) W + b: in tiles, or by BLAS where they would not be faster."""
    xp, (N, K), O = array_module(x), x.shape, W.shape[1]
    portions = portions_of(N, K, O)
    if not portions:
        y = x @ W
        if b is not None:
            y += b
        return y
    must_have((K, O), W)
    must_have((O,), *(() if b is None else (b,)))
    turned, b = W.strides[0] == W.dtype.itemsize, xp.zeros((O,), x.dtype) if b is None else b
    all_panels, one_by_one, y = -(-O // COLUMNS), K * O > MOST_SIZE, xp.empty((N, O), x.dtype)
    panels = xp.empty((portions if one_by_one else all_panels, K, COLUMNS), x.dtype)
    arrays = xp.ascontiguousarray(x), xp.ascontiguousarray(W.T if turned else W), turned, b, panels, y
    if portions > 1:
        cuts, bounds = (n * np.arange(portions + 1) // portions for n in (all_panels, N))
        loop, limits = (_shared_columns, (cuts,)) if one_by_one else (_shared_product, (cuts, bounds))
    else:
        loop, limits = (_panel_by_panel, (0, all_panels)) if one_by_one else (_product, ())
    launch(loop, *arrays, *limits, products={(1, N, K, O): 1})
    return y


@compiled_inside
def _add_turned_product(x: Array, dy: Array, dW: Array, low: int, high: int) -> None:
    """Add to the rows `low` ... of dW (I, O) those of x' dy."""
    (N, I), O, number, all_dy = x.shape, dy.shape[1], x.dtype.type(0), matrix(dy)
    to = after(matrix(dW), low * O)
    for first in range(0, N, TERMS):
        its_x = Matrix(matrix(x).base, first * I + low, 1, I)  # turned: its rows are columns of x
        multiply(number, high - low, min(TERMS, N - first), O, its_x, after(all_dy, first * O), to, to)


@compiled_for_threads
def _shared_turned_product(x: Array, dy: Array, dW: Array, bounds: Array) -> None:
    """Add to the rows of dW (I, O) between two bounds, as one portion, those of x' dy."""
    for n in prange(len(bounds) - 1):
        _add_turned_product(x, dy, dW, bounds[n], bounds[n + 1])


def turned_product(x: Array, dy: Array) -> Array:
    """Return dW (I, O) = x' dy of x (N, I) and dy (N, O): in tiles where several threads share it, else by BLAS."""
    (N, I), O = x.shape, dy.shape[1]
    portions = 1
    if isinstance(x, np.ndarray) and OPENMP and not alone() and O % NARROW == 0 and N * I * O > WORTH_SHARING:
        portions = min(threads(), I // ROWS)
    if portions < 2:
        return x.T @ dy
    must_have((N, O), dy)
    dW = np.zeros((I, O), x.dtype)
    bounds = I * np.arange(portions + 1) // portions
    _shared_turned_product(np.ascontiguousarray(x), np.ascontiguousarray(dy), dW, bounds)
    return dW
