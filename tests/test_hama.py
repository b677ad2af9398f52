"""hama, the one open recogniser that is installed like any package: its own engine's numbers, and the everyday job."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from minihra.cli import main
from minihra.evaluate import logits_of
from minihra.loaders.backbone import load_backbone
from minihra.recogniser import Recogniser
from minihra.speech.audio import read_audio

ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = ROOT.parent / "shared" / "data" / "speechocean762"
hama = pytest.importorskip("hama", reason="needs hama: pip install 'minihra[hama]'")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    if not RECORDINGS.is_dir():
        pytest.skip("needs the recordings of ../shared/data/speechocean762")
    lines = (RECORDINGS / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [row | {"audio_filepath": str(RECORDINGS / row["audio_filepath"])} for row in map(json.loads, lines)]


@pytest.fixture(scope="module")
def recogniser() -> Recogniser:
    return load_backbone("hama")


def test_twenty_recordings_give_what_the_engine_of_the_package_gives(rows: list[dict], recogniser: Recogniser) -> None:
    """The engine's session: its `transcribe` rescales the blank before it decodes."""
    engine = hama.ASRModel().session
    for row in rows[:: len(rows) // 20][:20]:
        samples = read_audio(row["audio_filepath"], 16000)
        feeds = {"waveform": samples[None], "waveform_lengths": np.array([len(samples)])}
        theirs, frames = engine.run(["log_probs", "out_lengths"], feeds)
        (ours,) = logits_of(recogniser, [recogniser.features(samples)])
        assert len(ours) == int(frames[0])
        assert (ours.argmax(-1) == theirs[0].argmax(-1)).all()
        assert np.abs(log_softmax(ours, axis=-1) - theirs[0]).max() < 0.01


def few(rows: list[dict], speakers: int, each: int) -> list[dict]:
    chosen: dict[str, list[dict]] = {}
    for row in rows:
        chosen.setdefault(row["speaker"], []).append(row)
    return [row for group in list(chosen.values())[:speakers] for row in group[:each]]


def test_two_speakers_adapt_by_the_commands(
    rows: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, shared, own = tmp_path / "manifest.jsonl", tmp_path / "shared", tmp_path / "own"
    manifest.write_text("".join(json.dumps(row | {"all": "all"}) + "\n" for row in few(rows, 2, 3)))
    given = ["--backbone", "hama", "--manifest", str(manifest)]
    assert main(["adapt", *given, "--task-by", "all", "--out", str(shared), "--steps", "4"]) == 0
    more = ["--adapter", str(shared), "--like", "all", "--task-by", "speaker", "--out", str(own), "--steps", "1"]
    assert main(["adapt", *given, *more]) == 0
    assert "3 tasks" not in capsys.readouterr().out
    assert main(["eval", *given, "--adapter", str(own), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"per", "utterances", "phonemes", "skipped", "tasks"} and len(found["tasks"]) == 2
    for options in ([], ["--beam", "4"]):
        speaker, audio = rows[0]["speaker"], rows[0]["audio_filepath"]
        task = ["--adapter", str(own), "--task", speaker]
        assert main(["transcribe", "--backbone", "hama", *task, *options, audio]) == 0
        assert "|" in capsys.readouterr().out


def test_example_adapts_to_ones_own_voice(rows: list[dict], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in few(rows, 1, 6):
        path = Path(row["audio_filepath"])
        shutil.copy(path, tmp_path)
        (tmp_path / path.with_suffix(".txt").name).write_text(row["text"])
    example = runpy.run_path(str(ROOT / "examples" / "adapt_hama_to_my_voice.py"))
    rates = example["main"]([str(tmp_path), "--out", str(tmp_path / "out"), "--steps", "2"])
    assert all(0 < rate < 1 for rate in rates)
    assert "phoneme error rate of 2 other recordings" in capsys.readouterr().out
    task = ["--adapter", str(tmp_path / "out"), "--task", "me"]
    assert main(["transcribe", "--backbone", "hama", *task, str(next(tmp_path.glob("*.flac")))]) == 0
