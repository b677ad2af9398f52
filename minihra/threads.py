"""How many threads compute, and how work is shared among them.

Threads take whole utterances (parts.py), or some tasks each of a large batch of heads, and BLAS runs with one thread
in each: a product that many threads enter together is slower, and pools of threads that wait for each other slower
still. The number is that of MINIHRA_THREADS in the environment or of `set_threads`, else that of the processors which
the process may use.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock, local
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

Result = TypeVar("Result")


class _State:
    """What all threads of the process share."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.threads: int | None = None
        self.inside = 0  # how many callers want one-thread BLAS now
        self.before: list[tuple[Any, int]] = []  # libraries, and the number of threads that each had


_STATE, _HERE = _State(), local()


def threads() -> int:
    """Return the number of threads that compute.

    Raises:
        ValueError: MINIHRA_THREADS is no whole number of at least 1.
    """
    if _STATE.threads is None:
        set_threads(os.environ.get("MINIHRA_THREADS") or processors())
    return _STATE.threads


def processors() -> int:
    """Return how many processors the process may use, as far as the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(number: int | str) -> None:
    """Let `number` threads compute from now on, those of BLAS among them.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    try:
        whole = int(number)
    except ValueError:
        whole = 0
    if whole < 1:
        raise ValueError(f"the number of threads must be a whole number of at least 1, got {number}")
    with _STATE.lock:
        _STATE.threads = whole
        if _STATE.inside:
            _STATE.before = [(library, whole) for library in _blas()]
        else:
            for library in _blas():
                library.set_num_threads(whole)


@cache
def _blas() -> list[Any]:
    """Return the BLAS libraries that are loaded when it is first called."""
    return ThreadpoolController().select(user_api="blas").lib_controllers


@contextmanager
def one_thread_blas() -> Iterator[None]:
    """Run the products of the whole process with one thread each, until the last caller is out again."""
    with _STATE.lock:
        _STATE.inside += 1
        if _STATE.inside == 1:
            _STATE.before = [(library, library.num_threads) for library in _blas()]
            for library, _ in _STATE.before:
                library.set_num_threads(1)
    try:
        yield
    finally:
        with _STATE.lock:
            _STATE.inside -= 1
            if _STATE.inside == 0:
                for library, number in _STATE.before:
                    library.set_num_threads(number)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "minihra", lambda: setattr(_HERE, "worker", True))


def alone() -> bool:
    """Whether a caller has but its own thread: it is one of the workers itself, or there are none."""
    return getattr(_HERE, "worker", False) or threads() == 1


def share(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run the tasks on all threads, one-thread BLAS in each, and return their results in order.

    A single task has the threads of BLAS to itself.
    """
    number = threads()  # its first call gives BLAS the number
    if len(tasks) == 1:
        return [tasks[0]()]
    with one_thread_blas():
        if alone():
            return [task() for task in tasks]
        return list(_pool(number).map(lambda task: task(), tasks))
