"""Long recordings in overlapping pieces: the model sees one piece at a time, and the outputs are stitched together.

Attention costs the square of the length, and a model that was trained on short recordings is at home in short pieces.
At the ends of a piece the model lacks what lies beyond; so neighbours overlap, and each gives its outputs up to the
middle of the overlap. A model whose outputs reach less than half the overlap to either side, in feature frames, gives
exactly what it would give for the whole recording; one that attends to all of a piece gives nearly that. Cut features,
and not samples: then what was normalised over the recording stays so.

With n feature frames, stride s (feature frames for an output frame), pieces that start at a_i and give T_i outputs:

    output k of piece i is output a_i / s + k of the recording
    cut_i = floor((a_{i+1} / s + a_i / s + T_i) / 2)     from here on piece i+1 speaks, and before it piece i

The cut is the middle of the overlap in outputs. Where a front end without padding gives fewer than n / s of them, it is
the middle of what was really heard twice, and the last piece has the recording's own number of outputs.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from minihra.arrays import Array


class Chunk(NamedTuple):
    """A piece of a recording, in feature frames: `features[start:stop]`."""

    start: int
    stop: int


def chunks_of(frames: int, size: int, overlap: int, stride: int) -> list[Chunk]:
    """Return the pieces of a recording of `frames` feature frames, of which `stride` give one output frame.

    Pieces start at multiples of `stride`, spread evenly, so that neighbours share `overlap` frames or more. All have
    `size` frames, but the last may lack up to `stride` - 1 of them. A recording of up to `size` frames is one piece.

    Raises:
        ValueError: `frames` is negative, `stride` below 1, `overlap` outside 0..size-1, or one of `size` and `overlap`
            no multiple of `stride`.
    """
    if frames < 0:
        raise ValueError(f"a recording cannot have {frames} frames")
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if not 0 <= overlap < size:
        raise ValueError(f"overlap must be at least 0 and below size, {size}, got {overlap}")
    if size % stride or overlap % stride:
        raise ValueError(f"size and overlap must be multiples of the stride {stride}, got {size} and {overlap}")
    if frames <= size:
        return [Chunk(0, frames)]
    last = -(-(frames - size) // stride)  # the last start in units of stride, rounded up
    gaps = -(-last * stride // (size - overlap))  # the fewest steps of size - overlap or less that lead there
    starts = [i * last // gaps * stride for i in range(gaps + 1)]
    return [Chunk(start, min(start + size, frames)) for start in starts]


def stitch(outputs: Sequence[Array], pieces: Sequence[Chunk], stride: int) -> Array:
    """Return the outputs (T, V) of a recording for the outputs (T_i, V) of each of its pieces, without padding.

    Raises:
        ValueError: there are not as many outputs as pieces, or none; a piece does not start at a multiple of `stride`;
            a piece's outputs end before those of the next begin: the front end takes more frames than the overlap has.
    """
    if not pieces:
        raise ValueError("a recording has at least one piece")
    if odd := [piece for piece in pieces if piece.start % stride]:
        raise ValueError(f"pieces must start at multiples of the stride {stride}, got {odd[0]}")
    starts = [piece.start // stride for piece in pieces]
    stops = [start + len(output) for start, output in zip(starts, outputs, strict=True)]
    cuts = [0]
    for i, (stop, start) in enumerate(zip(stops[:-1], starts[1:], strict=True)):
        if stop < start:
            raise ValueError(f"piece {i} ends at output {stop}, and the next begins at {start}: overlap more")
        cuts.append((start + stop) // 2)
    cuts.append(stops[-1])
    parts = zip(outputs, starts, pairwise(cuts), strict=True)
    return np.concatenate([output[begin - start : end - start] for output, start, (begin, end) in parts])
