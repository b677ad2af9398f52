"""What `minihra adapt` and `minihra eval` make of an open model, by a golden folder that needs no other package."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from minihra import commands, training_commands
from minihra.cli import main
from minihra.recogniser import Recogniser
from minihra.train import ADAPTATION, OPEN_ADAPTATION, TrainingConfig
from minihra.trainees import Adaptation
from tests.tiny import bits
from tests.tones import Bench

FOLDER = Path(__file__).parent / "golden_open" / "wav2vec2_bert"
SPEAKERS = ("ann", "bob")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two recordings of a second of each of two speakers; their texts are of the model's vocabulary."""
    vocabulary = json.loads((FOLDER / "vocab.json").read_text())
    letters = [token for token in vocabulary if len(token) == 1 and token.isalpha()]
    rng, lines = np.random.default_rng(0), []
    for speaker in SPEAKERS:
        for n in range(2):
            path = tmp_path / f"{speaker}{n}.wav"
            soundfile.write(path, rng.uniform(-0.5, 0.5, 16000), 16000)
            lines.append({"audio_filepath": path.name, "text": "".join(letters[:3]), "speaker": speaker})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "manifest.jsonl"


def adapt(manifest: Path, out: Path, *more: str) -> list[str]:
    given = ["--backbone", str(FOLDER), "--manifest", str(manifest), "--task-by", "speaker", "--out", str(out)]
    return ["adapt", *given, "--state-size", "4", *more]


class Spy:
    """Stands in for `train`, and keeps what it is given."""

    def __call__(self, trainee: Adaptation, utterances: list, config: TrainingConfig, out: Path, **how: Any) -> dict:
        self.trainee, self.utterances, self.config = trainee, utterances, config
        return {"steps": 1, "seconds": 0.0, "infeasible": []}


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    monkeypatch.setattr(training_commands, "train", spy)
    return spy


def test_layers_are_computed_again_where_it_is_asked_for(
    manifest: Path, bench: Bench, tmp_path: Path, spy: Spy
) -> None:
    for more, recompute in (((), False), (("--recompute",), True)):
        assert main(adapt(manifest, tmp_path / "out", *more)) == 0
        assert spy.trainee.recompute is recompute


def test_an_open_model_has_a_recipe_of_its_own(
    manifest: Path, bench: Bench, tmp_path: Path, spy: Spy, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(adapt(manifest, tmp_path / "out", "--head", "ffn")) == 0
    assert "2 tasks trained on 4 recordings in" in capsys.readouterr().out
    assert spy.config == TrainingConfig(**OPEN_ADAPTATION)
    assert len(spy.utterances) == 4 * len(OPEN_ADAPTATION["speeds"]) == 12
    assert spy.trainee.new_tasks == SPEAKERS
    heads = spy.trainee.adapter.hra.p.heads
    assert bits(heads["ann"]) == bits(heads["bob"]), "heads that learn as one must begin as one"
    given = ["--backbone", str(bench.backbone), "--manifest", str(bench.manifest), "--out", str(tmp_path / "own")]
    assert main(["adapt", *given, "--task-by", "speaker", "--split", "train"]) == 0
    assert spy.config == TrainingConfig(**ADAPTATION)


def test_a_head_alone_learns_with_no_other(manifest: Path, tmp_path: Path, spy: Spy) -> None:
    assert main(adapt(manifest, tmp_path / "out", "--where", "speaker=ann")) == 0
    assert spy.trainee.new_tasks == ("ann",)
    assert spy.config == TrainingConfig(**{**OPEN_ADAPTATION, "together": 0.0})


def test_a_waveform_has_no_bands_to_mask(manifest: Path, tmp_path: Path, spy: Spy) -> None:
    given = adapt(manifest, tmp_path / "out")
    given[given.index(str(FOLDER))] = str(FOLDER.with_name("wav2vec2_conformer"))
    vocabulary = json.loads((FOLDER.with_name("wav2vec2_conformer") / "vocab.json").read_text())
    letter = next(token for token in vocabulary if len(token) == 1 and token.isalpha())
    lines = [json.loads(line) | {"text": letter} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(given) == 0
    assert spy.config == TrainingConfig(**{**OPEN_ADAPTATION, "augment": None})


def test_new_heads_like_an_old_one(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(adapt(manifest, tmp_path / "ann", "--where", "speaker=ann", "--steps", "3")) == 0
    spy = Spy()
    monkeypatch.setattr(training_commands, "train", spy)
    more = ["--adapter", str(tmp_path / "ann"), "--freeze-controller", "--where", "speaker=bob"]
    assert main(adapt(manifest, tmp_path / "bob", *more, "--like", "ann")) == 0
    heads = spy.trainee.adapter.hra.p.heads
    assert bits(heads["ann"]) == bits(heads["bob"]) and np.abs(heads["ann"].W).max() > 0
    assert main(adapt(manifest, tmp_path / "zero", *more)) == 0
    assert np.abs(spy.trainee.adapter.hra.p.heads["bob"].W).max() == 0
    capsys.readouterr()
    assert main(adapt(manifest, tmp_path / "no", *more, "--like", "zoe")) == 2
    assert capsys.readouterr().err == "minihra: unknown task 'zoe'; known: ann\n"


def test_a_run_goes_on_only_with_the_adapter_that_it_began_with(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(adapt(manifest, out, "--steps", "2")) == 0
    capsys.readouterr()
    for more, said in ((["--head", "ffn"], "head was linear, is ffn"), (["--controller", "rnn"], "controller_sha256")):
        assert main(adapt(manifest, out, "--steps", "2", "--resume", *more)) == 2
        error = capsys.readouterr().err
        assert "the run to resume had other settings" in error and said in error
    assert main(adapt(manifest, out, "--steps", "2", "--resume")) == 0


def test_the_file_of_an_adapter_names_its_backbone(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the config.json beside it, too."""
    assert main(adapt(manifest, tmp_path / "out", "--steps", "1")) == 0
    (step,) = (tmp_path / "out").glob("step-*")
    named = json.loads((step / "config.json").read_text())["backbone_sha256"]
    content = (step / "adapter.safetensors").read_bytes()
    assert named.encode() in content
    (step / "adapter.safetensors").write_bytes(content.replace(named.encode(), b"0" * 64))
    arguments = ["eval", "--backbone", str(FOLDER), "--adapter", str(step), "--manifest", str(manifest)]
    capsys.readouterr()
    assert main(arguments) == 2
    assert "for the backbone 000" in capsys.readouterr().err


def test_a_beam_is_passed_on(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def transcribe(recogniser: Recogniser, features: list, *given: Any, beam: int | None, graphs: None) -> list[str]:
        seen.append(beam)
        return [""] * len(features)

    monkeypatch.setattr(commands, "transcribe", transcribe)
    assert main(["eval", "--backbone", str(FOLDER), "--manifest", str(manifest), "--beam", "3"]) == 0
    assert main(["transcribe", "--backbone", str(FOLDER), "--beam", "5", str(manifest.parent / "ann0.wav")]) == 0
    assert main(["transcribe", "--backbone", str(FOLDER), str(manifest.parent / "ann0.wav")]) == 0
    assert seen == [3, 5, None]
