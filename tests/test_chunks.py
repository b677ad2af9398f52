"""Pieces cover a recording, and their outputs are put together as if it had never been cut."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.speech.chunks import Chunk, chunks_of, stitch


def per_frame(x: Array) -> Array:
    """Every fourth frame, as a front end that pads: n frames give ceil(n / 4) outputs."""
    return np.tanh(x[::4]) @ np.arange(6.0).reshape(3, 2)


def unpadded(x: Array) -> Array:
    """Two convolutions over 5 frames in steps of 2, without padding: output k hears the frames 4k .. 4k+12."""
    for weights in (np.array([1.0, -2.0, 3.0, 0.5, 0.7]), np.array([0.3, 1.0, -1.0, 2.0, -0.6])):
        T = (len(x) - 5) // 2 + 1
        x = np.stack([weights @ x[2 * t : 2 * t + 5] for t in range(T)])
    return x


def smoothed(x: Array, reach: int = 3) -> Array:
    """The sum over `reach` outputs to either side, fewer at the ends: 4 reach frames left, 4 reach + 12 right."""
    y = unpadded(x)
    return np.stack([y[max(k - reach, 0) : k + reach + 1].sum(0) for k in range(len(y))])


MODELS: dict[str, tuple[Callable[[Array], Array], int]] = {  # and the least overlap with which it does not notice
    "per frame": (per_frame, 0),
    "unpadded": (unpadded, 12),
    "smoothed": (smoothed, 2 * (4 * 3 + 12)),
}


def settings(rng: np.random.Generator, stride: int, least: int = 0) -> tuple[int, int, int]:
    """Frames, size and overlap, the overlap at least `least`."""
    overlap = stride * int(rng.integers(-(-least // stride), -(-least // stride) + 8))
    size = overlap + stride * int(rng.integers(1, 20))
    return int(rng.integers(0, 8 * size)), size, overlap


def test_pieces_cover_the_recording() -> None:
    rng, cut = np.random.default_rng(0), 0
    for _ in range(3000):
        stride = int(rng.integers(1, 9))
        frames, size, overlap = settings(rng, stride)
        pieces = chunks_of(frames, size, overlap, stride)
        assert (pieces[0].start, pieces[-1].stop) == (0, frames)
        if frames <= size:
            assert pieces == [Chunk(0, frames)]
            continue
        cut += 1
        assert all(piece.start % stride == 0 for piece in pieces)
        assert all(piece.stop - piece.start == size for piece in pieces[:-1])
        assert size - stride < pieces[-1].stop - pieces[-1].start <= size
        shared = [one.stop - other.start for one, other in pairwise(pieces)]
        assert all(overlap <= one < size for one in shared)
        assert len(pieces) == 1 + np.ceil((pieces[-1].start) / (size - overlap))  # no piece too many
        assert max(shared[:-1], default=0) - min(shared[:-1], default=0) <= stride  # spread evenly
    assert cut > 2000


@pytest.mark.parametrize("name", MODELS)
def test_stitched_outputs_are_those_of_the_whole_recording(name: str) -> None:
    model, least = MODELS[name]
    rng, pieces_seen = np.random.default_rng(1), set()
    for _ in range(150):
        frames, size, overlap = settings(rng, 4, least)
        frames, size = frames + 13, size + 16  # the unpadded front end needs 13 frames for an output
        x = rng.normal(size=(frames, 3))
        pieces = chunks_of(frames, size, overlap, 4)
        pieces_seen.add(len(pieces))
        whole = model(x)
        y = stitch([model(x[start:stop]) for start, stop in pieces], pieces, 4)
        assert y.shape == whole.shape
        np.testing.assert_allclose(y, whole, rtol=0, atol=1e-13)  # BLAS may add in another order
    assert {1, 2, 3, 4} < pieces_seen


def test_an_overlap_that_is_too_short_shows() -> None:
    """So that the test above can fail."""
    x = np.random.default_rng(2).normal(size=(200, 3))
    pieces = chunks_of(200, 60, 16, 4)
    y = stitch([smoothed(x[start:stop]) for start, stop in pieces], pieces, 4)
    assert y.shape == smoothed(x).shape
    assert np.abs(y - smoothed(x)).max() > 0.1


def test_each_piece_speaks_up_to_the_middle_of_the_overlap() -> None:
    pieces = [Chunk(0, 40), Chunk(24, 64), Chunk(48, 86)]
    unpadded_front = [np.full((T, 1), i) for i, T in enumerate([7, 7, 7])]  # floor((n - 13) / 4) + 1 outputs
    assert stitch(unpadded_front, pieces, 4).ravel().tolist() == [0] * 6 + [1] * 6 + [2] * 7
    padded_front = [np.full((T, 1), i) for i, T in enumerate([10, 10, 10])]  # ceil(n / 4)
    assert stitch(padded_front, pieces, 4).ravel().tolist() == [0] * 8 + [1] * 6 + [2] * 8


@pytest.mark.parametrize("frames", [0, 1, 40])
def test_a_short_recording_is_one_piece_and_comes_back_as_it_is(frames: int) -> None:
    pieces = chunks_of(frames, 40, 8, 4)
    assert pieces == [(0, frames)]
    y = np.random.default_rng(3).normal(size=(frames // 4, 5)).astype(np.float32)
    stitched = stitch([y], pieces, 4)
    assert stitched.dtype == y.dtype
    np.testing.assert_array_equal(stitched, y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 40, 8, 4), "cannot have -1 frames"),
        ((100, 40, 8, 0), "stride must be at least 1, got 0"),
        ((100, 40, 40, 4), "below size, 40, got 40"),
        ((100, 40, -4, 4), "at least 0 and below size, 40, got -4"),
        ((100, 0, 0, 4), "below size, 0, got 0"),
        ((100, 42, 8, 4), "multiples of the stride 4, got 42 and 8"),
        ((100, 40, 6, 4), "multiples of the stride 4, got 40 and 6"),
    ],
)
def test_impossible_sizes(arguments: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunks_of(*arguments)


def test_outputs_that_cannot_be_stitched() -> None:
    pieces = chunks_of(72, 40, 8, 4)
    assert pieces == [(0, 40), (32, 72)]
    with pytest.raises(ValueError, match="piece 0 ends at output 7, and the next begins at 8: overlap more"):
        stitch([np.zeros((7, 2)), np.zeros((7, 2))], pieces, 4)
    assert len(stitch([np.zeros((8, 2)), np.zeros((7, 2))], pieces, 4)) == 15
    with pytest.raises(ValueError, match="shorter"):
        stitch([np.zeros((9, 2))], pieces, 4)
    with pytest.raises(ValueError, match=r"multiples of the stride 5, got Chunk\(start=32"):
        stitch([np.zeros((9, 2)), np.zeros((9, 2))], pieces, 5)
    with pytest.raises(ValueError, match="at least one piece"):
        stitch([], [], 4)
