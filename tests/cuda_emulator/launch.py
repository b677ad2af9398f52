"""One launch of a compiled kernel: its arguments, what a GPU would refuse, and what the emulator found."""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from tests.cuda_emulator.build import Build, EmulatorError, line_at
from tests.cuda_emulator.memory import Named, forget, known_arrays, pieces_of, remember
from tests.cuda_emulator.messages import Index, Message, Report, message

MOST_THREADS, MOST_SHARED, MOST_MESSAGES = 1024, 48 * 1024, 8
LARGEST_BLOCK, LARGEST_GRID = (1024, 1024, 64), (2**31 - 1, 65535, 65535)
_turn = threading.Lock()  # a library runs one launch at a time


@dataclass(frozen=True)
class Settings:
    """How kernels run: threads and blocks in ascending order (0), descending (1) or shuffled by the seed (2)."""

    order: int = 0
    seed: int = 0
    checked: bool = False


class KernelError(EmulatorError):
    """What a launch did wrong; `messages` has it piece by piece."""

    def __init__(self, kernel: str, messages: Sequence[Message]) -> None:
        super().__init__("\n  ".join([f"kernel {kernel}:", *map(str, messages)]))
        self.messages = tuple(messages)


class _Parameter(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("is_pointer", ctypes.c_int),
        ("is_constant", ctypes.c_int),
        ("size", ctypes.c_int),
    ]


class _Kernel(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(_Parameter)),
        ("shared_begin", ctypes.c_void_p),
        ("shared_end", ctypes.c_void_p),
    ]


class _Area(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("begin", "end", "written")]


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.c_void_p),
        ("grid", Index),
        ("block", Index),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("dynamic_bytes", ctypes.c_uint64),
        ("areas", ctypes.c_void_p),
        ("area_count", ctypes.c_int),
        ("is_checked", ctypes.c_int),
        ("reports", ctypes.c_void_p),
        ("report_limit", ctypes.c_int),
        ("report_count", ctypes.c_int),
    ]


@dataclass(frozen=True)
class Parameter:
    """Of a kernel."""

    label: str
    dtype: str
    is_pointer: bool
    is_constant: bool
    size: int  # of a struct

    def value_of(self, argument: Any) -> np.ndarray:
        """What the kernel gets, as an array of one element; a TypeError if it does not fit."""
        if self.dtype == "struct" and not self.is_pointer:
            if not (isinstance(argument, np.ndarray) and argument.dtype.names and argument.nbytes == self.size):
                raise TypeError(f"{self.label} is {described(argument)}, and not one struct of {self.size} bytes")
            return argument
        if not self.is_pointer:
            if not isinstance(argument, np.generic) or argument.dtype != self.dtype:
                raise TypeError(f"{self.label} is {described(argument)}, and not of type {self.dtype}")
            return np.array(argument)
        if argument is None or (type(argument) is int and argument == 0):
            return np.array(0, np.uint64)
        if not isinstance(argument, np.ndarray):
            raise TypeError(f"{self.label} is {described(argument)}, and not an array of {self.dtype}")
        if self.dtype not in ("void", argument.dtype.name):
            raise TypeError(f"{self.label} is {described(argument)}, and not one of {self.dtype}")
        if not argument.flags.c_contiguous:
            raise TypeError(f"{self.label} is an array that is not contiguous")
        if not argument.flags.writeable and not self.is_constant:
            raise TypeError(f"{self.label} is an array that may not be written")
        return np.array(argument.ctypes.data, np.uint64)


def described(argument: Any) -> str:
    """An argument in an error message."""
    if isinstance(argument, np.ndarray):
        return f"an array of {argument.dtype}"
    return f"{argument!r} of type {type(argument).__name__}"


def three(size: Sequence[int], what: str) -> tuple[int, ...]:
    """The size of a grid or block in three dimensions."""
    if not 1 <= len(size) <= 3 or not all(isinstance(n, (int, np.integer)) for n in size):
        raise TypeError(f"the {what} must be one to three whole numbers, not {size!r}")
    return (*map(int, size), 1, 1)[:3]


class Compiled:
    """A kernel of one build."""

    def __init__(self, made: Build, name: str, checked: bool) -> None:
        self.build, self.name, self.checked = made, name, checked
        self.kernel = _Kernel.in_dll(made.loaded, f"emulator_kernel_{name}")
        self.run = made.loaded.emulator_run
        self.fixed_bytes = (self.kernel.shared_end or 0) - (self.kernel.shared_begin or 0)

    @cached_property
    def parameters(self) -> list[Parameter]:
        found = []
        while self.kernel.parameters[len(found)].type is not None:
            found.append(self.kernel.parameters[len(found)])
        names = next(head.parameters for head in self.build.heads if head.name == self.name)
        names = names if len(names) == len(found) else tuple(f"#{i}" for i in range(len(found)))
        return [
            Parameter(
                f"argument {i} ({name}) of {self.name}",
                p.type.decode(),
                bool(p.is_pointer),
                bool(p.is_constant),
                p.size,
            )
            for i, (p, name) in enumerate(zip(found, names, strict=True))
        ]

    def check_size(self, grid: tuple[int, ...], block: tuple[int, ...], shared_mem: int) -> None:
        """An error of kind "launch" where a GPU would refuse to begin."""
        threads, shared = int(np.prod(block)), self.fixed_bytes + shared_mem
        wrong = []
        for what, size, largest in (("grid", grid, LARGEST_GRID), ("block", block, LARGEST_BLOCK)):
            if not all(1 <= n <= most for n, most in zip(size, largest, strict=True)):
                wrong.append(f"a {what} of {size} is not between (1, 1, 1) and {largest}")
        if threads > MOST_THREADS:
            wrong.append(f"a block of {threads} threads is larger than {MOST_THREADS}")
        if shared > MOST_SHARED:
            wrong.append(f"{shared} bytes of shared memory are more than {MOST_SHARED}")
        if wrong:
            raise KernelError(self.name, [Message("launch", text) for text in wrong])

    def launch(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Sequence[Any], shared_mem: int, settings: Settings
    ) -> None:
        if len(args) != len(self.parameters):
            raise TypeError(f"{self.name} takes {len(self.parameters)} arguments, not {len(args)}")
        values = [parameter.value_of(argument) for parameter, argument in zip(self.parameters, args, strict=True)]
        self.check_size(grid, block, shared_mem)
        arrays = [
            Named(parameter.label, argument)
            for parameter, argument in zip(self.parameters, args, strict=True)
            if isinstance(argument, np.ndarray)
        ]
        arrays += known_arrays()
        pieces = pieces_of(arrays) if self.checked else []
        addresses = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        areas = (_Area * len(pieces))(
            *((p.begin, p.end, 0 if p.written is None else p.written.ctypes.data) for p in pieces)
        )
        reports = (Report * MOST_MESSAGES)()
        launch = _Launch(
            kernel=ctypes.addressof(self.kernel),
            arguments=ctypes.addressof(addresses),
            grid=Index(*grid),
            block=Index(*block),
            order=settings.order,
            seed=settings.seed,
            dynamic_bytes=shared_mem,
            areas=ctypes.addressof(areas),
            area_count=len(pieces),
            is_checked=self.checked,
            reports=ctypes.addressof(reports),
            report_limit=MOST_MESSAGES,
        )
        with _turn:
            self.run(ctypes.byref(launch))
        remember(pieces) if self.checked else forget(arrays)
        found = reports[: min(launch.report_count, MOST_MESSAGES)]
        if found:
            raise KernelError(self.name, [message(r, arrays, partial(line_at, self.build.path)) for r in found])
