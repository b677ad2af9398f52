"""An array of no library, to find on any machine what would fail on a GPU: the array module `standin`.

It computes with NumPy behind the scenes and, as CuPy does, refuses what CuPy refuses: NumPy's functions, NumPy's arrays
as operands or indices, and any conversion that nobody asked for. It is stricter than CuPy where CuPy would wait for
the GPU: no truth value, no float(), no loop over elements. It offers only the names in the tables below, which
test_standin.py compares with CuPy; `called` keeps the keywords that were used, for the same purpose.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

FUNCTIONS = (
    "arange", "ascontiguousarray", "broadcast_to", "clip", "concatenate", "empty_like", "exp", "full", "full_like",
    "empty", "log", "logaddexp", "maximum", "sqrt", "stack", "take_along_axis", "tanh", "where", "zeros",
    "zeros_like", "fft.rfft", "fft.irfft",
    "lib.stride_tricks.as_strided",
)  # fmt: skip
SPECIAL_FUNCTIONS = ("erf",)
METHODS = ("astype", "max", "mean", "reshape", "sum", "swapaxes", "view")
ATTRIBUTES = ("T", "dtype", "flags", "imag", "ndim", "real", "shape", "size", "strides")
BINARY = ("add", "sub", "mul", "truediv", "pow", "matmul", "and", "or", "eq", "ne", "lt", "le", "gt", "ge")
IN_PLACE = ("add", "mul")
UNARY = ("neg",)

called: set[tuple[str, frozenset[str]]] = set()
"""(name, keywords) of every function and method that was called."""


class Tape:
    """What stand-ins compute while they are recorded, as a CUDA graph is, to be computed again in the same arrays."""

    steps: list[Callable[[], None]] | None = None


@contextmanager
def recorded(steps: list[Callable[[], None]]) -> Iterator[None]:
    """Add to `steps` what is computed; what would go to the GPU or come from it meanwhile is refused."""
    Tape.steps = steps
    try:
        yield
    finally:
        Tape.steps = None


def record(step: Callable[[], None]) -> None:
    """Note a step that has been done, if somebody records."""
    if Tape.steps is not None:
        Tape.steps.append(step)


def refuse_while_recorded(what: str) -> None:
    if Tape.steps is not None:
        raise RuntimeError(f"{what} while a graph is recorded")


class ndarray:  # noqa: N801  the name that an array has in NumPy and CuPy
    """An array that meets only its own kind, Python scalars and types."""

    __array_ufunc__ = None  # so that NumPy's operators step back and __radd__ and the others refuse
    __hash__ = None

    def __init__(self, hidden: np.ndarray) -> None:
        self.hidden = hidden

    def __array_function__(self, function: Callable, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was given a stand-in array")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array")

    def __getitem__(self, key: Any) -> "ndarray":
        return computed(self.hidden.__getitem__, unwrapped(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        place, given = unwrapped(key), unwrapped(value)
        self.hidden[place] = given
        record(lambda: self.hidden.__setitem__(place, given))

    def __len__(self) -> int:
        return len(self.hidden)

    def __iter__(self) -> Iterator:
        raise TypeError("a loop over the elements of an array")

    def __bool__(self) -> bool:
        raise TypeError("the truth value of an array waits for the GPU")

    def __float__(self) -> float:
        raise TypeError("the value of an array waits for the GPU")

    __int__ = __index__ = __float__


def wrapped(result: Any) -> Any:
    """A stand-in of an array or of a scalar result, which on a GPU is a 0-d array."""
    if isinstance(result, (np.ndarray, np.generic)):
        return ndarray(np.asarray(result))
    return result


def computed(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """A stand-in of what a function of NumPy returns."""
    result = wrapped(function(*args, **kwargs))
    if isinstance(result, ndarray):

        def again() -> None:
            new = function(*args, **kwargs)
            if not np.may_share_memory(new, result.hidden):  # else it is a view, or was written into `out`
                result.hidden[...] = new

        record(again)
    return result


def unwrapped(value: Any) -> Any:
    """What NumPy may see of an argument; a TypeError for a NumPy array or scalar, which CuPy does not mix with."""
    if isinstance(value, ndarray):
        return value.hidden
    if isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(f"a NumPy value among stand-in arrays: {value!r}")
    if isinstance(value, (list, tuple)):
        return type(value)(unwrapped(item) for item in value)
    return value


def caller(name: str, function: Callable) -> Callable:
    """The function, for stand-in arrays."""

    def call(*args: Any, **kwargs: Any) -> Any:
        called.add((name, frozenset(kwargs)))
        if name in ("concatenate", "stack"):  # CuPy's upload a table of addresses
            refuse_while_recorded(f"{name}, which uploads,")
        return computed(function, *unwrapped(args), **{key: unwrapped(value) for key, value in kwargs.items()})

    return call


def method(name: str) -> Callable:
    """The method of an array."""
    return lambda self, *args, **kwargs: caller(f"ndarray.{name}", getattr(self.hidden, name))(*args, **kwargs)


def attribute(name: str) -> Callable:
    """The value of an attribute; a view of the array stays one."""

    def value(self: ndarray) -> Any:
        called.add((f"ndarray.{name}", frozenset()))
        return wrapped(getattr(self.hidden, name))

    return value


def operator(name: str) -> Callable:
    """An operator; a result of NotImplemented is the TypeError that Python makes of it."""

    def operate(self: ndarray, *others: Any) -> Any:
        called.add((f"ndarray.{name}", frozenset()))
        return computed(getattr(self.hidden, f"__{name}__"), *unwrapped(others))

    return operate


def in_place(name: str) -> Callable:
    """An operator that writes where its array lies."""

    def operate(self: ndarray, other: Any) -> ndarray:
        called.add((f"ndarray.i{name}", frozenset()))
        operate_on, given = getattr(self.hidden, f"__{name}__"), unwrapped(other)
        self.hidden[...] = operate_on(given)
        record(lambda: self.hidden.__setitem__(..., operate_on(given)))
        return self

    return operate


for _name in METHODS:
    setattr(ndarray, _name, method(_name))
for _name in ATTRIBUTES:
    setattr(ndarray, _name, property(attribute(_name)))
for _name in BINARY:
    setattr(ndarray, f"__{_name}__", operator(_name))
    if _name not in ("eq", "ne", "lt", "le", "gt", "ge"):
        setattr(ndarray, f"__r{_name}__", operator(f"r{_name}"))
for _name in IN_PLACE:
    setattr(ndarray, f"__i{_name}__", in_place(_name))
for _name in UNARY:
    setattr(ndarray, f"__{_name}__", operator(_name))
ndarray.__module__ = "standin"


def asarray(values: Any, dtype: Any = None) -> ndarray:
    """The one way in, as in CuPy: a stand-in of a NumPy array or of Python numbers."""
    called.add(("asarray", frozenset({"dtype"} if dtype is not None else ())))
    if not isinstance(values, ndarray):
        refuse_while_recorded("an upload")
    return values if isinstance(values, ndarray) else ndarray(np.array(values, dtype))


def asnumpy(x: ndarray) -> np.ndarray:
    """The one way out."""
    refuse_while_recorded("a download")
    return x.hidden


def module() -> ModuleType:
    """The array module, with the names of the tables and no others."""
    xp = ModuleType("standin")
    xp.ndarray, xp.asarray, xp.asnumpy, xp.finfo = ndarray, asarray, asnumpy, np.finfo
    for name in FUNCTIONS:
        function, place = np, xp
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(place, folder):
                setattr(place, folder, ModuleType(folder))
            function, place = getattr(function, folder), getattr(place, folder)
        setattr(place, last, caller(name, getattr(function, last)))
    return xp


@contextmanager
def installed() -> Iterator[ModuleType]:
    """The array module, importable as `standin`, and `standinx.scipy.special` beside it as CuPy has it."""
    import scipy.special

    special = ModuleType("standinx.scipy.special")
    for name in SPECIAL_FUNCTIONS:
        setattr(special, name, caller(f"special.{name}", getattr(scipy.special, name)))
    names = {
        "standin": module(),
        "standinx": ModuleType("standinx"),
        "standinx.scipy": ModuleType("standinx.scipy"),
        "standinx.scipy.special": special,
    }
    sys.modules.update(names)
    try:
        yield names["standin"]
    finally:
        for name in names:
            del sys.modules[name]
