"""A stand-in for the library of cuBLAS, which computes with NumPy what NVIDIA documents, and NumPy with its memory.

It reads memory only through the pointers, leading dimensions and strides that it is given, column by column, and only
inside the arrays that it is told of: an argument that is off by one reads what it must not, or computes something else.
"""

import ctypes
from types import ModuleType, SimpleNamespace

import numpy as np

TYPES = {0: ctypes.c_float, 1: ctypes.c_double}
COMPUTE = {(0, 68), (0, 77), (1, 70)}
WORKSPACE, STREAM, HANDLE = np.zeros(1024, np.uint8), 5, 77


def integer(given: object) -> int:
    """The value of an argument that C takes as int: ctypes passes Python's numbers as such."""
    assert type(given) is int and -(1 << 31) <= given < 1 << 31
    return given


class Library:
    """Stands for cuBLAS. `memory` lists the arrays that it may touch, `calls` what it did; `fails` gives a status."""

    def __init__(self) -> None:
        self.memory, self.calls, self.fails = [], [], {}
        self.stream = self.workspace = None

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name]
            if name != "cublasCreate_v2":
                assert arguments[0].value == HANDLE
            return getattr(self, f"run_{name}")(*arguments)

        return call

    def run_cublasCreate_v2(self, handle: object) -> int:
        handle._obj.value = HANDLE
        return 0

    def run_cublasSetStream_v2(self, handle: object, stream: ctypes.c_void_p) -> int:
        self.stream, self.workspace = stream.value or 0, None  # as documented: back to cuBLAS' own workspace
        return 0

    def run_cublasSetWorkspace_v2(self, handle: object, at: ctypes.c_void_p, size: ctypes.c_size_t) -> int:
        self.workspace = (at.value, size.value)
        return 0

    def run_cublasGemmEx(
        self, handle, op_a, op_b, m, n, k, alpha, a, of_a, lda, b, of_b, ldb, beta, c, of_c, ldc, *how
    ):
        assert self.matrices(of_a, of_b, of_c, alpha, beta, *how)
        return self.multiply(op_a, op_b, m, n, k, alpha, (a, lda, 0), (b, ldb, 0), beta, (c, ldc, 0), 1, of_a)

    def run_cublasGemmStridedBatchedEx(
        self, handle, op_a, op_b, m, n, k, alpha, a, of_a, lda, step_a, b, of_b, ldb, step_b, beta, c, of_c, ldc,
        step_c, count, *how
    ):  # fmt: skip
        assert self.matrices(of_a, of_b, of_c, alpha, beta, *how)
        assert all(type(step) is ctypes.c_longlong for step in (step_a, step_b, step_c))
        a, b, c = (a, lda, step_a.value), (b, ldb, step_b.value), (c, ldc, step_c.value)
        return self.multiply(op_a, op_b, m, n, k, alpha, a, b, beta, c, count, of_a)

    def matrices(self, of_a, of_b, of_c, alpha, beta, compute, algorithm) -> bool:
        self.compute = compute
        scalars = type(alpha._obj) is type(beta._obj) is TYPES[of_a]
        return of_a == of_b == of_c and (of_a, compute) in COMPUTE and algorithm == -1 and scalars

    def multiply(self, op_a, op_b, m, n, k, alpha, a, b, beta, c, count, kind) -> int:
        """c = alpha op(a) op(b) + beta c for each of the batch."""
        assert self.stream == STREAM and self.workspace == (WORKSPACE.ctypes.data, WORKSPACE.nbytes)
        alpha, beta = alpha._obj.value, beta._obj.value
        m, n, k, count = map(integer, (m, n, k, count))
        assert min(m, n, k, count) > 0 and {op_a, op_b} <= {0, 1}
        if a[1] < (m, k)[op_a] or b[1] < (k, n)[op_b] or c[1] < m:
            return 7
        for i in range(count):
            of_a, of_b = self.view(a, i, (m, k), op_a, kind), self.view(b, i, (k, n), op_b, kind)
            of_c = self.view(c, i, (m, n), 0, kind)
            of_c[...] = alpha * (of_a @ of_b) + (beta * of_c if beta else 0)  # with beta = 0, c is not read
        return 0

    def view(self, matrix: tuple, i: int, shape: tuple[int, int], turned: int, kind: int) -> np.ndarray:
        """op(matrix) of a batch, as a view of the memory."""
        at, width, step = matrix
        size = ctypes.sizeof(TYPES[kind])
        rows, columns = shape[::-1] if turned else shape
        first = at.value + i * step * size
        elements = (columns - 1) * integer(width) + rows
        inside = [x.ctypes.data <= first and first + elements * size <= x.ctypes.data + x.nbytes for x in self.memory]
        assert any(inside), "outside of the arrays"
        flat = np.frombuffer((TYPES[kind] * elements).from_address(first), TYPES[kind])
        stored = np.lib.stride_tricks.as_strided(flat, (rows, columns), (size, width * size))
        return stored.T if turned else stored


LT_ATTRIBUTES = {  # of descriptions, by kind and number: what they are called, and their type
    "Desc": {3: ("op_a", ctypes.c_int32), 4: ("op_b", ctypes.c_int32), 7: ("epilogue", ctypes.c_int32)}
    | {8: ("bias", ctypes.c_void_p)},
    "Preference": {1: ("workspace", ctypes.c_size_t)}
    | {number: (f"aligned_{name}", ctypes.c_uint32) for number, name in zip((5, 6, 7, 8), "abcd", strict=True)},
}


class LtLibrary(Library):
    """Stands for cublasLt: the descriptions that it has made, by number. `proposes` says how many kernels it knows."""

    def __init__(self, of_cublas: Library) -> None:
        super().__init__()
        self.memory = of_cublas.memory
        self.descriptions, self.promised, self.next, self.proposes = {}, {}, 1000, 1

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> int:
            self.calls.append(name)
            return self.fails[name] if name in self.fails else getattr(self, f"run_{name}")(*arguments)

        return call

    def made(self, where: object, **what: object) -> int:
        where._obj.value = self.next = self.next + 1
        self.descriptions[where._obj.value] = what
        return 0

    def run_cublasLtMatmulDescCreate(self, where: object, compute: int, scale: int) -> int:
        return self.made(where, compute=compute, scale=scale, op_a=0, op_b=0, epilogue=1)

    def run_cublasLtMatrixLayoutCreate(self, where, data, rows, columns, width) -> int:
        assert [type(x) for x in (rows, columns, width)] == [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int64]
        assert width.value >= rows.value
        return self.made(where, data=data, shape=(rows.value, columns.value), width=width.value)

    def run_cublasLtMatmulPreferenceCreate(self, where: object) -> int:
        return self.made(where)

    def run_cublasLtMatmulDescDestroy(self, description: object) -> int:
        del self.descriptions[description.value]
        return 0

    def set(self, kind: str, of: object, attribute: int, value: object, size: ctypes.c_size_t) -> int:
        name, its_type = LT_ATTRIBUTES[kind][attribute]
        assert type(value._obj) is its_type and size.value == ctypes.sizeof(its_type)
        self.descriptions[of.value][name] = value._obj.value
        return 0

    def run_cublasLtMatmulDescSetAttribute(self, *arguments: object) -> int:
        return self.set("Desc", *arguments)

    def run_cublasLtMatmulPreferenceSetAttribute(self, *arguments: object) -> int:
        return self.set("Preference", *arguments)

    def run_cublasLtMatmulAlgoGetHeuristic(self, handle, product, a, b, c, d, wishes, wanted, where, found) -> int:
        assert handle.value == HANDLE and wanted == 1 and ctypes.sizeof(where._obj) == 96
        assert self.descriptions[wishes.value]["workspace"] == WORKSPACE.nbytes and c.value == d.value
        self.promised[product.value] = self.descriptions[wishes.value]
        where._obj.algorithm[0] = product.value
        found._obj.value = self.proposes
        return 0

    def run_cublasLtMatmul(
        self, handle, product, alpha, a, of_a, b, of_b, beta, c, of_c, d, of_d, algorithm, workspace, size, stream
    ):  # fmt: skip
        how = self.descriptions[product.value]
        kind, self.compute = how["scale"], how["compute"]
        assert handle.value == HANDLE and (kind, self.compute) in COMPUTE
        assert algorithm._obj.algorithm[0] == product.value
        assert (workspace.value, stream.value) == (WORKSPACE.ctypes.data, STREAM) and how["epilogue"] == 4
        assert size.value == WORKSPACE.nbytes
        assert type(alpha._obj) is type(beta._obj) is TYPES[kind] and alpha._obj.value == 1 and beta._obj.value == 0
        assert (c.value, of_c.value) == (d.value, of_d.value)
        for name, at in zip("abcd", (a, b, c, d), strict=True):
            assert at.value % self.promised[product.value][f"aligned_{name}"] == 0, "not aligned as it was promised"
        matrices = [self.descriptions[one.value] for one in (of_a, of_b, of_d)]
        assert all(matrix["data"] == kind for matrix in matrices)
        turned = how["op_a"], how["op_b"], 0
        views = [
            self.view((at, matrix["width"], 0), 0, matrix["shape"][:: -1 if t else 1], t, kind)
            for at, matrix, t in zip((a, b, d), matrices, turned, strict=True)
        ]
        bias = self.view((ctypes.c_void_p(how["bias"]), len(views[2]), 0), 0, (len(views[2]), 1), 0, kind)
        views[2][...] = views[0] @ views[1] + bias
        return 0


for _kind in ("MatrixLayout", "MatmulPreference"):
    setattr(LtLibrary, f"run_cublasLt{_kind}Destroy", LtLibrary.run_cublasLtMatmulDescDestroy)


class Numpy(ModuleType):
    """NumPy, with what `product` needs of CuPy and without products of its own; the library may use what it makes."""

    def __init__(self, library: Library) -> None:
        super().__init__("numpy_with_streams")
        self.cublas, self.numbers = library, np.random.default_rng(7)
        self.cuda = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=STREAM))

    def random(self, *shape: int, dtype: str = "float64") -> np.ndarray:
        """A new array in the library's memory."""
        x = self.numbers.standard_normal(shape, dtype)
        self.cublas.memory.append(x)
        return x

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        x = self.random(*shape, dtype=dtype.name)
        x[...] = np.nan
        return x

    def copy(self, x: np.ndarray) -> np.ndarray:
        self.cublas.calls.append("copy")
        copied = self.empty(x.shape, x.dtype)
        copied[...] = x
        return copied
