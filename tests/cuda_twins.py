"""What the tests of the twins for the GPU share: kernels that run on the CPU, on NumPy's arrays or on stand-ins.

`emulated` puts tests/cuda_emulator in the place of CuPy's compiler, and small blocks in the place of large ones, so
that borders of blocks are crossed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
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


@cache
def compiled(text: str, definitions: Sequence[str], kernel: str) -> Callable[..., None]:
    """What stands in the place of `launch.compiled`; stand-ins lend the emulator their arrays."""
    function = module(text, definitions).get_function(kernel)

    def start(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        hidden = [a.hidden if isinstance(a, standin.ndarray) else a for a in args]
        function(grid, block, hidden, shared_mem)
        standin.record(lambda: function(grid, block, hidden, shared_mem))

    return start


module = cache(emulator.compile_module)


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
        patch.object(launch, "compiled", compiled),
        patch.object(launch, "address", address),
        patch.object(launch, "reaching", reaching),
        patch.object(launch, "THREADS", threads),
        patch.object(launch, "MOST_BLOCKS", 7),
        emulator.emulated(order=order, seed=seed, checked=checked),
    ):
        yield
