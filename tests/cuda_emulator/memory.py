"""The memory that kernels may use: which arrays there are, and which bytes of them something has written."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np


class Named(NamedTuple):
    """An array, as messages call it."""

    name: str
    array: np.ndarray

    @property
    def begin(self) -> int:
        return self.array.ctypes.data

    @property
    def end(self) -> int:
        return self.array.ctypes.data + self.array.nbytes


class Mark(NamedTuple):
    """Which bytes of an array of unknown values a kernel has written since."""

    begin: int
    written: np.ndarray


class Piece(NamedTuple):
    """One piece of memory, of one array or of several that overlap."""

    begin: int
    end: int
    written: np.ndarray | None


_known: list[Named] = []
_marks: dict[int, Mark] = {}


@contextmanager
def known(*arrays: np.ndarray) -> Iterator[None]:
    """Arrays that kernels reach by addresses in a table, and not as arguments."""
    for array in arrays:
        if not array.flags.c_contiguous:
            raise TypeError("an array that a kernel reaches by its address must be contiguous")
    before = len(_known)
    _known.extend(Named(f"known array {i}", array) for i, array in enumerate(arrays))
    try:
        yield
    finally:
        del _known[before:]


def known_arrays() -> list[Named]:
    """The arrays that are known now."""
    return list(_known)


def uninitialised(array: np.ndarray) -> np.ndarray:
    """The array, filled with NaN. Until it is freed, a checked kernel may not read of it what no kernel has written.

    What Python writes is not seen: call it on arrays that only kernels fill.
    """
    if not array.flags.c_contiguous:
        raise TypeError("an array without initial values must be contiguous")
    array.reshape(-1).view(np.uint8)[...] = 0xFF
    key = id(array)
    _marks[key] = Mark(array.ctypes.data, np.zeros(array.nbytes, np.uint8))
    weakref.finalize(array, _marks.pop, key, None)
    return array


def marks() -> list[Mark]:
    """The marks that there are now: while they are looked through, an array may be freed, and its mark go."""
    return list(_marks.values())


def overlap(mark: Mark, begin: int, end: int) -> tuple[slice, slice] | None:
    """The same bytes in the mark and in a piece, if there are any."""
    first, last = max(mark.begin, begin), min(mark.begin + len(mark.written), end)
    return (slice(first - mark.begin, last - mark.begin), slice(first - begin, last - begin)) if first < last else None


def pieces_of(arrays: Sequence[Named]) -> list[Piece]:
    """The memory of the arrays; those that overlap are one piece."""
    joined: list[list[int]] = []
    for begin, end in sorted((named.begin, named.end) for named in arrays if named.array.nbytes):
        if joined and begin < joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return [Piece(begin, end, flags_of(begin, end)) for begin, end in joined]


def flags_of(begin: int, end: int) -> np.ndarray | None:
    """Whether each byte is written; None where no mark asks."""
    flags = None
    for mark in marks():
        if (where := overlap(mark, begin, end)) is not None:
            flags = np.ones(end - begin, np.uint8) if flags is None else flags
            flags[where[1]] = mark.written[where[0]]
    return flags


def remember(pieces: Sequence[Piece]) -> None:
    """Keep for the next kernel what this one has written."""
    for piece in pieces:
        for mark in marks():
            if piece.written is not None and (where := overlap(mark, piece.begin, piece.end)) is not None:
                mark.written[where[0]] = piece.written[where[1]]


def forget(arrays: Sequence[Named]) -> None:
    """Take all of the arrays as written, after a kernel at which nobody looked."""
    for named in arrays:
        for mark in marks():
            if (where := overlap(mark, named.begin, named.end)) is not None:
                mark.written[where[0]] = 1
