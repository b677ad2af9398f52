"""A batch in parts, which threads take one after another.

A part is a few utterances of like lengths, padded to their own longest. What parts there are depends on the batch
alone, and their gradients are added in one order: so a step of two parts or more gives the same bits on any number of
threads. (A single part has the threads of BLAS, which add in another order for each number of them.) Utterances of a
frozen model do not see each other, so that the parts together give what the whole batch gives.
"""

import numpy as np

from minihra.arrays import Array

MOST = 8
LEAST_FRAMES = 800  # of features (samples, of a waveform): with fewer in a part the interpreter costs too much


def parts_of(lengths: Array) -> list[Array]:
    """Return the rows of each part of a batch of `lengths` (B,) frames, the longest utterances first.

    Parts have about the same number of frames, and at least one row each.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    frames = np.cumsum(np.asarray(lengths)[order])
    number = int(min(MOST, max(1, frames[-1] // LEAST_FRAMES)))
    place = np.maximum(frames - 1, 0) * number // max(1, frames[-1])  # which part each row's last frame falls into
    return [order[place == part] for part in range(number) if (place == part).any()]
