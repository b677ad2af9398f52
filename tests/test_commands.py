"""The commands, from recordings to error rates."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from minihra import training_commands
from minihra.cli import main
from minihra.loaders.backbone import load_backbone
from minihra.recogniser import backbone_hash, load_hra
from minihra.tree import leaves
from tests.tones import RATE, WORDS, Bench, adapt, bits, pretrain, record


def test_the_backbone_learns_and_the_adapter_adapts(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    def wer(*more: str) -> dict:
        capsys.readouterr()
        command = ["eval", "--backbone", str(bench.backbone), "--manifest", str(bench.manifest), "--json", *more]
        assert main(command) == 0
        return json.loads(capsys.readouterr().out)

    assert wer("--where", "speaker=ann")["wer"] < 0.1
    frozen = wer("--where", "speaker!=ann", "--split", "train")
    adapted = wer("--where", "speaker!=ann", "--split", "train", "--adapter", str(bench.adapter))
    assert adapted["wer"] < frozen["wer"] / 2
    assert frozen["tasks"] == {}
    assert adapted["tasks"].keys() == {"bob", "eve"}
    assert adapted["utterances"] == adapted["words"] == 16
    assert adapted["tasks"]["bob"].keys() == {"wer", "cer", "utterances", "words", "skipped"}
    errors = sum(part["wer"] * part["words"] for part in adapted["tasks"].values())
    assert errors == pytest.approx(adapted["wer"] * adapted["words"])


def test_the_log_has_every_step_and_evaluation(bench: Bench) -> None:
    lines = [json.loads(line) for line in (bench.backbone / "log.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 121))  # 8 recordings in batches of 5 are 2 steps an epoch
    assert [line["step"] for line in lines if "valid_wer" in line] == list(range(2, 121, 2))
    assert lines[-3]["loss"] < lines[0]["loss"] / 3


def test_one_seed_gives_the_same_bits(bench: Bench, tmp_path: Path) -> None:
    for seed, same in (("1", True), ("2", False)):
        out = tmp_path / seed
        assert main(pretrain(bench.manifest, out, "--epochs", "60", "--seed", seed)) == 0
        assert (bits(out)["model.safetensors"] == bits(bench.backbone)["model.safetensors"]) == same
    again = tmp_path / "adapter"
    assert main(adapt(bench, again, "--steps", "150", "--state-size", "8")) == 0
    model = load_backbone(bench.backbone).model
    one, other = (dict(leaves(load_hra(folder, backbone_hash(model)).hra.p)) for folder in (bench.adapter, again))
    assert {name: leaf.tobytes() for name, leaf in one.items()} == {name: a.tobytes() for name, a in other.items()}


def test_utterances_that_are_too_short_are_counted_and_named(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"audio_filepath": str(bench.folder / "ann_ab_0.wav"), "speaker": "ann"}
    rows = [json.dumps({**row, "text": text}) for text in ("ab", "ab" * 50, "ba")]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    arguments = ["--manifest", str(tmp_path / "m.jsonl"), "--task-by", "speaker", "--out", str(tmp_path / "out")]
    assert main(["adapt", "--backbone", str(bench.backbone), *arguments, "--steps", "2"]) == 0
    said = "1 of 3 recordings are too short for their texts, and were left out of the loss: "
    assert said in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["infeasible"] for line in lines] == [1, 1]


def test_an_adapter_overfits_four_utterances_of_two_tasks(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = []
    monkeypatch.setattr(
        training_commands, "load_backbone", lambda folder: used.append(load_backbone(folder)) or used[-1]
    )
    assert main(adapt(bench, tmp_path / "out", "--limit-per-task", "2", "--steps", "200")) == 0
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.05 < 1 < losses[0]
    (trained_on,) = used
    assert backbone_hash(trained_on.model) == backbone_hash(load_backbone(bench.backbone).model)


def test_a_table_for_people(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--manifest", str(bench.manifest), "--where", "speaker!=ann"]
    assert main(["eval", "--backbone", str(bench.backbone), "--adapter", str(bench.adapter), *where]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["task", "utterances", "words", "WER", "CER"]
    assert [line.split()[0] for line in printed[1:]] == ["bob", "eve", "all"]


def test_hypotheses_are_written(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "hypotheses.jsonl"
    where = ["--manifest", str(bench.manifest), "--where", "speaker=ann", "--hypotheses", str(out)]
    assert main(["eval", "--backbone", str(bench.backbone), *where]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0]["text"] == "ab" and "hypothesis" in lines[0] and lines[0]["place"].endswith("line 1")


def test_transcribe(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    audio = [str(bench.folder / f"ann_{word}_0.wav") for word in WORDS]
    assert main(["transcribe", "--backbone", str(bench.backbone), *audio]) == 0
    assert capsys.readouterr().out == "".join(f"{path}\t{word}\n" for path, word in zip(audio, WORDS, strict=True))
    adapter = ["--adapter", str(bench.adapter), "--task"]
    bob = str(bench.folder / "bob_ca_0.wav")
    assert main(["transcribe", "--backbone", str(bench.backbone), *adapter, "bob", bob]) == 0
    assert capsys.readouterr().out == "ca\n"
    assert main(["transcribe", "--backbone", str(bench.backbone), *adapter, "zoe", bob]) == 2
    assert capsys.readouterr().err == "minihra: row 0: unknown task 'zoe'; known: base, bob, eve\n"


def test_new_speakers_join_and_the_old_heads_stay(bench: Bench, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = ["adapt", "--backbone", str(bench.backbone), "--manifest", str(bench.manifest), "--epochs", "3"]
    assert main([*common, "--where", "speaker=bob", "--task-by", "speaker", "--out", str(first)]) == 0
    join = ["--adapter", str(first), "--freeze-controller", "--out", str(second)]
    assert main([*common, "--where", "speaker=eve", *join]) == 0
    model = load_backbone(bench.backbone).model
    before, after = (load_hra(folder, backbone_hash(model)).hra for folder in (first, second))
    assert after.task_names == ("bob", "eve")
    old, new = dict(leaves(before.p)), dict(leaves(after.p))
    assert {name for name, leaf in new.items() if leaf.tobytes() == (old[name].tobytes() if name in old else None)} == {
        name for name in new if "eve" not in name
    }


def test_freezing_the_controller_leaves_no_head_to_move(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    join = ["--adapter", str(bench.adapter), "--freeze-controller"]
    assert main(adapt(bench, tmp_path / "out", *join)) == 2
    assert "heads for bob, eve already" in capsys.readouterr().err


def test_rates_are_mixed_and_resampled(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recording at another rate, in stereo, is understood as the original is."""
    from scipy.signal import resample_poly

    mono = resample_poly(record("ba", "ann", 0), 2, 1)
    soundfile.write(tmp_path / "ba.flac", np.stack([mono, mono], axis=1), 2 * RATE)
    assert main(["transcribe", "--backbone", str(bench.backbone), str(tmp_path / "ba.flac")]) == 0
    assert capsys.readouterr().out == "ba\n"


def test_limit_per_task_is_seeded_and_even(bench: Bench, tmp_path: Path) -> None:
    sizes = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / name
        assert main(adapt(bench, out, "--limit-per-task", "3", "--steps", "2", "--seed", seed)) == 0
        sizes.append(json.loads(bits(out)["state.json"])["settings"]["utterances"])
    assert sizes[0] == sizes[1] != sizes[2]


def test_params_and_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["params", "--controller", "indrnn", "--state-size", "256", "--tasks", "1"]) == 0
    printed = capsys.readouterr().out
    assert "788,480" in printed and "6,440,960" in printed and "2,000,000,000\n" in printed


def test_manifest_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("ann/one", "bob/two"):
        path = tmp_path / name
        path.parent.mkdir()
        soundfile.write(path.with_suffix(".wav"), record("ab", "ann", 0), RATE)
        path.with_suffix(".txt").write_text("a\n b\n")
    assert main(["manifest", str(tmp_path)]) == 0
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert lines == [
        {"audio_filepath": "ann/one.wav", "text": "a b", "speaker": "ann"},
        {"audio_filepath": "bob/two.wav", "text": "a b", "speaker": "bob"},
    ]
    (tmp_path / "bob/two.txt").write_text("a b", encoding="utf-8-sig")
    assert main(["manifest", str(tmp_path)]) == 0
    assert [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()] == lines
    (tmp_path / "bob/two.txt").unlink()
    capsys.readouterr()
    assert main(["manifest", str(tmp_path)]) == 2
    assert "two.wav: no two.txt" in capsys.readouterr().err
    assert main(["manifest", str(tmp_path / "nowhere")]) == 2


def test_a_manifest_may_begin_with_a_byte_order_mark(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    marked = bench.folder / "marked.jsonl"
    marked.write_text(bench.manifest.read_text(encoding="utf-8"), encoding="utf-8-sig")
    printed = []
    for manifest in (bench.manifest, marked):
        command = ["eval", "--backbone", str(bench.backbone), "--manifest", str(manifest), "--json"]
        assert main(command) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_output_is_utf_8_whatever_the_encoding_of_the_pipe(bench: Bench, tmp_path: Path) -> None:
    """As on Windows, where that of a pipe is cp1252, which has neither phonemes nor most names of files."""
    recording = tmp_path / "ʃəʊ.wav"
    soundfile.write(recording, record("ab", "ann", 0), RATE)
    command = [sys.executable, "-m", "minihra", "transcribe", "--backbone", str(bench.backbone), str(recording)]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([*command, str(recording)], capture_output=True, timeout=60, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode("utf-8").count("ʃəʊ.wav") == 2
    recording.unlink()
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment)
    assert done.returncode == 2 and "ʃəʊ.wav: no such file" in done.stderr.decode("utf-8")


def test_a_reader_that_has_read_enough_is_no_mistake() -> None:
    """As of `minihra params | head -1`; here the reader is gone before the first line."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "minihra", "params"]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=buffered
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")
