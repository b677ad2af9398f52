"""Arrays with a shape and a type and no content, by which a dry run counts the memory that the model takes.

    xp = Weightless()
    x = xp.empty((8, 1000, 80))                    holds nothing, and adds 8 * 1000 * 80 * 4 to xp.held
    y = anything_of_ours(x)                        and so does every array that is made on the way
    xp.peak                                        the most bytes that lived at one time
    xp.made                                        the bytes of all arrays that were made
    xp.products                                    how many products of each shape were made

`Weightless` is the array module of its arrays (arrays.py), as numpy is of NumPy's: it offers what the layers call, and
each function returns an array of the right shape. An array is counted from when it is made until the last view of it is
gone, which is when NumPy frees it. Views share the memory of their base; a reshape that would copy counts as a copy.
Buffers inside NumPy, BLAS and FFT are not seen, nor is what NumPy saves where it writes a sum into one of its operands
that nobody needs any more.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import DTypeLike

from minihra.tree import Shape, Tree, map_leaves

Product = tuple[int, int, int, int]
"""The shape of a product: so many of (N, I) with (I, O)."""

GRAIN = np.zeros(1)
"""What every view points at. Nobody reads it: a view is asked for its shape and strides alone."""


class Block:
    """Memory that an array and its views stand for, as long as one of them lives."""

    def __init__(self, module: "Weightless", size: int) -> None:
        self.module, self.size = module, size
        module.held += size
        module.made += size
        module.peak = max(module.peak, module.held)

    def __del__(self) -> None:
        self.module.held -= self.size


def shaped(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array that must not be read, with the strides of a contiguous one."""
    dtype, strides, stride = np.dtype(dtype), [], np.dtype(dtype).itemsize
    for size in reversed(shape):
        strides.append(stride)
        stride *= size
    return as_strided(GRAIN[:0].view(dtype), shape, tuple(reversed(strides)), writeable=False)


def dtype_of(x: Any) -> Any:
    """Return what decides of the type of a result: the type of an array, or a Python number itself."""
    return x.dtype if hasattr(x, "dtype") else x


class WeightlessArray:
    """An array without content."""

    __array_ufunc__ = None  # NumPy's arrays leave the operators to this class

    def __init__(self, module: "Weightless", view: np.ndarray, block: Block | None) -> None:
        self.array_module, self._view, self._block = module, view, block

    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    dtype = property(lambda self: self._view.dtype)
    ndim = property(lambda self: self._view.ndim)
    size = property(lambda self: math.prod(self._view.shape))
    T = property(lambda self: self.of(self._view.T))

    def __len__(self) -> int:
        return len(self._view)

    def of(self, view: np.ndarray) -> "WeightlessArray":
        """Return a view of the same memory."""
        return WeightlessArray(self.array_module, view, self._block)

    def swapaxes(self, i: int, j: int) -> "WeightlessArray":
        """Return a view."""
        return self.of(self._view.swapaxes(i, j))

    def transpose(self, *axes: int) -> "WeightlessArray":
        """Return a view."""
        return self.of(self._view.transpose(*axes))

    def reshape(self, *shape: Any) -> "WeightlessArray":
        """Return a view, or a copy where NumPy copies."""
        try:
            return self.of(self._view.reshape(*shape, copy=False))
        except ValueError:
            wanted = shaped(self.shape, self.dtype).reshape(*shape, copy=False).shape
            return self.array_module.empty(wanted, self.dtype)

    def strided_view(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> "WeightlessArray":
        """Return a view."""
        return self.of(as_strided(self._view, shape, strides, writeable=False))

    def __getitem__(self, index: Any) -> "WeightlessArray":
        if hasattr(index, "dtype"):  # an array of indices into the first axis: a copy
            return self.array_module.empty((*index.shape, *self.shape[1:]), self.dtype)
        return self.of(self._view[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        pass

    def astype(self, dtype: DTypeLike) -> "WeightlessArray":
        """Return a copy."""
        return self.array_module.empty(self.shape, dtype)

    def reduced(self, axis: int | tuple[int, ...] | None, keepdims: bool, dtype: DTypeLike) -> "WeightlessArray":
        """Return a result without the axes."""
        axes = range(self.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
        gone = {a % self.ndim for a in axes}
        shape = [1 if a in gone else n for a, n in enumerate(self.shape) if keepdims or a not in gone]
        return self.array_module.empty(tuple(shape), dtype)

    def sum(self, axis: Any = None, keepdims: bool = False) -> "WeightlessArray":
        """Return the shape of a sum."""
        return self.reduced(axis, keepdims, np.int64 if self.dtype.kind == "b" else self.dtype)

    def max(self, axis: Any = None, keepdims: bool = False) -> "WeightlessArray":
        """Return the shape of a maximum."""
        return self.reduced(axis, keepdims, self.dtype)

    mean = max

    def __matmul__(self, other: Any) -> "WeightlessArray":
        outer = np.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        self.array_module.products[math.prod(outer), *self.shape[-2:], other.shape[-1]] += 1
        return self.array_module.empty((*outer, self.shape[-2], other.shape[-1]), self.dtype)

    def __neg__(self) -> "WeightlessArray":
        return self.array_module.empty(self.shape, self.dtype)

    def __iadd__(self, other: Any) -> "WeightlessArray":
        return self

    __imul__ = __iadd__


def operator(dtype: DTypeLike | None) -> Callable[[WeightlessArray, Any], WeightlessArray]:
    """Return an operator of two arrays, or of an array and a number."""
    return lambda self, other: self.array_module.elementwise(self, other, dtype=dtype)


for _name in ("add", "sub", "mul", "truediv", "and"):
    setattr(WeightlessArray, f"__{_name}__", operator(None))
    setattr(WeightlessArray, f"__r{_name}__", operator(None))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(WeightlessArray, f"__{_name}__", operator(bool))


class Weightless:
    """The array module of arrays without content."""

    stands_for = np
    arange, clip, finfo = staticmethod(np.arange), staticmethod(np.clip), staticmethod(np.finfo)

    def __init__(self) -> None:
        self.held = self.peak = self.made = 0
        self.products: Counter[Product] = Counter()
        self.lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=WeightlessArray.strided_view))
        self.special = SimpleNamespace(erf=self.elementwise)

    def empty(self, shape: Sequence[int], dtype: DTypeLike = np.float32) -> WeightlessArray:
        """Return a new array."""
        view = shaped(tuple(shape), dtype)
        return WeightlessArray(self, view, Block(self, view.nbytes))

    zeros = empty

    def parameters(self, shapes: Tree) -> Tree:
        """Return arrays for a tree of shapes, float32, whose memory is not counted."""

        def leaf(shape: Shape) -> WeightlessArray:
            return WeightlessArray(self, shaped(shape.shape, np.float32), None)

        return map_leaves(leaf, shapes)

    def full(self, shape: Sequence[int], value: Any, dtype: DTypeLike = np.float64) -> WeightlessArray:
        """Return a new array."""
        return self.empty(shape, dtype)

    def zeros_like(self, x: WeightlessArray, *_: Any) -> WeightlessArray:
        """Return a new array."""
        return self.empty(x.shape, x.dtype)

    empty_like = full_like = zeros_like

    def elementwise(self, *operands: Any, dtype: DTypeLike | None = None) -> WeightlessArray:
        """Return the result of any function of broadcast operands."""
        shape = np.broadcast_shapes(*(x.shape for x in operands if hasattr(x, "shape")))
        return self.empty(shape, np.result_type(*map(dtype_of, operands)) if dtype is None else dtype)

    sqrt = tanh = exp = log = maximum = logaddexp = elementwise

    def matmul(self, a: WeightlessArray, b: WeightlessArray, out: WeightlessArray) -> None:
        """Make a product into an array that is there."""
        self.products[1, *a.shape[-2:], b.shape[-1]] += 1

    def where(self, condition: Any, a: Any, b: Any) -> WeightlessArray:
        """Return the shape of a choice."""
        shape = np.broadcast_shapes(*(x.shape for x in (condition, a, b) if hasattr(x, "shape")))
        return self.empty(shape, np.result_type(dtype_of(a), dtype_of(b)))

    def concatenate(self, arrays: Sequence[WeightlessArray], axis: int = 0) -> WeightlessArray:
        """Return a new array."""
        shape = list(arrays[0].shape)
        shape[axis] = sum(x.shape[axis] for x in arrays)
        return self.empty(shape, arrays[0].dtype)

    def stack(self, arrays: Sequence[WeightlessArray], axis: int = 0) -> WeightlessArray:
        """Return a new array."""
        shape = list(arrays[0].shape)
        shape.insert(axis, len(arrays))
        return self.empty(shape, arrays[0].dtype)

    def take_along_axis(self, x: WeightlessArray, index: WeightlessArray, axis: int) -> WeightlessArray:
        """Return a new array."""
        return self.empty(index.shape, x.dtype)

    def broadcast_to(self, x: WeightlessArray, shape: tuple[int, ...]) -> WeightlessArray:
        """Return a view."""
        return x.strided_view(shape, (0,) * len(shape))

    def asarray(self, x: Any) -> Any:
        """Return the array, which may be one of NumPy's."""
        return x

    def ascontiguousarray(self, x: WeightlessArray) -> WeightlessArray:
        """Return the array, or a copy where NumPy copies."""
        return x if x.strides == shaped(x.shape, x.dtype).strides else self.empty(x.shape, x.dtype)
