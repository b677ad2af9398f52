"""What the tests of the twins for the GPU share: kernels that run on the CPU, on NumPy's arrays or on stand-ins.

`emulated` puts tests/cuda_emulator in the place of CuPy's compiler, and small blocks in the place of large ones, so
that borders of blocks are crossed.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from minihra import ops
from minihra.kernels.cuda import launch
from tests import standin
from tests.cuda_emulator import emulator

if (reason := emulator.available()) is not None:
    pytest.skip(f"kernels run on the CPU where a compiler is: {reason}", allow_module_level=True)


class Emulation:
    """A module of CuPy's, run by the emulator; stand-ins lend it their arrays."""

    def __init__(self, text: str, definitions: Sequence[str]) -> None:
        self.module = emulator.compile_module(text, definitions)

    def get_function(self, name: str) -> Any:
        kernel = self.module.get_function(name)

        def start(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
            hidden = [a.hidden if isinstance(a, standin.ndarray) else a for a in args]
            kernel(grid, block, hidden, shared_mem)
            standin.record(lambda: kernel(grid, block, hidden, shared_mem))

        return start


MODULES: dict[tuple[str, tuple[str, ...]], Emulation] = {}


def module(text: str, definitions: Sequence[str]) -> Emulation:
    """What stands in the place of `launch.module`."""
    return MODULES.setdefault((text, tuple(definitions)), Emulation(text, definitions))


def address(a: Any) -> int:
    """What stands in the place of `launch.address`."""
    return (a.hidden if isinstance(a, standin.ndarray) else a).ctypes.data


def reaching(arrays: Sequence[Any]) -> AbstractContextManager:
    """What stands in the place of `launch.reaching`."""
    return emulator.known(*(a.hidden if isinstance(a, standin.ndarray) else a for a in arrays))


@contextmanager
def gpu_of_stand_ins(**how: Any) -> Iterator[ModuleType]:
    """Let the switchboard take stand-ins for CuPy's arrays, and give them to the twins, which run as in `emulated`."""
    with (
        standin.installed() as xp,
        patch.object(ops, "is_cupys", lambda x: isinstance(x, standin.ndarray)),
        emulated(**how),
    ):
        yield xp


@contextmanager
def emulated(*, threads: int = 10, order: int = 0, seed: int = 0, checked: bool = False) -> Iterator[None]:
    """Run the twins' kernels on the CPU, with blocks of so many threads (or a warp, where a row needs one)."""
    with (
        patch.object(launch, "module", module),
        patch.object(launch, "address", address),
        patch.object(launch, "reaching", reaching),
        patch.object(launch, "THREADS", threads),
        patch.object(launch, "MOST_BLOCKS", 7),
        emulator.emulated(order=order, seed=seed, checked=checked),
    ):
        yield
