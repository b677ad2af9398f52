"""The batches of an epoch, every utterance once, similar lengths together, long ones in smaller batches; and labels."""

import numpy as np
import pytest

from minihra.data.corpus import Batches
from minihra.model import pack_labels

LENGTHS = np.random.default_rng(0).integers(10, 400, 100).tolist()


@pytest.mark.parametrize("frames", [100, 2000, 10**9])
def test_every_utterance_is_in_one_batch(frames: int) -> None:
    batches = Batches(LENGTHS, 16, frames, seed=1)
    for epoch in range(3):
        order = batches.of_epoch(epoch)
        assert len(order) == len(batches)
        assert sorted(np.concatenate(order).tolist()) == list(range(100))


def test_sizes_are_limited_by_utterances_and_by_frames() -> None:
    assert [len(b) for b in Batches([5] * 10, 4, 10**9, seed=1).of_epoch(0)].count(4) == 2
    assert sorted(len(b) for b in Batches([5] * 10, 4, 10, seed=1).of_epoch(0)) == [2] * 5
    assert sorted(len(b) for b in Batches([5] * 8 + [99, 99], 4, 20, seed=1).of_epoch(0)) == [1, 1, 4, 4]


def test_a_batch_has_similar_lengths_and_about_as_many_frames_as_asked_for() -> None:
    for batch in Batches(LENGTHS, 16, 2000, seed=1).of_epoch(0):
        lengths = [LENGTHS[i] for i in batch]
        assert len(lengths) * max(lengths) <= 1.2 * 2000


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(Batches(LENGTHS, 16, 2000, seed).of_epoch(epoch)).tolist()

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1) != order(2, 1)


def test_seen_counts_the_utterances_of_the_steps_before() -> None:
    batches = Batches(LENGTHS, 16, 2000, seed=1)
    sizes = [len(batch) for epoch in range(2) for batch in batches.of_epoch(epoch)]
    assert [batches.seen(step) for step in range(len(sizes) + 1)] == [
        sum(sizes[:step]) for step in range(len(sizes) + 1)
    ]


def test_labels_are_padded_with_the_blank() -> None:
    packed = pack_labels([[3, 1], [], [2, 2, 4], (1,)], size=5)
    assert packed.labels.tolist() == [[3, 1, 0], [0, 0, 0], [2, 2, 4], [1, 0, 0]]
    assert packed.lengths.tolist() == [2, 0, 3, 1] and packed.labels.dtype == packed.lengths.dtype == np.int64
    assert pack_labels([[0, 1]], size=5, blank=4).labels.tolist() == [[0, 1]]
    assert pack_labels([[], []], size=5).labels.shape == (2, 0) and pack_labels([], size=5).labels.shape == (0, 0)


@pytest.mark.parametrize(("label", "blank"), [(5, 0), (-1, 0), (0, 0), (4, 4), (6, 4)])
def test_a_label_that_there_is_not_is_told(label: int, blank: int) -> None:
    """The first one, with the row in which it stands, whatever rows are without labels."""
    with pytest.raises(ValueError, match=rf"^row 3: label {label} is not one of 0 \.\.\. 4 without the blank {blank}$"):
        pack_labels([[1, 2], [], [3], [label, 9], [9]], size=5, blank=blank)
