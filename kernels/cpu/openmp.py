"""Loops whose turns the threads of OpenMP share, and on which processors these threads are: see minihra/places.py.

OpenMP's own way to keep threads where they are (OMP_PROC_BIND) is a setting of the whole process, for good, and binds
the caller, too, and with it all threads that it starts.
"""

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import numpy as np
from numba import config, prange, types

from minihra.arrays import Array
from minihra.kernels.cpu.compiled import OPENMP, SUMS, compile_loop
from minihra.places import Place, anywhere, have_met, here, must_keep_apart, places_of, staying
from minihra.threads import threads

EVERY = 0.005
"""Seconds after which a caller looks again where its helpers are, which takes some microseconds."""

sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
sched_setaffinity = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, types.uintp, types.uintp))


def compiled_for_threads(function: Callable) -> Callable:
    """Compile a loop over `prange`, whose turns the threads of OpenMP share; without OpenMP one thread takes them all.

    Of Numba's own threads the process would die if two threads of Python called at once.
    """
    loop = compile_loop(function, SUMS, parallel=OPENMP)

    @wraps(function)
    def shared(*arguments: Any) -> None:
        with staying(_TEAM.home() if OPENMP else None):
            loop(*arguments)

    return shared


@partial(compile_loop, fastmath=False, parallel=OPENMP)
def _meet(found: Array, places: Array) -> None:
    """Let found (N,) be the processors of the caller and its helpers, each of whom goes to its place first, if there is
    one: places (N or none, bytes) have a bit for each processor. The caller's is not looked at.
    """
    for n in prange(len(found)):
        if 0 < n < len(places):
            sched_setaffinity(0, places.shape[1], places[n].ctypes.data)
        found[n] = sched_getcpu()


def meet(number: int, places: Sequence[Place] = ()) -> list[int]:
    """Send helpers to their places, if there are any, and return where `number` threads are, the caller first."""
    words = 1 + max(map(max, places), default=0) // 64  # of 64 processors, as Linux has a set of them
    found, bits = np.empty(number, np.int64), np.zeros((len(places), 64 * words), bool)
    for place, its_bits in zip(places, bits, strict=True):
        its_bits[[*place]] = True
    _meet(found, np.packbits(bits, axis=1, bitorder="little"))
    return found.tolist()


class _Team(threading.local):
    """A caller's helpers: OpenMP has others for each thread that calls."""

    def __init__(self) -> None:
        self.again = 0.0  # when to look where they are
        self.places: list[Place] | None = None  # of the caller and of them, while they keep apart

    def home(self) -> Place | None:
        """Return where the caller stays while it has help, or None where it may be anywhere."""
        now = time.perf_counter()
        if now > self.again and here() is not None:
            self.again = now + EVERY
            self.look(min(threads(), config.NUMBA_NUM_THREADS))
        return self.places and self.places[0]

    def look(self, number: int) -> None:
        """Have the helpers keep apart if they must, let them go if they need not."""
        if self.places and not (must_keep_apart() and len(self.places) == number):
            meet(len(self.places), [anywhere()] * len(self.places))
            self.places = None
        if self.places is None and (places := places_of(number, here())):
            if len({*meet(number)}) < number:
                have_met()
            if must_keep_apart():
                meet(number, places)
                self.places = places


_TEAM = _Team()
