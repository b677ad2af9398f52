"""How a kernel is compiled, checked and started.

    KERNELS = Source("norms.cu")
    KERNELS.run("layer_norm_forward", per_warp(N), x=x, ..., N=N, C=C, eps=eps)

The text of a kernel says what it takes, one array a line with its shape in a comment:

    extern "C" __global__ void layer_norm_forward(
        const REAL* x,  // (N, C)
        REAL* y,        // (N, C)
        int N, int C, REAL eps) {

Before every start each array is compared with that line: its type, that it is contiguous, and that it has as many
elements as the letters say. Arrays and numbers are given by name. Texts are compiled once for float32 and once for
float64, when they are first called; CuPy keeps the machine code on disk.

A parameter may also be a struct of the same text, by value, whose fields are arrays of REAL*, int and their like, one a
line (adamw.cu); `table` makes one.
"""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module

THREADS = 256  # of a block
LANES = 32  # threads of a warp
MOST_BLOCKS = 1 << 16  # kernels loop where there is more to do

REALS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
TYPES = {
    "int": np.dtype(np.int32),
    "long long": np.dtype(np.int64),
    "unsigned long long": np.dtype(np.uint64),
    "bool": np.dtype(np.bool_),
    "double": np.dtype(np.float64),
}
"""Types of C++ in NumPy's terms, beside REAL."""

FOLDER = Path(__file__).parent
INCLUDE = '#include "common.cuh"\n'

PARAMETER = re.compile(
    r"^(?:const )?(REAL|int|long long|unsigned long long|bool|double|[A-Z]\w*)(\*?) (?:__restrict__ )?(\w+)$"
)
STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.DOTALL | re.MULTILINE)
FIELD = re.compile(r"^ *(?:const )?([a-zA-Z ]+?)(\*?) (\w+)\[(\d+)\];", re.MULTILINE)
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\(\w+\)\s+)?(\w+)\((.*?)\) \{', re.DOTALL)


class Grid(NamedTuple):
    """How many blocks of how many threads are started."""

    blocks: tuple[int, ...]
    threads: tuple[int, ...]
    shared: int = 0  # bytes of dynamic shared memory


def per_element(n: int) -> Grid:
    """Return a thread for each of n elements, or as many as loop over them."""
    return Grid((min(max(1, -(-n // THREADS)), MOST_BLOCKS),), (THREADS,))


def per_pack(n: int) -> Grid:
    """Return a thread for each four of n elements, which lie beside each other."""
    return per_element(-(-n // 4))


def per_warp(n: int) -> Grid:
    """Return a warp for each of n rows, or as many as loop over them."""
    warps = max(1, THREADS // LANES)
    return Grid((min(max(1, -(-n // warps)), MOST_BLOCKS),), (warps * LANES,))


def per_block(n: int, threads: int) -> Grid:
    """Return a block of so many threads for each of n pieces of work, or as many as loop over them."""
    return Grid((min(max(1, n), MOST_BLOCKS),), (threads,))


class Parameter(NamedTuple):
    """What a kernel's text says of one of its parameters."""

    type: str
    is_array: bool
    shape: tuple[str, ...] | None  # of an array, in letters; None where the text gives none


def parameters_of(kernel: str) -> dict[str, Parameter]:
    """Return the parameters in the text between a kernel's parentheses, by name.

    Raises:
        ValueError: a parameter cannot be understood.
    """
    found = {}
    for line in kernel.splitlines():
        code, _, comment = line.partition("//")
        shape = re.match(r" ?\(([^)]*)\)", comment)
        for text in filter(None, (part.strip() for part in code.split(","))):
            match = PARAMETER.match(text)
            if match is None:
                raise ValueError(f"not understood as a parameter of a kernel: {text!r}")
            letters = tuple(filter(None, (part.strip() for part in shape[1].split(",")))) if shape else None
            found[match[3]] = Parameter(match[1], bool(match[2]), letters if match[2] else None)
    return found


@cache
def terms_of(letters: str) -> list[list[int | str]]:
    """Return the terms of a sum of products, such as 2*T-1, each as its factors: whole numbers and names."""
    terms = re.findall(r"([+-]?)([^+-]+)", letters.replace(" ", ""))
    return [
        [-1 if sign == "-" else 1, *(int(one) if one.isdigit() else one for one in term.split("*"))]
        for sign, term in terms
    ]


def size_of(letters: str, sizes: dict[str, int]) -> int:
    """Return the value of a sum of products of whole numbers and names."""
    if letters in sizes:
        return sizes[letters]
    return sum(prod([sizes[one] if type(one) is str else one for one in term]) for term in terms_of(letters))


def layout_of(fields: str) -> np.dtype:
    """Return NumPy's type of a struct whose fields are arrays, one a line, such as `int size[64];`; REAL* or TYPES."""
    types = {
        name: (np.uint64 if pointer else TYPES[kind], int(number))
        for kind, pointer, name, number in FIELD.findall(fields)
    }
    return np.dtype({"names": [*types], "formats": [*types.values()]}, align=True)


class Source:
    """The kernels of one file, compiled with definitions such as COLUMNS=4."""

    def __init__(self, name: str, **definitions: int) -> None:
        self.name = name
        self.definitions = tuple(f"-D{letters}={value}" for letters, value in definitions.items())
        own = (FOLDER / name).read_text()
        head, _, rest = own.partition(INCLUDE)
        # Inlined, and not found by a path: CuPy keeps machine code by the text, and would miss a change of the header.
        self.text = f'{head}{(FOLDER / "common.cuh").read_text()}\n#line {head.count(chr(10)) + 2} "{name}"\n{rest}'
        self.kernels = {kernel: parameters_of(inside) for kernel, inside in KERNEL.findall(own)}
        self.structs = dict(STRUCT.findall(own))

    def table(self, struct: str, **fields: Sequence[int | float] | np.ndarray) -> np.ndarray:
        """Return a struct of the file, to give to a kernel by value: its fields, with zeros behind.

        Unlike an array it is not uploaded: it travels with the start of the kernel, and into a captured graph.
        """
        table = np.zeros(1, layout_of(self.structs[struct]))
        for name, values in fields.items():
            table[name][0, : len(values)] = values
        return table

    def run(
        self,
        kernel: str,
        grid: Grid,
        *,
        reaches: Sequence[Array] = (),
        real: np.dtype = np.dtype(np.float32),  # noqa: B008  a constant
        **arguments: Any,
    ) -> None:
        """Start a kernel; its arrays and numbers are given by name.

        `reaches` are more arrays, whose addresses stand in a table; whoever made it sees to their types and sizes.
        `real` is the type of the numbers of a kernel that is given no array of them.

        Raises:
            TypeError: an argument is missing or too many, or has another type than the kernel's text says.
            ValueError: an array is not contiguous, or has another size than the letters of the text say.
        """
        parameters = self.kernels[kernel]
        if parameters.keys() != arguments.keys():
            wrong = ", ".join(sorted(parameters.keys() ^ arguments.keys()))
            raise TypeError(f"{kernel}: missing or unknown arguments: {wrong}")
        reals = (arguments[name] for name, p in parameters.items() if p.is_array and p.type == "REAL")
        real = next((a.dtype for a in reals if a is not None and a.dtype.kind == "f"), real)
        values = []
        for name, (type_, is_array, shape) in parameters.items():
            given = arguments[name]
            if given is None and is_array:
                values.append(0)  # of None CuPy would make another address
            elif type_ in self.structs:
                values.append(given)
            else:
                dtype = real if type_ == "REAL" else TYPES[type_]
                if is_array:
                    check_array(kernel, name, given, dtype, shape, arguments)
                values.append(given if is_array else dtype.type(given))
        function = compiled(self.text, (f"-DREAL={REALS[real]}", *self.definitions), kernel)
        with reaching(reaches):
            function(grid.blocks, grid.threads, tuple(values), shared_mem=grid.shared)


def check_array(
    kernel: str, name: str, given: Array, dtype: np.dtype, shape: tuple[str, ...] | None, sizes: dict[str, Any]
) -> None:
    """Raise what `Source.run` says of an array."""
    if given.dtype != dtype:
        raise TypeError(f"{kernel}: {name} must have type {dtype.name}, got {given.dtype.name}")
    if not given.flags.c_contiguous:
        how = f"shape {given.shape} with strides {given.strides}"
        raise ValueError(f"{kernel}: {name} must be contiguous, got {how}")
    if shape is not None and given.size != (wanted := prod([size_of(letters, sizes) for letters in shape])):
        how = f"those of ({', '.join(shape)}), got shape {given.shape}"
        raise ValueError(f"{kernel}: {name} must have {wanted} elements, {how}")


@cache
def compiled(text: str, definitions: Sequence[str], kernel: str) -> Callable[..., None]:
    """Return a kernel of a text, which CuPy compiles; tests put an emulation in its place."""
    return module(text, definitions).get_function(kernel)


@cache
def module(text: str, definitions: Sequence[str]) -> Any:
    """Return all kernels of a text."""
    import cupy

    return cupy.RawModule(code=text, options=("--std=c++17", *definitions))


def reaching(arrays: Sequence[Array]) -> AbstractContextManager:
    """Return the context in which a kernel reaches arrays by address: none on a GPU; tests tell their emulator."""
    return nullcontext()


def addresses(arrays: Sequence[Array | None]) -> np.ndarray:
    """Return the addresses (n,) of contiguous arrays, uint64, 0 for None; for a table that a kernel reads."""
    return np.array([0 if a is None else address(a) for a in arrays], np.uint64)


def address(a: Array) -> int:
    """Return where an array begins."""
    return a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr


def contiguous(x: Array) -> Array:
    """Return x, or a copy of it that lies row by row."""
    return x if x.flags.c_contiguous else array_module(x).ascontiguousarray(x)
