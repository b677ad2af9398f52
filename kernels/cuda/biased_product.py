"""Products with a bias, x W + b: cublasLt adds it where it writes the result, which saves a pass over that.

cublasLt is told of a product in pieces: what is computed, how each matrix lies, and which of its kernels shall do it. A
`Plan` has them all; it is made when a product of its sizes comes for the first time, without asking the GPU, and so
that the same product always has the same kernel. Factors change places as in products.py.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import address
from minihra.kernels.cuda.products import (
    REALS,
    WORKSPACE,
    Cublas,
    Layout,
    check,
    compute_of,
    cublas,
    laid_out,
    path_of,
    product_shape,
)

TRANSA, TRANSB, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # of cublasLtMatmulDescAttributes_t
EPILOGUE_BIAS = 4
MAX_WORKSPACE = 1  # of cublasLtMatmulPreferenceAttributes_t
ALIGNMENTS = 5, 6, 7, 8  # the same: of the factors, of what is added to, and of the result
NOT_SUPPORTED = 15
WELL_ALIGNED = 256  # bytes
MOST_PLANS = 4096  # sizes that are remembered: a batch of another length has some of its own


class Algorithm(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t: a kernel that cublasLt proposes."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


class Sizes(NamedTuple):
    """All that tells one product from another, but for where its arrays are."""

    N: int
    I: int
    O: int
    left: Layout  # of x
    right: Layout  # of W
    dtype: np.dtype
    compute: int
    alignments: tuple[int, int, int]  # bytes, of W, x and the result


class Plan(NamedTuple):
    """How a product is computed: descriptions that cublasLt holds, and the kernel."""

    product: ctypes.c_void_p
    matrices: tuple[ctypes.c_void_p, ...]  # W, x and the result
    algorithm: Algorithm


def alignment(x: Array) -> int:
    """Return by which power of two the address of an array can be divided, up to WELL_ALIGNED."""
    return min(address(x) & -address(x), WELL_ALIGNED)


class CublasLt:
    """cublasLt as ctypes loads it; it shares the handle and the workspace of `blas`, and so its stream."""

    def __init__(self, functions: Any, blas: Cublas) -> None:
        self.functions, self.blas = functions, blas
        self.plans: dict[Sizes, Plan | None] = {}

    def call(self, name: str, *arguments: Any, of: tuple = ()) -> None:
        """Call a function of the library and raise an error if its status says so."""
        check(name, getattr(self.functions, name)(*arguments), of)

    def made(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """Return a description that a function makes."""
        description = ctypes.c_void_p()
        self.call(name, ctypes.byref(description), *arguments)
        return description

    def set(self, kind: str, description: ctypes.c_void_p, attribute: int, value: Any) -> None:
        """Set an attribute of a description."""
        where, size = ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value))
        self.call(f"cublasLtMatmul{kind}SetAttribute", description, attribute, where, size)

    def plan(self, sizes: Sizes) -> Plan | None:
        """Return how to compute a product, None where cublasLt has no kernel for it."""
        if sizes not in self.plans:
            if len(self.plans) == MOST_PLANS:
                self.forget()
            self.plans[sizes] = self.planned(sizes)
        return self.plans[sizes]

    def forget(self) -> None:
        """Let cublasLt drop all plans; a graph that was recorded with one does not need it."""
        for plan in filter(None, self.plans.values()):
            self.call("cublasLtMatmulDescDestroy", plan.product)
            for matrix in plan.matrices:
                self.call("cublasLtMatrixLayoutDestroy", matrix)
        self.plans.clear()

    def planned(self, sizes: Sizes) -> Plan | None:
        """Ask cublasLt which kernel is best, as far as it knows without trying."""
        N, I, O, left, right, dtype, compute, alignments = sizes
        data = REALS[dtype].data
        product = self.made("cublasLtMatmulDescCreate", compute, data)
        for attribute, turned in ((TRANSA, right.turned), (TRANSB, left.turned)):
            self.set("Desc", product, attribute, ctypes.c_int32(turned))
        self.set("Desc", product, EPILOGUE, ctypes.c_int32(EPILOGUE_BIAS))
        # Column by column W lies as (O, I), x as (I, N) and the result as (O, N); turned they lie the other way.
        shapes = (I, O) if right.turned else (O, I), (N, I) if left.turned else (I, N), (O, N)
        matrices = tuple(
            self.made("cublasLtMatrixLayoutCreate", data, *map(ctypes.c_uint64, shape), ctypes.c_int64(width))
            for shape, width in zip(shapes, (right.width, left.width, O), strict=True)
        )
        wishes = self.made("cublasLtMatmulPreferenceCreate")
        self.set("Preference", wishes, MAX_WORKSPACE, ctypes.c_size_t(WORKSPACE))
        for attribute, of_bytes in zip(ALIGNMENTS, (*alignments, alignments[2]), strict=True):
            self.set("Preference", wishes, attribute, ctypes.c_uint32(of_bytes))
        algorithm, found = Algorithm(), ctypes.c_int()
        name, given = "cublasLtMatmulAlgoGetHeuristic", (product, *matrices, matrices[2], wishes, 1)
        status = getattr(self.functions, name)(self.blas.handle, *given, ctypes.byref(algorithm), ctypes.byref(found))
        self.call("cublasLtMatmulPreferenceDestroy", wishes)
        if status == NOT_SUPPORTED or (status == 0 and found.value == 0):
            return None
        check(name, status)
        return Plan(product, matrices, algorithm)

    def product(self, x: Array, W: Array, b: Array, y: Array, stream: int) -> bool:
        """Let y (N, O) be x (N, I) W + b, and return whether cublasLt has a kernel for that. No axis has length 0."""
        (x, left), (W, right), real = laid_out(x), laid_out(W), REALS[x.dtype]
        at = alignment(W), alignment(x), alignment(y)
        plan = self.plan(Sizes(*x.shape, W.shape[1], left, right, x.dtype, compute_of(real), at))
        if plan is None:
            return False
        self.set("Desc", plan.product, BIAS_POINTER, ctypes.c_void_p(address(b)))
        of_W, of_x, of_y = plan.matrices
        result = ctypes.c_void_p(address(y)), of_y
        self.call(
            "cublasLtMatmul",
            *(self.blas.handle, plan.product, real.one),
            *(ctypes.c_void_p(address(W)), of_W, ctypes.c_void_p(address(x)), of_x),
            *(real.zero, *result, *result),
            ctypes.byref(plan.algorithm),
            *(ctypes.c_void_p(address(self.blas.workspace)), ctypes.c_size_t(WORKSPACE), ctypes.c_void_p(stream)),
            of=(x.shape, W.shape),
        )
        return True


@cache
def cublas_lt() -> CublasLt:
    """Return cublasLt of this process.

    Raises:
        OSError: the library was not found.
    """
    return CublasLt(ctypes.CDLL(path_of("cublasLt")), cublas())


def biased_product(x: Array, W: Array, b: Array) -> Array | None:
    """Return x W + b for x (N, I), W (I, O) and b (O,) of CuPy, or None where cublasLt cannot.

    Raises:
        TypeError, ValueError: the types or shapes do not fit.
        MemoryError, RuntimeError: cublasLt failed.
    """
    xp, shape = array_module(x), product_shape(x, W, None, False)
    if b.shape != shape[1:] or b.dtype != x.dtype or not b.flags.c_contiguous:
        raise ValueError(f"a bias of shape {b.shape} and type {b.dtype.name} for a product of {shape}, {x.dtype.name}")
    y = xp.empty(shape, x.dtype)
    if y.size == 0 or x.size == 0:
        return None
    return y if cublas_lt().product(x, W, b, y, xp.cuda.get_current_stream().ptr) else None
