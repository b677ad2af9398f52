"""How the loops are compiled, where the machine code is kept, and the functions that vectorise.

Machine code is kept between processes in a folder whose name is a hash of all the twins' text: Numba would not notice
that a function changed which another file calls. Where no folder can be written, each process compiles anew.
"""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from minihra.arrays import Array
from minihra.threads import alone, threads

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
"""How long a thread of OpenMP looks for more to do before it sleeps: about a tenth of a millisecond. To wake it takes
as long as a small loop does, and while it looks it takes a processor away from the threads of BLAS.
"""

SUMS = {"reassoc", "contract", "nsz"}
"""What LLVM may do to a sum, so that it vectorises; NaN and infinity stay what they are."""

ZERO, HALF, ONE, TWO = (np.float32(constant) for constant in (0, 0.5, 1, 2))
LOWEST = np.finfo(np.float32).min
"""Constants of the loops. Numba takes a bare 1 or 0.5 for a float64, and would compute with it in float64."""

STRIP = 16
"""Elements of a row that are taken together: one vector of AVX-512, or two of AVX2."""

WORTH = 2**15
"""Elements of a result from which on it pays to wake the other threads."""


def cache_folder() -> Path | None:
    """Return the folder of the machine code, or None where none can be written."""
    text = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    try:
        base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        folder = Path(base) / "minihra" / hashlib.sha256(text).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where home is
        return None
    return folder if os.access(folder, os.W_OK) else None


CACHE = cache_folder()
OPENMP = find_spec("numba.np.ufunc.omppool") is not None and numba.config.THREADING_LAYER != "workqueue"


HOW = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
"""How all loops are compiled: without the code by which C would call them, a tenth of the time less."""


def compiled(function: Callable) -> Callable:
    """Compile a loop at its first call, for the types of that call."""
    return compile_loop(function, SUMS)


def compiled_strictly(function: Callable) -> Callable:
    """Compile a loop whose sums are done in the order in which they stand."""
    return compile_loop(function, False)


def bounds_for(n: int, size: int) -> Array:
    """Return where the portions of the threads begin in n rows or pairs, and where the last one ends: one portion for a
    caller who has but its own thread, and for a result whose size is not worth more.
    """
    portions = 1 if size < WORTH or alone() else threads()
    return n * np.arange(portions + 1) // portions


def compiled_inside(function: Callable) -> Callable:
    """Compile what loops call, and Python never does: without the machine code by which Python would call it."""
    return njit(**HOW, fastmath=SUMS, no_cpython_wrapper=True)(function)


def compile_loop(function: Callable, fastmath: set[str] | bool, parallel: bool = False) -> Callable:
    """Return a loop that is compiled at its first call, and keeps its machine code."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE or "")
    try:
        return njit(**HOW, cache=CACHE is not None, fastmath=fastmath, parallel=parallel)(function)
    finally:
        numba.config.CACHE_DIR = before


@intrinsic
def _largest(context, number, address, n):  # noqa: ANN001, ANN202  Numba reads no annotations
    """Return the largest of n numbers from an address on, of the type of `number`: LLVM does not vectorise a search
    among floats, even if told that there is no NaN.
    """

    def write(context, builder, signature, arguments):  # noqa: ANN001, ANN202
        number, integer = context.get_data_type(signature.args[0]), arguments[2].type
        vector, strip = ir.VectorType(number, STRIP), ir.Constant(integer, STRIP)
        first = builder.inttoptr(arguments[1], number.as_pointer())

        def larger(a: ir.Value, b: ir.Value) -> ir.Value:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        lowest = ir.Constant(number, -math.inf)
        most = cgutils.alloca_once_value(builder, ir.Constant(vector, [lowest] * STRIP))
        whole = builder.sdiv(arguments[2], strip)
        with cgutils.for_range(builder, whole) as loop:
            strips = builder.bitcast(builder.gep(first, [builder.mul(loop.index, strip)]), vector.as_pointer())
            values = builder.load(strips, align=number.get_abi_size(context.target_data))
            builder.store(larger(values, builder.load(most)), most)
        lanes, size = builder.load(most), STRIP
        while size > 1:
            size //= 2
            half = [ir.Constant(ir.VectorType(ir.IntType(32), size), [*range(n, n + size)]) for n in (0, size)]
            lanes = larger(*(builder.shuffle_vector(lanes, lanes, its) for its in half))
        most = cgutils.alloca_once_value(builder, builder.extract_element(lanes, ir.Constant(ir.IntType(32), 0)))
        with cgutils.for_range(builder, arguments[2], start=builder.mul(whole, strip)) as loop:
            builder.store(larger(builder.load(builder.gep(first, [loop.index])), builder.load(most)), most)
        return builder.load(most)

    return number(number, types.intp, types.intp), write


@register_jitable
def strips(n: int) -> int:
    """Return the least multiple of STRIP that is not below n."""
    return -(-n // STRIP) * STRIP


@njit(inline="always")  # by Numba: to count who refers to a row that is passed takes longer than a short search
def largest(row: Array) -> float:
    """Return the largest element of a contiguous row, passing over NaN; of none, minus infinity."""
    return _largest(row.dtype.type(0), np.intp(row.ctypes.data), len(row))


@compiled_inside
def copy_row(x: Array, y: Array) -> None:
    """Let y (N,) be x (N,). For y[:] = x Numba compiles half a second of text, of an error that never comes."""
    for i in range(len(y)):
        y[i] = x[i]


def must_have(shape: tuple[int, ...], *arrays: Array) -> None:
    """Raise ValueError if an array has another shape: compiled loops do not look where they read."""
    for array in arrays:
        if array.shape != shape:
            raise ValueError(f"an array of shape {shape} is needed, got {array.shape}")


def launch(loop: Callable, *arguments: Any, products: Mapping[tuple[int, int, int, int], int] | None = None) -> None:
    """Run what reads or writes arrays; without content (minihra/weightless.py) they have nothing to be read.

    There, `products` are counted: how many of which shape the loop makes.
    """
    if isinstance(arguments[0], np.ndarray):
        loop(*arguments)
    elif products is not None:
        arguments[0].array_module.products.update(products)


def exp(x: float) -> float:
    """Return the exponential, within 1.2e-7 of it in float32, where it ends at exp(88), and is 0 for x below -87.7.

    Compiled code alone calls it.
    """
    return math.exp(x)


LEAST_POWER, MOST_POWER = np.float32(-88.0), np.float32(88.0)  # of them 2^n is 0, or the largest that is finite
PER_LOG2, LOG2_HIGH, LOG2_LOW = np.float32(1 / math.log(2)), np.float32(0.693359375), np.float32(-2.12194440e-4)
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(n)) for n in range(2, 8))


@njit(**HOW, fastmath={"contract"}, no_cpython_wrapper=True)
def _exp32(x: float) -> float:
    """Return 2^n exp(r) with |r| <= log(2)/2, in arithmetic that vectorises."""
    x = LEAST_POWER if x < LEAST_POWER else x  # comparisons that leave NaN as it is
    x = MOST_POWER if x > MOST_POWER else x
    n = np.floor(x * PER_LOG2 + HALF)
    r = x - n * LOG2_HIGH - n * LOG2_LOW  # log(2) in two parts, the first of which n multiplies exactly
    y = ((((((C7 * r + C6) * r + C5) * r + C4) * r + C3) * r + C2) * r * r + r) + ONE
    return y * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@overload(exp)
def _exp(x):  # noqa: ANN001, ANN202  Numba compares the two signatures
    """Choose by type: libm's for float64."""
    if x != types.float32:
        return lambda x: math.exp(x)  # noqa: PLW0108  Numba compiles a function of Python alone
    return lambda x: _exp32(x)  # noqa: PLW0108


def log(x: float) -> float:
    """Return the natural logarithm of a positive x, within 1e-7 of it in float32. Compiled code alone calls it."""
    return math.log(x)


LOG2, SQRT2 = np.float32(math.log(2)), np.float32(math.sqrt(2))
THIRD, FIFTH, SEVENTH, NINTH = (np.float32(1 / n) for n in (3, 5, 7, 9))


@njit(**HOW, fastmath={"contract"}, no_cpython_wrapper=True)
def _log32(x: float) -> float:
    """Return log(2) n + log(m) with m from 1/sqrt(2) to sqrt(2), and log(m) = 2 artanh((m - 1) / (m + 1))."""
    bits = np.float32(x).view(np.int32)
    n = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    n = n + ONE if m > SQRT2 else n
    m = m * HALF if m > SQRT2 else m
    s = (m - ONE) / (m + ONE)
    q = s * s
    y = n * LOG2 + TWO * s * ((((NINTH * q + SEVENTH) * q + FIFTH) * q + THIRD) * q + ONE)
    return y + (x - x)  # NaN for NaN and infinity


@overload(log)
def _log(x):  # noqa: ANN001, ANN202
    """Choose by type, as for exp."""
    if x != types.float32:
        return lambda x: math.log(x)  # noqa: PLW0108
    return lambda x: _log32(x)  # noqa: PLW0108


@compiled_inside
def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x))."""
    return ONE / (ONE + exp(-x))
