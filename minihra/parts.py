"""A batch in parts, one for each thread.

A part is some utterances of like lengths, padded to their own longest. Gradients of parts are added in one order, so
that the same number of threads always gives the same bits. A batch that is long enough has two parts at least, so that
one thread and two give the same bits; a shorter one is a single part, some of whose products other code makes where
several threads share them, unless it is so short that one thread takes it. Utterances of a frozen model do not see
each other: the parts together give what the whole batch gives. Those of a model that trains meet in its batch norms,
where the parts add up what they have (threads.together): they are computed at the same time, so that there are never
more of them than threads.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np

from minihra.arrays import Array
from minihra.threads import threads

LEAST_FRAMES = 400  # of features (samples, of a waveform): with fewer in a part the interpreter costs too much


LITTLE = 2**22  # frames of features times the squared width of a model
"""Below this one thread takes about as long for a single part as several, which wait for each other, and a first run
has less to compile: a short batch of a tiny model, such as the last one of an epoch.
"""


def is_little(lengths: Sequence[int] | Array, width: int) -> bool:
    """Whether so many frames are little to do for a model of this width."""
    return int(np.sum(lengths)) * width**2 < LITTLE


def parts_of(lengths: Array, tasks: Sequence[str] | None = None, *, least: int = 2, xp: ModuleType = np) -> list[Array]:
    """Return the rows of each part of a batch of `lengths` (B,) frames, the longest utterances first.

    There are as many parts as threads, and `least` at least; with about the same number of frames, and one row or more.
    Where the model computes with another array module `xp` than NumPy, on a GPU, the batch is a single part.
    With `tasks`, one a row, each part is sorted by them, so that an adapter need not gather the rows of a task.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    frames = np.cumsum(np.asarray(lengths)[order])
    number = int(min(max(least, threads()), max(1, frames[-1] // LEAST_FRAMES))) if xp is np else 1
    place = np.maximum(frames - 1, 0) * number // max(1, frames[-1])  # which part each row's last frame falls into
    parts = [order[place == part] for part in range(number) if (place == part).any()]
    return parts if tasks is None else [part[np.argsort(np.array(tasks)[part], kind="stable")] for part in parts]
