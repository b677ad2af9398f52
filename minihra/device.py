"""Where models compute: on the CPU with NumPy, or on one NVIDIA GPU with CuPy.

A model computes where its parameters live; `moved` takes a tree there, `to_host` brings it back. Recordings, features,
texts and files stay on the host. CuPy is imported when a GPU is asked for, and not before.
"""

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from minihra.arrays import Array, array_module
from minihra.tree import Tree, map_leaves

DEVICES = ("cpu", "cuda", "auto")

INSTALL = "pip install 'minihra[cuda12]' (or cuda13, with a driver for CUDA 13)"

PROOF = 'extern "C" __global__ void proof(int* x) { x[0] = 42; }'


def array_module_for(device: str, *, tf32: bool = False) -> ModuleType:
    """Return numpy for "cpu", cupy for "cuda", and for "auto" cupy where a kernel really runs; else it says why not.

    With `tf32` products of float32 round their factors to 10 bits on the GPU, as its tensor cores do.

    Raises:
        ValueError: there is no such device, or no GPU that can be used; the message says what is missing.
    """
    if device not in DEVICES:
        raise ValueError(f"unknown device {device!r}; known: {', '.join(DEVICES)}")
    if device == "cpu":
        return np
    problem = gpu_problem()
    if problem is None:
        if tf32:
            import_module("minihra.kernels.cuda.products").allow_tf32(True)
        return import_module("cupy")
    if device == "cuda":
        raise ValueError(f"--device cuda: {problem}")
    print(f"minihra: --device auto computes on the CPU: {problem}", file=sys.stderr)
    return np


def gpu_problem() -> str | None:
    """Return what keeps a kernel from running on a GPU, and what to do about it; None where one has run."""
    try:
        cupy = import_module("cupy")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "cupy"
        return f"CuPy is not installed; {INSTALL}" if missing else f"CuPy cannot be imported ({error}); {INSTALL}"
    try:
        if cupy.cuda.runtime.driverGetVersion() == 0:
            return "no NVIDIA driver was found; install the driver of your GPU, or compute with --device cpu"
        if cupy.cuda.runtime.getDeviceCount() == 0:
            return "the NVIDIA driver finds no GPU; see what nvidia-smi says, or compute with --device cpu"
        x = cupy.zeros(1, np.int32)
        cupy.RawKernel(PROOF, "proof")((1,), (1,), (x,))
        if int(x[0]) != 42:
            return "a kernel ran on the GPU and gave a wrong result"
        import_module("minihra.kernels.cuda.products").cublas()
        return None
    except OSError as error:  # of cuBLAS, which says what to install
        return str(error)
    except Exception as error:  # CuPy's own, one for each library that can be missing or too old
        first = (str(error).splitlines() or [""])[0]
        if "nvrtc" in str(error).lower():
            return f"NVRTC, which compiles the kernels, was not found ({first}); {INSTALL}"
        return f"no kernel runs on the GPU ({type(error).__name__}: {first})"


def is_lost_gpu(error: BaseException) -> bool:
    """Whether an error is CuPy's, of a GPU that failed or went away."""
    return isinstance(error, RuntimeError) and type(error).__module__.startswith(("cupy", "cupy_backends"))


def moved(tree: Tree, xp: ModuleType) -> Tree:
    """Return a tree with its arrays in `xp`; those that are there already stay as they are."""
    return map_leaves(lambda leaf: leaf if array_module(leaf) is xp else xp.asarray(leaf), tree)


class Staging:
    """Page-locked memory of the process, out of which a GPU copies while the host goes on: what lies elsewhere CuPy
    copies into such memory first.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.memory: Array | None = None
        self.copied: Any = None  # event: the last copy out of it is done

    def filled(self, xp: ModuleType, shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[Array], None]) -> Array:
        """Return an array in `xp`, which is CuPy, of which `fill` writes every element on the host."""
        size = max(1, prod(shape)) * np.dtype(dtype).itemsize
        with self.lock:
            if self.copied is None:
                self.copied = xp.cuda.Event()
            self.copied.synchronize()
            if self.memory is None or self.memory.nbytes < size:
                self.memory = import_module(f"{xp.__name__}x").empty_pinned((size,), np.uint8)
            staged, there = self.memory[:size].view(dtype)[: prod(shape)].reshape(shape), xp.empty(shape, dtype)
            fill(staged)
            there.set(staged)
            self.copied.record()
        return there


_staging = Staging()


def filled(xp: ModuleType, shape: tuple[int, ...], dtype: np.dtype, fill: Callable[[Array], None]) -> Array:
    """Return an array in `xp` of which `fill` writes every element, on the host."""
    if hasattr(xp, "cuda"):
        return _staging.filled(xp, shape, dtype, fill)
    array = np.empty(shape, dtype)
    fill(array)
    return xp.asarray(array)


def to_host(tree: Tree) -> Tree:
    """Return a tree with its arrays in NumPy, which waits until the GPU has computed them."""
    return map_leaves(on_host, tree)


def on_host(leaf: Array | float) -> Array | float:
    """Return one array in NumPy."""
    if isinstance(leaf, (np.ndarray, np.generic, float, int)):
        return leaf
    return array_module(leaf).asnumpy(leaf)
