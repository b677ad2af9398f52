"""Products of matrices: cuBLAS for arrays of CuPy, called directly.

CuPy's own calls of cuBLAS refuse to be captured into a graph. These are one call each, in a handle with a workspace of
its own: nothing is allocated within a product, and the same product always adds in the same order.

cuBLAS takes matrices column by column. Read so, a row-major c = a b is c' = b' a': the factors change places, and an
array that lies row by row is what cuBLAS calls not transposed. `Layout` says how an array lies.
"""

import ctypes
from functools import cache
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module, is_cupys
from minihra.kernels.cuda.launch import address, contiguous

WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for Hopper, whose kernels want most

COMPUTE_32F, COMPUTE_32F_FAST_TF32, COMPUTE_64F = 68, 77, 70
DEFAULT_ALGORITHM = -1
MAJOR_VERSION = 0  # of libraryPropertyType
ALLOC_FAILED = 3
STATUS = {
    1: "NOT_INITIALIZED",
    ALLOC_FAILED: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}


class Real(NamedTuple):
    """What cuBLAS calls a type of numbers."""

    data: int  # cudaDataType
    compute: int  # cublasComputeType_t
    zero: Any  # of alpha and beta, as they are given
    one: Any


REALS = {
    np.dtype(np.float32): Real(0, COMPUTE_32F, *(ctypes.byref(ctypes.c_float(v)) for v in (0, 1))),
    np.dtype(np.float64): Real(1, COMPUTE_64F, *(ctypes.byref(ctypes.c_double(v)) for v in (0, 1))),
}


class Precision:
    """Whether products of float32 may round their factors to the 10 bits of TF32."""

    tf32 = False


def allow_tf32(allowed: bool) -> None:
    """Let products of float32 use tensor cores, which round their factors to 10 bits; they do not unless asked to."""
    Precision.tf32 = allowed


def product(a: Array, b: Array, out: Array | None = None, *, add: bool = False) -> Array:
    """Return a @ b, in `out` where it is given; with `add` it is added to what stands there.

    a (..., N, K) and b (..., K, M) have equal leading axes, or one of them has none: it is then a factor of every
    matrix of the other. Their last two axes may lie row by row or, as those of a transpose, column by column, with any
    distance between rows, and leading axes that can be merged into one; what lies otherwise is copied. `out` must lie
    row by row. On one GPU, products that overlap in time must run on one stream: they share a workspace.

    Raises:
        TypeError: the types differ, or are neither float32 nor float64.
        ValueError: the shapes do not fit, or `out` does not lie as it must.
        MemoryError, RuntimeError: cuBLAS could not.
    """
    xp, shape = array_module(a), product_shape(a, b, out, add)
    if out is None:
        out = xp.empty(shape, a.dtype)
    if out.size == 0:
        return out
    if a.shape[-1] == 0:
        if not add:
            out[...] = 0
    elif is_cupys(a):
        cublas().product(a, b, out, add=add, stream=xp.cuda.get_current_stream().ptr)
    elif add:
        out += a @ b
    else:
        out[...] = a @ b
    return out


def product_shape(a: Array, b: Array, out: Array | None, add: bool) -> tuple[int, ...]:
    """Return the shape of a @ b, or raise what `product` says of arguments that do not fit."""
    lead = a.shape[:-2] or b.shape[:-2]
    if min(a.ndim, b.ndim) < 2 or a.shape[-1] != b.shape[-2] or b.shape[:-2] not in ((), lead):
        raise ValueError(f"no product of the shapes {a.shape} and {b.shape}")
    shape = (*lead, a.shape[-2], b.shape[-1])
    if out is None and add:
        raise ValueError("a product that is added needs `out`")
    if out is not None and out.shape != shape:
        raise ValueError(f"the product of {a.shape} and {b.shape} has shape {shape}, `out` has {out.shape}")
    if a.dtype not in REALS or b.dtype != a.dtype or (out is not None and out.dtype != a.dtype):
        types = ", ".join(x.dtype.name for x in (a, b, out) if x is not None)
        raise TypeError(f"products are of float32 or of float64, got {types}")
    return shape


class Layout(NamedTuple):
    """How the matrices in the last two axes of an array lie in memory."""

    turned: int  # 0 row by row, 1 column by column: CUBLAS_OP_N and CUBLAS_OP_T, once the factors have changed places
    width: int  # elements from one row (or column) to the next: the leading dimension
    step: int  # elements from one matrix to the next


def layout(x: Array) -> Layout | None:
    """Return how x lies, or None where cuBLAS cannot be told."""
    *lead, rows, columns = x.shape
    *steps, down, right = x.strides
    step, size = 0, x.itemsize
    if lead:
        batch = [(n, step // size) for n, step in zip(lead, steps, strict=True) if n > 1]
        step = batch[-1][1] if batch else 0
        if step < 0 or any(outer != n * inner for (_, outer), (n, inner) in pairwise(batch)):
            return None
    down, right = down // size, right // size
    # Along an axis of length 1 nobody steps, so that its stride may be anything.
    if (right == 1 or columns == 1) and (down >= columns or rows == 1):
        return Layout(0, down if rows > 1 else columns, step)
    if (down == 1 or rows == 1) and right >= rows:
        return Layout(1, right, step)
    return None


def laid_out(x: Array) -> tuple[Array, Layout]:
    """Return x, or a copy of it where cuBLAS cannot be told how x lies, and its layout."""
    found = layout(x)
    if found is None:
        x = contiguous(x)
        found = layout(x)
    return x, found


def check(name: str, status: int, of: tuple = ()) -> None:
    """Raise an error if the status that a function returned says so; `of` are the shapes of a product's factors."""
    if status:
        failure = MemoryError if status == ALLOC_FAILED else RuntimeError
        what = f" for {of[0]} @ {of[1]}" if of else ""
        raise failure(f"{name} failed{what}: CUBLAS_STATUS_{STATUS.get(status, 'UNKNOWN')} ({status})")


def compute_of(real: Real) -> int:
    """Return how cuBLAS shall compute with a type of numbers."""
    return COMPUTE_32F_FAST_TF32 if Precision.tf32 and real.compute == COMPUTE_32F else real.compute


class Cublas:
    """A handle of cuBLAS: its `functions` as ctypes loads them, `workspace` an array of bytes on the GPU."""

    def __init__(self, functions: Any, workspace: Array) -> None:
        self.functions, self.workspace, self.stream = functions, workspace, None
        self.handle = ctypes.c_void_p()
        self.call("cublasCreate_v2", ctypes.byref(self.handle))

    def call(self, name: str, *arguments: Any, of: tuple = ()) -> None:
        """Call a function of the library and raise an error if its status says so."""
        check(name, getattr(self.functions, name)(*arguments), of)

    def use(self, stream: int) -> None:
        """Let what follows run on a stream. Setting one takes the workspace away, so that is set anew."""
        if stream != self.stream:
            self.call("cublasSetStream_v2", self.handle, ctypes.c_void_p(stream))
            workspace = ctypes.c_void_p(address(self.workspace))
            self.call("cublasSetWorkspace_v2", self.handle, workspace, ctypes.c_size_t(self.workspace.nbytes))
            self.stream = stream

    def product(self, a: Array, b: Array, out: Array, *, add: bool, stream: int) -> None:
        """Let `out` be a @ b, or add that to it. No axis has length 0."""
        self.use(stream)
        of = a.shape, b.shape
        if b.ndim == 2 and a.flags.c_contiguous and out.flags.c_contiguous:  # the rows of all matrices of a are one a
            a, out = a.reshape(-1, a.shape[-1]), out.reshape(-1, out.shape[-1])
        (a, of_a), (b, of_b), of_out = laid_out(a), laid_out(b), layout(out)
        if of_out is None or of_out.turned:
            raise ValueError(f"`out` must lie row by row, got shape {out.shape} with strides {out.strides}")
        (N, M), K, count = out.shape[-2:], a.shape[-1], prod(out.shape[:-2])
        if max(N, M, K, count, of_a.width, of_b.width, of_out.width) >= 1 << 31:
            raise ValueError(f"too large for cuBLAS for {of[0]} @ {of[1]}")
        real = REALS[a.dtype]

        def matrix(x: Array, of_x: Layout) -> list:
            step = [ctypes.c_longlong(of_x.step)] if count > 1 else []
            return [ctypes.c_void_p(address(x)), real.data, of_x.width, *step]

        self.call(
            "cublasGemmStridedBatchedEx" if count > 1 else "cublasGemmEx",
            self.handle,
            *(of_b.turned, of_a.turned, M, N, K),
            *(real.one, *matrix(b, of_b), *matrix(a, of_a)),
            *(real.one if add else real.zero, *matrix(out, of_out)),
            *([count] if count > 1 else []),
            *(compute_of(real), DEFAULT_ALGORITHM),
            of=of,
        )


@cache
def cublas() -> Cublas:
    """Return the handle of this process.

    Raises:
        OSError: the library was not found, or is for another version of CUDA than CuPy.
    """
    import cupy

    path, major = path_of("cublas"), ctypes.c_int()
    functions = ctypes.CDLL(path)
    functions.cublasGetProperty(MAJOR_VERSION, ctypes.byref(major))
    if major.value != (wanted := cupy.cuda.runtime.runtimeGetVersion() // 1000):
        how = "CuPy for the other version, or an environment without the packages that brought this cuBLAS"
        raise OSError(f"cuBLAS of CUDA {major.value} was found ({path}), but CuPy is that of CUDA {wanted}: {how}")
    return Cublas(functions, cupy.empty(WORKSPACE, "uint8"))


def path_of(library: str) -> str:
    """Return where a library of NVIDIA's is, which is then loaded.

    Raises:
        OSError: it was not found.
    """
    from cuda import pathfinder  # with which CuPy finds its libraries

    try:
        return pathfinder.load_nvidia_dynamic_lib(library).abs_path
    except pathfinder.DynamicLibNotFoundError as error:
        how = "pip install nvidia-cublas-cu12 for CUDA 12, nvidia-cublas for CUDA 13"
        raise OSError(f"cuBLAS, which multiplies matrices on the GPU, was not found: {how}") from error
