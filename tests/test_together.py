"""Heads that learn as one at first, and then each on its own; and recordings at several speeds."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from minihra.adapters.controller import HRAParams
from minihra.adapters.hra import HRA
from minihra.cli import main
from minihra.data.corpus import Utterance, load_utterances
from minihra.data.faults import Faults
from minihra.data.manifest import Row
from minihra.model_cases import CONFIG
from minihra.optim import AdamW
from minihra.recogniser import Adapter, Recogniser
from minihra.speech.alphabet import Alphabet
from minihra.speech.audio import at_speed
from minihra.speech.features import LogMel
from minihra.train import OPEN_ADAPTATION, TrainingConfig, train
from minihra.trainees import Adaptation
from minihra.tree import leaves
from tests.tiny import bits, frozen_backbone, new_hra
from tests.tones import Bench

SPEAKERS = ("ann", "bob", "cec")
CONFIGURATION = TrainingConfig(steps=6, batch=4, clip=1e9, peak=1e-2, decay=0.0)


def utterances() -> list[Utterance]:
    rng = np.random.default_rng(0)
    return [
        Utterance(rng.standard_normal((30 + n, CONFIG.mels), np.float32), (1 + n % 5, 7), "", SPEAKERS[n % 3], str(n))
        for n in range(8)
    ]


def adapted(path: Path, tasks: tuple[str, ...], given: list[Utterance], together: float, resume: bool = False) -> HRA:
    recogniser = Recogniser(frozen_backbone(), LogMel(8000, mels=CONFIG.mels), Alphabet("abcdefghij"))
    hra = HRA(CONFIG.width, 4, seed=3)
    for task in tasks:
        hra.add_task(task)
    trainee = Adaptation(recogniser, Adapter(hra, "speaker", ""), new_tasks=tasks)
    train(trainee, given, replace(CONFIGURATION, together=together), path, resume=resume)
    return trainee.adapter.hra


def test_together_they_are_one_head(tmp_path: Path) -> None:
    own = adapted(tmp_path / "own", SPEAKERS, utterances(), together=0.99)
    shared = adapted(tmp_path / "one", ("all",), [u._replace(task="all") for u in utterances()], together=0.0)
    assert bits(own.p.heads["ann"]) == bits(own.p.heads["bob"]) == bits(own.p.heads["cec"])
    for (name, one), (_, other) in zip(leaves(own.p.heads["ann"]), leaves(shared.p.heads["all"]), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5, err_msg=name)
        assert np.abs(one).max() > 1e-3


def test_afterwards_each_goes_its_own_way(tmp_path: Path) -> None:
    hra = adapted(tmp_path, SPEAKERS, utterances(), together=0.5)
    assert len({tuple(bits(head).values()) for head in hra.p.heads.values()}) == 3


def test_the_optimiser_has_the_decay_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, update = set(), AdamW.update

    def spied(self: AdamW, *given: object) -> None:
        seen.add(self.decay)
        update(self, *given)

    monkeypatch.setattr(AdamW, "update", spied)
    monkeypatch.setattr(f"{__name__}.CONFIGURATION", replace(CONFIGURATION, decay=0.25))
    adapted(tmp_path, SPEAKERS, utterances(), together=0.5)
    assert seen == {0.25}


def test_each_phase_has_a_schedule_of_its_own() -> None:
    config = TrainingConfig(peak=0.3, warmup=0.25, together=0.5, schedule="constant")
    rates = [config.learning_rate(step, 16) for step in range(16)]
    np.testing.assert_allclose(rates, [0.15, *[0.3] * 7, 0.05, *[0.1] * 7])
    alone = replace(config, together=0.0)
    np.testing.assert_allclose([alone.learning_rate(step, 8) for step in range(8)], rates[:8])


def test_the_moments_of_the_sums_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each head's first step of its own is that of a new optimiser: none had a moment when it came."""
    seen: list[int] = []

    def spy(step: str) -> None:
        taken = getattr(AdamW, step)

        def spied(self: AdamW, *given: object) -> object:
            seen.append(len(self.moments))
            return taken(self, *given)

        monkeypatch.setattr(AdamW, step, spied)

    spy("update")  # of steps together
    spy("clipped_update")
    adapted(tmp_path, SPEAKERS, utterances(), together=0.5)
    assert len(seen) == 6 and seen[0] == seen[3] == 0 and min(seen[1], seen[2], seen[4], seen[5]) > 0


def test_old_heads_and_absent_ones() -> None:
    one, two, three = np.ones(2), np.full(2, 3.0), np.full(2, 5.0)
    recogniser, adapter = Recogniser(frozen_backbone(), None, Alphabet("ab")), Adapter(new_hra(), "speaker", "")
    trainee = Adaptation(recogniser, adapter, new_tasks=("ann", "bob", "cec"))
    gradients = HRAParams(None, {"old": (one,), "ann": (two,), "bob": (three,)})
    heads = trainee.as_one(gradients).heads
    assert {name: head[0].tolist() for name, head in heads.items()} == {
        "old": [1, 1],
        "ann": [8, 8],
        "bob": [8, 8],
        "cec": [8, 8],
    }
    assert trainee.as_one(HRAParams(None, {"old": (one,)})).heads == {"old": (one,)}


def test_heads_like_another(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hra = HRA(8, 4)
    hra.add_task("ann")
    hra.p.heads["ann"].W[...] = 1
    hra.add_task("bob", like="ann")
    assert bits(hra.p.heads["bob"]) == bits(hra.p.heads["ann"])
    hra.p.heads["bob"].W[...] = 2
    assert hra.p.heads["ann"].W.max() == 1
    with pytest.raises(ValueError, match="unknown task 'eve'; known: ann, bob"):
        hra.add_task("zoe", like="eve")
    given = [
        "adapt",
        "--backbone",
        str(bench.backbone),
        "--manifest",
        str(bench.manifest),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*given, "--task-by", "speaker", "--like", "ann"]) == 2
    assert capsys.readouterr().err == "minihra: --like adds heads to an adapter: name it with --adapter\n"


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1, 2.0])
def test_speed_moves_a_tone(speed: float) -> None:
    t = np.arange(8000) / 8000
    samples = np.sin(2 * np.pi * 440 * t).astype(np.float32)
    faster = at_speed(samples, speed)
    assert faster.dtype == np.float32 and abs(len(faster) - 8000 / speed) <= 1
    spectrum = np.abs(np.fft.rfft(faster))
    assert abs(spectrum.argmax() * 8000 / len(faster) - 440 * speed) < 2
    assert speed != 1 or faster is samples


def test_impossible_speeds() -> None:
    with pytest.raises(ValueError, match=r"a speed must be between 0.5 and 2, got 3"):
        at_speed(np.zeros(9, np.float32), 3)
    for speeds in ((), (0.2,)):
        with pytest.raises(ValueError, match=r"speeds must be from 0.5 to 2"):
            TrainingConfig(speeds=speeds)


def test_every_recording_is_heard_at_every_speed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8000), 8000)
    rows = [Row(tmp_path / "a.wav", "ab", {"speaker": "ann"}, "line 1")]
    features = LogMel(8000, mels=CONFIG.mels)
    speeds = OPEN_ADAPTATION["speeds"]
    slow, usual, fast = load_utterances(rows, features, Alphabet("ab"), Faults(), task_by="speaker", speeds=speeds)
    assert len(slow.features) > len(usual.features) > len(fast.features)
    assert slow[1:] == usual[1:] == fast[1:] == ((1, 2), "ab", "ann", "line 1")
    (alone,) = load_utterances(rows, features, Alphabet("ab"), Faults(), task_by="speaker")
    assert alone.features.tobytes() == usual.features.tobytes()


def test_a_broken_run_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the heads are one is a function of the step alone."""
    whole, calls = adapted(tmp_path / "whole", SPEAKERS, utterances(), together=0.5), []

    def breaks(self: Adaptation, *given: object) -> object:
        calls.append(given)
        if len(calls) == 6:  # after the checkpoint of step 4
            raise RuntimeError
        return gradients(self, *given)

    gradients = Adaptation.gradients
    monkeypatch.setattr(Adaptation, "gradients", breaks)
    with pytest.raises(RuntimeError):
        adapted(tmp_path / "broken", SPEAKERS, utterances(), together=0.5)
    again = adapted(tmp_path / "broken", SPEAKERS, utterances(), together=0.5, resume=True)
    assert len(calls) == 6 + 2
    assert bits(whole.p) == bits(again.p)
