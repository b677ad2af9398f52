"""SpecAugment masks what it should, and nothing else."""

import numpy as np
import pytest

from minihra.speech.augment import SpecAugment, span

RNG = np.random.default_rng(0)
LENGTHS = np.array([50, 20, 9, 1, 0])


def signs(lengths=LENGTHS, dtype=np.float32):
    """Features (B, T, F), +1 and -1 in turn over time: over an even number of frames a mask holds 0."""
    features = np.ones((len(lengths), 50, 40), dtype)
    features[:, 1::2] = -1
    return features


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_hold_the_mean_of_their_bin_in_new_features(dtype):
    features = RNG.standard_normal((5, 50, 40)).astype(dtype)
    before = features.copy()
    masked = SpecAugment()(features, LENGTHS, np.random.default_rng(1))
    np.testing.assert_array_equal(features, before)
    assert masked.dtype == dtype
    assert not np.shares_memory(masked, features)
    for row, before, frames in zip(masked[:4], features, LENGTHS, strict=False):
        means = np.broadcast_to(before[:frames].mean(axis=0), before.shape)
        np.testing.assert_array_equal(row[row != before], means[row != before])
    assert (masked[0] != features[0]).any()


@pytest.mark.parametrize("augment", [SpecAugment(), SpecAugment(5, 99, 5, 1.0)])
def test_padding_is_not_masked(augment):
    for seed in range(20):
        masked = augment(signs(), LENGTHS, np.random.default_rng(seed))
        for row, frames in zip(masked, LENGTHS, strict=True):
            np.testing.assert_array_equal(row[frames:], signs()[0, frames:])


@pytest.mark.parametrize(
    "augment", [SpecAugment(0, 6, 0, 0.1), SpecAugment(3, 0, 3, 0.0), SpecAugment(0, 6, 2, 0.01)], ids=repr
)
def test_no_masks_change_nothing(augment):
    np.testing.assert_array_equal(augment(signs(), LENGTHS, np.random.default_rng(0)), signs())


def test_masks_of_an_utterance_depend_on_its_own_length_and_draws_alone():
    features = RNG.standard_normal((5, 50, 40))
    masked = SpecAugment()(features, LENGTHS, np.random.default_rng(3))
    for kept in range(5):
        mates, lengths = np.full_like(features, 7.0), np.full(5, 31)
        mates[kept], lengths[kept] = features[kept], LENGTHS[kept]
        np.testing.assert_array_equal(SpecAugment()(mates, lengths, np.random.default_rng(3))[kept], masked[kept])
    longer = np.pad(features, ((0, 0), (0, 9), (0, 0)), constant_values=np.nan)
    np.testing.assert_array_equal(SpecAugment()(longer, LENGTHS, np.random.default_rng(3))[:, :50], masked)
    np.testing.assert_array_equal(SpecAugment()(features, LENGTHS, np.random.default_rng(3)), masked)
    assert (SpecAugment()(features, LENGTHS, np.random.default_rng(4)) != masked).any()


def test_masks_are_stretches_of_all_widths_up_to_the_widest():
    lengths = np.full(400, 50)
    bands = SpecAugment(1, 6, 0, 0.0)(signs(lengths), lengths, np.random.default_rng(0)) == 0
    stretches = SpecAugment(0, 0, 1, 0.1)(signs(lengths), lengths, np.random.default_rng(0)) == 0
    for masked, axis, widest in ((bands, 1, 6), (stretches, 2, 5)):
        line = masked.any(axis)  # (B, F) or (B, T)
        np.testing.assert_array_equal(masked, np.broadcast_to(np.expand_dims(line, axis), masked.shape))
        assert set(line.sum(1)) == set(range(widest + 1))
        assert (np.diff(line, axis=1, prepend=False, append=False).sum(1) <= 2).all()  # one stretch, in one piece
        assert line.any(0).all()  # every place is masked at some time, the first and the last too


def test_widths_and_positions_are_uniform():
    rng = np.random.default_rng(0)
    spans = [span(10, 3, rng.random(2)) for _ in range(8000)]
    for width in range(4):
        starts = [start for start, stop in spans if stop - start == width]
        assert abs(len(starts) - 2000) < 200  # 5 standard deviations
        assert set(starts) == set(range(10 - width + 1))
        assert np.ptp(np.bincount(starts)) < 0.5 * len(starts) / (11 - width)
    almost_1 = np.nextafter(1, 0)
    assert span(10, 3, np.array([almost_1, almost_1])) == (7, 10)
    assert span(10, 3, np.zeros(2)) == (0, 0)
    assert span(0, 0, np.array([almost_1, almost_1])) == (0, 0)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("frequency_masks", -1, "a whole number of at least 0, got -1"),
        ("frequency_width", 2.5, "a whole number of at least 0, got 2.5"),
        ("time_masks", "2", "a whole number of at least 0, got '2'"),
        ("time_share", -0.1, "at least 0, got -0.1"),
        ("time_share", 1.5, "at most 1, got 1.5"),
        ("time_share", np.nan, "at least 0, got nan"),
    ],
)
def test_impossible_masks_are_named(setting, value, message):
    with pytest.raises(ValueError, match=f"{setting} must be {message}"):
        SpecAugment(**{setting: value})
