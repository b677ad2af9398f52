"""What the C library does with memory that NumPy frees."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
SETTINGS = {M_MMAP_THRESHOLD: 2**31 - 1, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}


def keep_freed_memory() -> bool:
    """Let the process keep the memory of freed arrays for the next ones; return whether the C library can.

    glibc gives the blocks of large arrays back to the system when they are freed, and every new array then costs a page
    fault for each 4 kB that is written. With this, a bias of 4096 added to 126 rows takes 0.4 ms instead of 2.5. All
    threads share one arena, as those of other threads are given back whatever the threshold says. The process keeps the
    memory of its largest moment to its end; so this is for programs to call, and not for libraries.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(*setting) for setting in SETTINGS.items())
