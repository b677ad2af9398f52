"""Prefix beam search finds the likeliest labelling, and nothing that is not of the utterance changes it."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest

from minihra.layers.ctc import ctc_forward
from minihra.speech.beam import beam_decode
from minihra.speech.decoding import greedy_decode

ALL = 10_000  # a width that no frame of these tests fills


def peaky(rng: np.random.Generator, T: int, V: int, blank: int = 0) -> np.ndarray:
    """Logits (1, T, V) as a trained model's: mostly blank, now and then a label, surer of some frames than others."""
    logits = rng.normal(size=(1, T, V))
    best = np.where(rng.random(T) < 0.5, rng.integers(0, V, T), blank)
    logits[0, np.arange(T), best] += rng.uniform(0, 5, T)
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    y = np.exp(logits - logits.max(-1, keepdims=True))
    return y / y.sum(-1, keepdims=True)


def probabilities(logits: np.ndarray, blank: int) -> dict[tuple[int, ...], float]:
    """The probability of every labelling of logits (T, V), by adding up all V^T paths."""
    y, found = softmax(logits).tolist(), defaultdict(float)
    for path in itertools.product(range(logits.shape[1]), repeat=len(y)):
        labelling = tuple(v for v, _ in itertools.groupby(path) if v != blank)
        found[labelling] += math.prod(y[t][v] for t, v in enumerate(path))
    return found


def plain_beam(logits: np.ndarray, width: int, blank: int) -> list[int]:
    """The search as Hannun et al. print it: a dictionary of prefixes, no logs, every label of every frame."""
    beam = {(): (1.0, 0.0)}
    for y in softmax(logits).tolist():
        grown = defaultdict(lambda: [0.0, 0.0])
        for prefix, (in_blank, in_label) in beam.items():
            grown[prefix][0] += (in_blank + in_label) * y[blank]
            for v in range(len(y)):
                if v == blank:
                    continue
                if prefix and v == prefix[-1]:
                    grown[prefix][1] += in_label * y[v]
                    grown[(*prefix, v)][1] += in_blank * y[v]
                else:
                    grown[(*prefix, v)][1] += (in_blank + in_label) * y[v]
        beam = dict(sorted(grown.items(), key=lambda item: -sum(item[1]))[:width])
    return list(max(beam, key=lambda prefix: sum(beam[prefix])))


def log_likelihood(logits: np.ndarray, labels: list[int]) -> float:
    """Log probability of one labelling of logits (1, T, V)."""
    valid = np.ones(logits.shape[:2], bool)
    loss, cache = ctc_forward(logits, valid, np.array([labels], int), np.array([len(labels)]))
    assert cache.feasible.all()
    return -float(loss[0])


def decode(logits: np.ndarray, width: int, blank: int = 0) -> list[int]:
    return beam_decode(logits, np.ones(logits.shape[:2], bool), width=width, blank=blank)[0]


def test_a_wide_beam_finds_the_likeliest_of_all_labellings() -> None:
    rng, other_than_greedy = np.random.default_rng(0), 0
    for n in range(200):
        T, V = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        blank = int(rng.integers(V))
        logits = peaky(rng, T, V, blank) if n % 2 else rng.normal(size=(1, T, V))
        of_all = probabilities(logits[0], blank)
        assert decode(logits, ALL, blank) == list(max(of_all, key=of_all.__getitem__))
        other_than_greedy += decode(logits, ALL, blank) != greedy_decode(logits, np.ones((1, T), bool), blank=blank)[0]
    assert other_than_greedy >= 20


def test_paths_are_added_up() -> None:
    """The likeliest path is all blank, 0.36; but the paths that spell the one label have 0.64 together."""
    logits = np.log(np.array([[[0.6, 0.4], [0.6, 0.4]]]))
    assert greedy_decode(logits, np.ones((1, 2), bool)) == [[]]
    assert decode(logits, 2) == [1]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_a_narrow_beam_is_the_plain_search_over_all_labels(width: int) -> None:
    """So that offering a frame's width+1 best labels loses nothing."""
    rng = np.random.default_rng(width)
    for n in range(60):
        T, V = int(rng.integers(1, 16)), int(rng.integers(1, 12))
        blank = int(rng.integers(V))
        logits = peaky(rng, T, V, blank) if n % 2 else rng.normal(size=(1, T, V))
        assert decode(logits, width, blank) == plain_beam(logits[0], width, blank)


def test_a_repeat_may_stand_before_the_label_that_is_kept() -> None:
    """Behind `1` half the paths end in a blank and half in 1: its repeat and itself share the best label of frame 3."""
    y = np.array([[[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [0.05, 0.5, 0.45]]])
    with np.errstate(divide="ignore"):
        assert decode(np.log(y), 1) == [1, 2]  # 0.45, against 0.3 for [1] and 0.25 for [1, 1]


def test_what_is_found_is_likelier_than_what_greedy_decoding_finds() -> None:
    """Mostly: it is no theorem, see below."""
    rng, T = np.random.default_rng(1), 40
    utterances = [peaky(rng, T, 8) for _ in range(50)]
    greedy = np.array([log_likelihood(x, greedy_decode(x, np.ones((1, T), bool))[0]) for x in utterances])
    gains = [np.array([log_likelihood(x, decode(x, width)) for x in utterances]) - greedy for width in (2, 8, 32)]
    assert 0.2 < gains[0].mean() < gains[1].mean() < gains[2].mean()
    assert all((gain > -1e-9).mean() >= 0.8 for gain in gains)


def test_a_narrow_beam_can_lose_what_greedy_decoding_finds() -> None:
    y = np.array([[[0.14, 0.24, 0.62], [0.48, 0.03, 0.49], [0.52, 0.3, 0.18], [0.06, 0.35, 0.59]]])
    assert greedy_decode(y, np.ones((1, 4), bool)) == [[2, 2]]
    assert decode(np.log(y), 2) == [2, 1]
    assert log_likelihood(np.log(y), [2, 1]) < log_likelihood(np.log(y), [2, 2])


@pytest.mark.parametrize("width", [1, 3, 20])
def test_padding_and_batch_mates_change_nothing(width: int) -> None:
    rng, lengths = np.random.default_rng(2), (9, 0, 14, 1)
    alone = [peaky(rng, T, 6).astype(np.float32) for T in lengths]
    valid = np.arange(16) < np.array(lengths)[:, None]
    batch = rng.choice(np.array([1e3, np.nan, np.inf], np.float32), (4, 16, 6))
    for row, one in zip(batch, alone, strict=True):
        row[: one.shape[1]] = one[0]
    kept = batch.copy()
    assert beam_decode(batch, valid, width=width) == [decode(one, width) for one in alone]
    np.testing.assert_array_equal(batch, kept)


def test_frames_and_rows_may_be_missing() -> None:
    assert decode(np.zeros((1, 0, 3)), 4) == []
    assert beam_decode(np.zeros((2, 3, 4)), np.zeros((2, 3), bool), width=4) == [[], []]
    assert beam_decode(np.zeros((0, 3, 4)), np.zeros((0, 3), bool), width=4) == []
    assert decode(np.zeros((1, 3, 1)), 4) == []  # no label but the blank


def test_ties_are_broken_the_same_way_everywhere() -> None:
    """Two frames, blank and two labels, all equal: of the five labellings [1] and [2] have 3 of the 9 paths each."""
    assert decode(np.zeros((1, 2, 3)), ALL) == [1]
    assert decode(np.zeros((1, 1, 3)), ALL) == []


def test_labels_that_cannot_be_are_never_written() -> None:
    rng = np.random.default_rng(3)
    for _ in range(100):
        logits = peaky(rng, 5, 4)
        logits[rng.random(logits.shape) < 0.6] = -np.inf
        dead = ~np.isfinite(logits).any(-1)
        logits[dead, rng.integers(4)] = 0.0
        of_all = probabilities(logits[0], 0)
        likeliest = max(of_all.values())
        for width in (1, 2, ALL):  # a narrow beam never runs empty
            assert of_all[tuple(decode(logits, width))] > 0
        assert of_all[tuple(decode(logits, ALL))] == pytest.approx(likeliest, rel=1e-12)
    only = np.full((1, 3, 3), -np.inf)
    only[0, [0, 1, 2], [1, 0, 1]] = 0.0
    assert decode(only, 1) == decode(only, ALL) == [1, 1]


def test_improbable_paths_do_not_vanish() -> None:
    """The likeliest path of 2000 frames has a probability of 1e-434, below every float."""
    logits, said = np.zeros((1, 2000, 300), np.float32), [7, 8, 8, 9] * 50
    logits[..., 0] = 6.0
    logits[0, ::10, 0] = 0.0
    logits[0, np.arange(0, 2000, 10), said] = 12.0
    logits[0, -1, [20, 21]] = 12.0, 12.00002  # float32 would not see it beside a log probability of -1000
    assert decode(logits, 4) == [*said, 21]
    steep = np.zeros((1, 3, 4), np.float32)
    steep[0, [0, 1, 2], [3, 0, 3]] = 1e30
    assert decode(steep, 4) == [3, 3]


@pytest.mark.parametrize("bad", [np.full(3, -np.inf), np.array([0, np.nan, 0]), np.array([0, np.inf, 0])])
def test_a_frame_without_probabilities_is_an_error(bad: np.ndarray) -> None:
    logits = np.zeros((2, 5, 3))
    logits[1, 3] = bad
    valid = np.ones((2, 5), bool)
    with pytest.raises(ValueError, match="utterance 1, frame 3: logits whose largest is not finite"):
        beam_decode(logits, valid, width=2)
    valid[1, 3:] = False
    assert beam_decode(logits, valid, width=2)


@pytest.mark.parametrize("width", [0, -1])
def test_a_beam_has_a_width(width: int) -> None:
    with pytest.raises(ValueError, match=f"width must be at least 1, got {width}"):
        decode(np.zeros((1, 2, 3)), width)


def test_forgetting_dead_ends_changes_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    logits = 3 * rng.standard_normal((4, 60, 5))
    valid = np.ones((4, 60), bool)
    expected = [beam_decode(logits, valid, width=width) for width in (1, 3, 8)]
    for frames in (1, 2, 7):
        monkeypatch.setattr("minihra.speech.beam.FORGET", frames)
        assert [beam_decode(logits, valid, width=width) for width in (1, 3, 8)] == expected
