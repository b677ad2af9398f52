"""Long recordings are recognised in pieces, and batches of recordings in any company: the texts stay what they are."""

from dataclasses import replace

import numpy as np
import pytest

from minihra import evaluate
from minihra.cases import numbers
from minihra.evaluate import batches_of, logits_of, pieces_of, transcribe
from minihra.model import forward
from minihra.model_cases import CONFIG, tiny_conformer
from minihra.open_cases import OPEN
from minihra.recogniser import Recogniser
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from tests.tiny import trained_hra

ALPHABET = Alphabet("abcdefghij")


def recogniser(**changes: object) -> Recogniser:
    features = LogMel(8000, mels=CONFIG.mels)
    return Recogniser(tiny_conformer(replace(CONFIG, **changes)), features, ALPHABET)


@pytest.mark.parametrize("name", OPEN)
def test_pieces_of_a_model_that_reaches_little_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention of two frames and a kernel of five reach six frames in each of three layers, less than half of 40."""
    changes = {**OPEN[name], "reach": (2, 2)}
    if name == "Wav2Vec2-Conformer":  # a norm over all frames, and positions that count from the start of the piece
        stages = tuple(replace(stage, norm=None) for stage in changes["front_end"].stages)
        changes |= {"position": "relative", "front_end": replace(changes["front_end"], stages=stages)}
    given, front_end = recogniser(**changes), changes["front_end"]
    features = numbers(900, CONFIG.mels, k=3)
    (whole,) = logits_of(given, [features])
    per_second = round(1 / (given.features.hop * front_end.stride))
    monkeypatch.setattr(evaluate, "PIECE", 100 / per_second)
    monkeypatch.setattr(evaluate, "OVERLAP", 42 / per_second)
    assert len(pieces_of(900, given)) > 1
    (stitched,) = logits_of(given, [features])
    assert stitched.shape == whole.shape
    assert np.abs(stitched - whole).max() < 1e-11


def test_a_recording_says_the_same_in_any_company() -> None:
    given, hra = recogniser(), trained_hra(dtype=np.float64)
    features = [numbers(n, CONFIG.mels, k=n) for n in (40, 7, 90, 23)]
    tasks = ["ann", "base", "bob", "ann"]
    together = logits_of(given, features, hra, tasks)
    for one, task, logits in zip(features, tasks, together, strict=True):
        (alone,) = logits_of(given, [one], hra, [task])
        expected = forward(given.model, one[None], [len(one)], hra.edit([task]))[0][0]
        assert np.abs(alone - logits).max() < 1e-12
        assert np.abs(alone - expected).max() < 1e-12


def test_a_beam_writes_what_it_finds() -> None:
    given, features = recogniser(), [numbers(80, CONFIG.mels, k=4)]
    assert transcribe(given, features, beam=1) != [""]
    with pytest.raises(ValueError, match="width must be at least 1"):
        transcribe(given, features, beam=0)


def test_batches_hold_at_most_so_many_frames_and_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [5, 900, 3, 3, 40, 41, 39, 3]
    batches = [sorted(batch.tolist()) for batch in batches_of(lengths, 125)]
    assert batches == [[0, 2, 3, 7], [4, 5, 6], [1]]
    assert [len(batch) for batch in batches_of([1] * 70, 10**9)] == [32, 32, 6]
