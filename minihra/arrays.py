"""The array module of an array: the only file that knows where arrays can live."""

import sys
from importlib import import_module
from types import ModuleType

import numpy as np

Array = np.ndarray
"""What annotations call an array: `numpy.ndarray`, or `cupy.ndarray`, which has the same interface."""


def array_module(x: Array) -> ModuleType:
    """Return the module whose functions accept `x`: numpy for a NumPy array or scalar, else the module of its type.

    An array may also name its module itself, as those of weightless.py do.
    """
    if isinstance(x, (np.ndarray, np.generic)):
        return np
    if (named := getattr(x, "array_module", None)) is not None:
        return named
    return sys.modules[type(x).__module__.partition(".")[0]]


def is_numpys(x: Array) -> bool:
    """Whether `x` is an array of NumPy, or one that stands for it (weightless.py)."""
    return type(x) is np.ndarray or getattr(array_module(x), "stands_for", None) is np


def is_cupys(x: Array) -> bool:
    """Whether `x` is an array of CuPy, which lives on a GPU."""
    return type(x).__module__.partition(".")[0] == "cupy"


def special_functions(xp: ModuleType) -> ModuleType:
    """Return the SciPy-like module of special functions (erf) for the array module `xp`."""
    if (named := getattr(xp, "special", None)) is not None:
        return named
    return import_module("scipy.special" if xp is np else f"{xp.__name__}x.scipy.special")


def as_strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Return a view of `x` that walks its memory with `strides` (bytes). The caller proves that it stays inside."""
    return array_module(x).lib.stride_tricks.as_strided(x, shape, strides)
