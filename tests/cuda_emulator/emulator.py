"""CUDA on the CPU, for tests: runs the text of a .cu file on NumPy arrays, called as CuPy's kernels are.

    module = compile_module(text, ["-DREAL=float"])
    kernel = module.get_function("scale")
    kernel((2,), (32,), (x, y, np.int32(64)))
    with emulated(order=2, seed=3, checked=True):
        kernel((2,), (32,), (x, y, np.int32(64)))

A checked build finds races, memory that nothing wrote or that is not there; any build finds barriers and shuffles that
some threads do not reach. One block runs at a time, so that a kernel whose blocks wait for each other never ends.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tests.cuda_emulator.build import EmulatorError, available, build, kernels_in, without_comments
from tests.cuda_emulator.launch import Compiled, KernelError, Settings, three
from tests.cuda_emulator.memory import known, uninitialised
from tests.cuda_emulator.messages import Message

__all__ = [
    "EmulatorError", "Kernel", "KernelError", "Message", "Module", "Settings", "available", "compile_module",
    "emulated", "known", "uninitialised",
]  # fmt: skip

ASCENDING = Settings()
_settings: ContextVar[Settings] = ContextVar("settings", default=ASCENDING)


@contextmanager
def emulated(order: int = 0, seed: int = 0, checked: bool = False) -> Iterator[None]:
    """Run kernels in this way."""
    token = _settings.set(Settings(order, seed, checked))
    try:
        yield
    finally:
        _settings.reset(token)


class Kernel:
    """A kernel of a module."""

    def __init__(self, module: "Module", name: str) -> None:
        self.module, self.name = module, name

    def __call__(self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0) -> None:
        """Run it on NumPy arrays and scalars, as the settings say; a KernelError for what it does wrong."""
        settings = _settings.get()
        compiled = self.module.compiled(self.name, settings)
        compiled.launch(three(grid, "grid"), three(block, "block"), args, int(shared_mem), settings)


class Module:
    """The kernels of a text."""

    def __init__(self, text: str, definitions: tuple[str, ...], checked: bool | None) -> None:
        self.text, self.definitions, self.checked = text, definitions, checked
        self._compiled: dict[tuple[str, bool], Compiled] = {}

    def get_function(self, name: str) -> Kernel:
        """The kernel of that name."""
        if name not in (names := [head.name for head in kernels_in(without_comments(self.text))]):
            raise EmulatorError(f"no kernel {name} among {', '.join(names)}")
        return Kernel(self, name)

    def compiled(self, name: str, settings: Settings) -> Compiled:
        """The kernel of the build that runs."""
        checked = settings.checked if self.checked is None else self.checked
        if (name, checked) not in self._compiled:
            made = build(self.text, self.definitions, checked)
            self._compiled[name, checked] = Compiled(made, name, checked)
        return self._compiled[name, checked]


def compile_module(text: str, definitions: Sequence[str] = (), *, checked: bool | None = None) -> Module:
    """The kernels of a text, with definitions such as "-DREAL=float"; None leaves `checked` to each call's settings."""
    module = Module(text, tuple(definitions), checked)
    if checked is not None:
        build(text, module.definitions, checked)
    return module
