"""How many threads compute, and how work is shared among them.

Threads take whole utterances (parts.py), and BLAS runs with one thread in each: a product that many threads enter
together is slower, and pools of threads that wait for each other slower still. Where there is but one part, such as a
single recording, threads of OpenMP, which wake sooner, share its rows (kernels/cpu/product.py, attention.py, heads.py);
if it is little to do, the caller's thread takes it. The number is that of MINIHRA_THREADS in the environment or of
`set_threads`, else that of the processors which the process may use.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import cache, reduce
from threading import Barrier, BrokenBarrierError, Lock, local
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from minihra.places import anywhere, have_met, here, must_keep_apart, places_of, settle, staying, watched
from minihra.tree import Total, Tree, add, whole

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


def _workers(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, "minihra", lambda: setattr(_HERE, "worker", True))


_pool = cache(_workers)


def alone() -> bool:
    """Whether a caller has but its own thread: it is one of the workers itself, or there are none."""
    return getattr(_HERE, "worker", False) or threads() == 1


@contextmanager
def _as_worker() -> Iterator[None]:
    """Let the caller have but its own thread, with one-thread BLAS."""
    before, _HERE.worker = getattr(_HERE, "worker", False), True
    try:
        with one_thread_blas():
            yield
    finally:
        _HERE.worker = before


def share(tasks: Sequence[Callable[[], Result]], *, little: bool = False) -> list[Result]:
    """Run the tasks on all threads, one-thread BLAS in each, and return their results in order.

    The caller's thread is one of them: it need not be woken. A single task has all threads to itself, unless there is
    `little` to do.
    """
    number = threads()  # its first call gives BLAS the number
    if len(tasks) == 1:
        with _as_worker() if little else nullcontext():
            return [tasks[0]()]
    helpers = 0 if alone() else min(number, len(tasks)) - 1
    results, waiting = {}, iter(enumerate(tasks))
    home, apart = here(), must_keep_apart()
    places = places_of(helpers + 1, home)
    elsewhere = anywhere() if places else None

    def work() -> None:
        with watched(places):
            for n, task in waiting:
                results[n] = task()

    def help_out(n: int) -> None:
        if places is not None:
            if not apart and here() == home:
                have_met()
            settle(places[n] if must_keep_apart() else elsewhere)
        work()

    with _as_worker(), staying(places[0] if places and apart else None):
        others = [_pool(number - 1).submit(help_out, n + 1) for n in range(helpers)]
        try:
            work()
        finally:
            wait(others)
    for other in others:
        other.result()
    return [results[place] for place in range(len(tasks))]


class _Meeting:
    """Where the tasks of `together` wait for each other."""

    def __init__(self, number: int) -> None:
        self.barrier = Barrier(number)
        self.brought = [[None] * number, [None] * number]  # in turn: a task may bring the next before all have read

    def attend(self, place: int, task: Callable[[Total], Result]) -> Result:
        """Run a task; if it fails, nobody waits for it any longer."""
        turn = 0

        def total(tree: Tree) -> Tree:
            nonlocal turn
            trees = self.brought[turn % 2]
            trees[place], turn = tree, turn + 1
            self.barrier.wait()
            return reduce(add, trees)

        try:
            return task(total)
        except BaseException:
            self.barrier.abort()
            raise


def together(tasks: Sequence[Callable[[Total], Result]], *, little: bool = False) -> list[Result]:
    """Run the tasks at the same time, a thread each, one-thread BLAS in each, and return their results in order.

    Each is given a function that returns the sum of what all of them have called it with, in the order of the tasks;
    they must call it equally often. A single task has all threads to itself, unless there is `little` to do.
    """
    threads()  # its first call gives BLAS the number
    if len(tasks) == 1:
        with _as_worker() if little else nullcontext():
            return [tasks[0](whole)]
    meeting, apart, begun = _Meeting(len(tasks)), must_keep_apart(), []
    places = places_of(len(tasks), here())

    def attend(n: int) -> Result:
        if places is not None and apart:
            settle(places[n])
        begun.append(here())
        with watched(places):
            return meeting.attend(n, tasks[n])

    with one_thread_blas(), _workers(len(tasks)) as pool:  # of their own: in a shared one some might wait for a place
        futures = [pool.submit(attend, n) for n in range(len(tasks))]
        errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    if places is not None and len({*begun}) < len(tasks):
        have_met()
    return [future.result() for future in futures]
