"""The array module of an array: the only file that knows where arrays can live."""

import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import accumulate
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


PLACE = 16
"""Bytes by whose multiples `packed` places arrays."""


def places_of(arrays: Sequence[np.ndarray]) -> list[int]:
    """Return at which byte each of some arrays that lie together begins, and where the last one ends."""
    return [*accumulate((-(-a.nbytes // PLACE) * PLACE for a in arrays), initial=0)]


def packed(arrays: Sequence[np.ndarray], xp: ModuleType) -> Array:
    """Return an array of bytes in `xp` that holds arrays of NumPy.

    Small arrays go to a GPU as fast together as one of them alone.
    """
    starts = places_of(arrays)
    together = np.zeros(starts[-1], np.uint8)
    for a, start in zip(arrays, starts, strict=False):
        together[start : start + a.nbytes] = np.ascontiguousarray(a).reshape(-1).view(np.uint8)
    return xp.asarray(together)


def unpacked(together: Array, arrays: Sequence[np.ndarray]) -> list[Array]:
    """Return views of the bytes of `packed` that are these arrays."""
    return [
        together[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
        if a.size
        else array_module(together).zeros(a.shape, a.dtype)
        for a, start in zip(arrays, places_of(arrays), strict=False)
    ]


def special_functions(xp: ModuleType) -> ModuleType:
    """Return the SciPy-like module of special functions (erf) for the array module `xp`."""
    if (named := getattr(xp, "special", None)) is not None:
        return named
    return import_module("scipy.special" if xp is np else f"{xp.__name__}x.scipy.special")


def as_strided(x: Array, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
    """Return a view of `x` that walks its memory with `strides` (bytes). The caller proves that it stays inside."""
    return array_module(x).lib.stride_tricks.as_strided(x, shape, strides)
