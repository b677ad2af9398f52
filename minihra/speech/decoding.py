"""Greedy decoding: the likeliest label of each frame, repeats merged, blanks dropped. Graves et al. 2006, sec. 3.2."""

import numpy as np

from minihra.arrays import Array


def greedy_decode(logits: Array, valid: Array, *, blank: int = 0) -> list[list[int]]:
    """Return the labels of each utterance for logits (B, T, V), of which valid (B, T) frames are real."""
    best = np.where(valid, logits.argmax(-1), blank)
    before = np.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=blank)
    kept = (best != blank) & (best != before)
    return [row[keep].tolist() for row, keep in zip(best, kept, strict=True)]
