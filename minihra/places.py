"""On which processors threads run, where Linux would leave several of them on one.

Who slept is woken where it ran last, or beside the thread that wakes it, unless another processor is known to be free.
In a virtual machine an idle one may not be: once its host has taken it away, Linux counts it as taken
(`available_idle_cpu` in kernel/sched). So two threads that have met on a processor stay there and take turns, while
another one does nothing. Threads that have met are therefore told to keep apart, for some seconds: unless more threads
want to run, of all programs, than there are processors; then it is the system's business whose turn it is.
"""

import ctypes
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import local

HOLDS = 10.0
"""Seconds for which threads keep apart once two of them have met."""

Place = frozenset[int]
"""The processors on which a thread may run."""


def may_move() -> bool:
    """Whether the system lets threads say where they run."""
    try:
        os.sched_setaffinity(0, os.sched_getaffinity(0))
    except (AttributeError, OSError):  # another system than Linux, or one that forbids it
        return False
    return True


_getcpu = getattr(ctypes.CDLL(None), "sched_getcpu", None) if may_move() else None
_HERE = local()


class _State:
    """What all threads of the process share."""

    until = 0.0  # when threads need no longer keep apart


def here() -> int | None:
    """Return the processor on which the caller runs, or None where threads cannot be told where to run."""
    return None if _getcpu is None else _getcpu()


def running() -> float:
    """Return how many threads of the whole machine run, or would if they had a processor; infinity if nobody tells."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except OSError:
        return math.inf


def have_met() -> None:
    """Say that two threads that compute were on one processor: they keep apart from now on, unless others need it."""
    if running() <= (os.cpu_count() or 1):
        _State.until = time.perf_counter() + HOLDS


def must_keep_apart() -> bool:
    """Whether threads that compute should keep apart now."""
    return time.perf_counter() < _State.until


def anywhere() -> Place:
    """Return the processors that the caller may use."""
    return frozenset(os.sched_getaffinity(0))


def places_of(number: int, first: int | None) -> list[Place] | None:
    """Return the places of `number` threads, the first of which has the processor `first` alone; others share the rest.

    None where there are fewer processors than threads, or where threads cannot be told where to run.
    """
    if first is None or number < 2:
        return None
    allowed = anywhere()
    others = sorted(allowed - {first})
    if len(others) < number - 1 or first not in allowed:
        return None
    return [frozenset({first}), *(frozenset(others[n :: number - 1]) for n in range(number - 1))]


@contextmanager
def watched(places: list[Place] | None) -> Iterator[None]:
    """Note whether the caller is somewhere else afterwards: it was on a processor with another thread, and moved."""
    before = here()
    yield
    if places is not None and here() != before:
        have_met()


def settle(place: Place) -> None:
    """Let the caller, a thread of our own, run in this place from now on."""
    if getattr(_HERE, "place", None) != place:
        os.sched_setaffinity(0, place)
        _HERE.place = place


@contextmanager
def staying(place: Place | None) -> Iterator[None]:
    """Let the caller, a thread of anybody's, stay in this place, if there is one, and then where it could be before."""
    if place is None:
        yield
        return
    before = anywhere()
    os.sched_setaffinity(0, place)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
