"""The commands, from recordings to error rates, and what they say when something is wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from minihra.cli import main
from minihra.recogniser import load_backbone, load_hra
from minihra.tree import leaves
from tests.tones import RATE, WORDS, record, write_corpus


class Bench(NamedTuple):
    folder: Path
    manifest: Path
    backbone: Path
    adapter: Path


def pretrain(manifest: Path, out: Path, *more: str) -> list[str]:
    config = str(manifest.parent / "tiny.toml")
    where = ["--split", "train", "--where", "speaker=ann"]
    return ["pretrain", "--manifest", str(manifest), *where, "--config", config, "--out", str(out), *more]


def adapt(bench: Bench, out: Path, *more: str) -> list[str]:
    rows = ["--manifest", str(bench.manifest), "--split", "train", "--where", "speaker!=ann"]
    return ["adapt", "--backbone", str(bench.backbone), *rows, "--out", str(out), "--task-by", "speaker", *more]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("corpus")
    made = Bench(folder, write_corpus(folder), folder / "backbone", folder / "adapter")
    assert main(pretrain(made.manifest, made.backbone, "--epochs", "60", "--valid", "split=test")) == 0
    assert main(adapt(made, made.adapter, "--steps", "150", "--state-size", "8")) == 0
    return made


def bits(folder: Path) -> dict[str, bytes]:
    """All files of a checkpoint."""
    (step,) = folder.glob("step-*")
    return {path.name: path.read_bytes() for path in step.iterdir()}


# The main job


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
    one, other = (dict(leaves(load_hra(folder, model).hra.p)) for folder in (bench.adapter, again))
    assert {name: leaf.tobytes() for name, leaf in one.items()} == {name: a.tobytes() for name, a in other.items()}


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
    before, after = load_hra(first, model).hra, load_hra(second, model).hra
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
    (tmp_path / "bob/two.txt").unlink()
    capsys.readouterr()
    assert main(["manifest", str(tmp_path)]) == 2
    assert "two.wav: no two.txt" in capsys.readouterr().err
    assert main(["manifest", str(tmp_path / "nowhere")]) == 2


# Interrupted runs

KILLED = """
import os, signal, sys
from minihra import checkpoint, cli, trainees
calls = 0
def count(function, at):
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), getattr(signal, sys.argv[3]))
        return function(*args, **kwargs)
    return counted
where, at = sys.argv[1], int(sys.argv[2])
if where == "step":
    trainees.Pretraining.gradients = count(trainees.Pretraining.gradients, at)
else:
    checkpoint.os.replace = count(checkpoint.os.replace, at)
sys.exit(cli.main(sys.argv[4:]))
"""


def killed(where: str, at: int, how: str, arguments: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", KILLED, where, str(at), how, *arguments]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)


@pytest.fixture(scope="module")
def whole_run(bench: Bench) -> dict[str, bytes]:
    """A run without a break, on one thread as those that are killed."""
    out = bench.folder / "whole"
    assert killed("step", 0, "SIGKILL", pretrain(bench.manifest, out, "--epochs", "4")).returncode == 0
    return bits(out)


@pytest.mark.parametrize(
    ("where", "at"), [("step", 1), ("step", 2), ("step", 4), ("step", 8), ("save", 1), ("save", 3)]
)
def test_a_killed_run_resumes_to_the_same_bits(
    where: str, at: int, bench: Bench, whole_run: dict[str, bytes], tmp_path: Path
) -> None:
    arguments = pretrain(bench.manifest, tmp_path / "run", "--epochs", "4")
    assert killed(where, at, "SIGKILL", arguments).returncode == -9
    assert killed("step", 0, "SIGKILL", [*arguments, "--resume"]).returncode == 0
    assert bits(tmp_path / "run") == whole_run
    assert not list((tmp_path / "run").glob(".step*"))
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))


def test_ctrl_c_saves_and_says_how_to_go_on(bench: Bench, whole_run: dict[str, bytes], tmp_path: Path) -> None:
    arguments = pretrain(bench.manifest, tmp_path / "run", "--epochs", "4")
    stopped = killed("step", 4, "SIGINT", arguments)
    assert stopped.returncode == 130
    assert stopped.stderr.endswith("minihra: interrupted after step 4 of 8; the same command with --resume goes on\n")
    assert killed("step", 0, "SIGKILL", [*arguments, "--resume"]).returncode == 0
    assert bits(tmp_path / "run") == whole_run


def test_a_run_is_not_overwritten(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    before = bits(bench.backbone)
    assert main(pretrain(bench.manifest, bench.backbone, "--epochs", "60")) == 2
    assert "there is a run already; --resume" in capsys.readouterr().err
    assert main(pretrain(bench.manifest, bench.backbone, "--epochs", "61", "--resume")) == 2
    assert "had other settings (epochs was 60, is 61)" in capsys.readouterr().err
    assert bits(bench.backbone) == before


def test_a_full_disk_leaves_the_last_checkpoint(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from minihra import trainees

    saved, good = [], trainees.save_backbone

    def full(recogniser: object, folder: Path) -> None:
        saved.append(folder)
        if len(saved) > 2:
            raise OSError(28, "No space left on device", str(folder / "model.safetensors"))
        good(recogniser, folder)

    monkeypatch.setattr(trainees, "save_backbone", full)
    assert main(pretrain(bench.manifest, tmp_path / "run", "--epochs", "4")) == 2
    assert "No space left on device" in capsys.readouterr().err
    (step,) = (path for path in (tmp_path / "run").iterdir() if path.is_dir())
    assert step.name == "step-00000004"
    load_backbone(tmp_path / "run")


# Mistakes: one clear line each, and exit status 2


def row(**fields: object) -> str:
    return json.dumps({"audio_filepath": "ann_ab_0.wav", "text": "ab", "speaker": "ann", "split": "train", **fields})


MANIFESTS: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "line 1: not JSON ("),
    "not an object": ("[1]", "line 1: not a JSON object"),
    "no text": ('{"audio_filepath": "ann_ab_0.wav"}', "line 1: no 'text', or it is not a text"),
    "no audio_filepath": ('{"text": "ab"}', "line 1: no 'audio_filepath', or it is not a text"),
    "empty manifest": ("\n\n", "the manifest is empty"),
    "missing file": (row(audio_filepath="nowhere.wav"), "nowhere.wav: no such file"),
    "empty file": (row(audio_filepath="empty.wav"), "empty.wav: not a recording"),
    "no samples": (row(audio_filepath="silent.wav"), "silent.wav: the recording is empty"),
    "truncated file": (row(audio_filepath="cut.flac"), "cut.flac: "),
    "no recording": (row(audio_filepath="tiny.toml"), "tiny.toml: not a recording"),
    "too short": (row(audio_filepath="short.wav"), "line 1: the recording has 100 samples"),
    "not a number": (row(audio_filepath="nan.wav"), "nan.wav: the recording holds a NaN or an infinity"),
    "infinity": (row(audio_filepath="inf.wav"), "inf.wav: the recording holds a NaN or an infinity"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of recordings that nobody can use."""
    folder = tmp_path_factory.mktemp("broken")
    write_corpus(folder, takes=1)
    good = record("ab", "ann", 0)
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "silent.wav", good[:0], RATE)
    soundfile.write(folder / "cut.flac", good, RATE)
    (folder / "cut.flac").write_bytes((folder / "cut.flac").read_bytes()[:60])
    soundfile.write(folder / "short.wav", good[:100], RATE)
    for name, value in (("nan", np.nan), ("inf", np.inf)):
        soundfile.write(folder / f"{name}.wav", np.where(np.arange(len(good)) == 7, value, good), RATE, subtype="FLOAT")
    return folder


@pytest.mark.parametrize("mistake", MANIFESTS)
def test_a_bad_manifest(
    mistake: str, broken: Path, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, message = MANIFESTS[mistake]
    manifest = broken / "bad.jsonl"
    manifest.write_text(f"{line}\n" if mistake == "empty manifest" else f"{line}\n{row()}\n", encoding="utf-8")
    config = ["--config", str(broken / "tiny.toml"), "--epochs", "1"]
    commands = (
        ["pretrain", "--manifest", str(manifest), "--out", str(tmp_path / "out"), *config],
        ["eval", "--manifest", str(manifest), "--backbone", str(bench.backbone)],
    )
    for command in commands:
        assert main(command) == 2
        printed = capsys.readouterr().err.splitlines()
        assert message in printed[0]
        assert len(printed) == (1 if mistake == "empty manifest" else 2)
        assert mistake == "empty manifest" or printed[1] == "1 bad row; --skip-bad goes on without them"
        if mistake != "empty manifest":
            assert main([*command, "--skip-bad"]) == 0
            assert "1 bad rows skipped" in capsys.readouterr().err
    assert (tmp_path / "out").exists() == (mistake != "empty manifest")


def test_all_bad_rows_are_reported_together(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = broken / "many.jsonl"
    manifest.write_text("\n".join(line for line, _ in MANIFESTS.values() if line.strip()), encoding="utf-8")
    config = ["--config", str(broken / "tiny.toml"), "--out", str(tmp_path / "out")]
    assert main(["pretrain", "--manifest", str(manifest), *config]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == "12 bad rows; --skip-bad goes on without them"
    assert len(printed) == 13
    assert not (tmp_path / "out").exists()


def spoiled(folder: Path, change: Callable[[Path], None], tmp_path: Path) -> Path:
    copy = tmp_path / "spoiled"
    shutil.copytree(folder, copy)
    change(next(copy.glob("step-*")))
    return copy


def edit_json(**changes: object) -> Callable[[Path], None]:
    def change(step: Path) -> None:
        content = json.loads((step / "config.json").read_text())
        (step / "config.json").write_text(json.dumps(content | changes))

    return change


def edit_tensors(change: Callable[[dict], dict]) -> Callable[[Path], None]:
    def edit(step: Path) -> None:
        from safetensors.numpy import load_file, save_file

        save_file(change(load_file(step / "model.safetensors")), step / "model.safetensors")

    return edit


def truncate(step: Path) -> None:
    data = (step / "model.safetensors").read_bytes()
    (step / "model.safetensors").write_bytes(data[:-10])


BACKBONES: dict[str, tuple[Callable[[Path], None], str]] = {
    "other version": (edit_json(format=9), "format version 9, but this minihra reads 1"),
    "not a backbone": (edit_json(kind="adapter"), "not the configuration of a backbone"),
    "damaged size": (edit_json(model={"labels": 5, "heads": 3, "width": 16}), "config.json: damaged ("),
    "missing tensor": (edit_tensors(lambda t: dict(list(t.items())[1:])), "1 tensors missing: p."),
    "extra tensor": (edit_tensors(lambda t: t | {"more": np.zeros(1)}), "1 tensors extra: more"),
    "other shape": (edit_tensors(lambda t: t | {"p.readout.b": np.zeros(1)}), "of another shape or type: p.readout.b"),
    "truncated": (truncate, "not a whole safetensors file"),
    "no file": (lambda step: (step / "model.safetensors").unlink(), "not a whole safetensors file"),
}


@pytest.mark.parametrize("mistake", BACKBONES)
def test_a_bad_backbone(mistake: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = BACKBONES[mistake]
    folder = spoiled(bench.backbone, change, tmp_path)
    assert main(["eval", "--backbone", str(folder), "--manifest", str(bench.manifest)]) == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_an_adapter_for_another_backbone(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    assert main(pretrain(bench.manifest, other, "--steps", "1")) == 0
    command = ["eval", "--backbone", str(other), "--adapter", str(bench.adapter), "--manifest", str(bench.manifest)]
    capsys.readouterr()
    assert main(command) == 2
    assert "this adapter is for the backbone" in capsys.readouterr().err


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing left": (["--where", "speaker=zoe"], "--where speaker=zoe: no row is left"),
    "no such key": (["--where", "age=3"], "--where age=3: no row has the key 'age'; keys: audio_filepath, "),
    "no condition": (["--where", "speaker"], "a condition has the form KEY=V1,V2 or KEY!=V, got 'speaker'"),
    "no such cell": (["--controller", "lstm"], "unknown cell 'lstm'; known: gru, indrnn, rnn, li_gru, none"),
    "no such head": (["--head", "cubic"], "unknown head 'cubic'; known: linear, ffn"),
    "no such size": (["--state-size", "0"], "state_size must be at least 1, got 0"),
    "no such task key": (["--task-by", "age"], "line 13: no 'age', which names the task; keys: "),
    "no epochs": (["--epochs", "0"], "epochs must be at least 1, got 0"),
    "no limit": (["--limit-per-task", "0"], "--limit-per-task must be at least 1, got 0"),
    "a controller to freeze": (["--freeze-controller"], "name it with --adapter"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_adapt(mistake: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more, message = MISTAKES[mistake]
    assert main(adapt(bench, tmp_path / "out", *more)) == 2
    assert message in capsys.readouterr().err.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_a_character_outside_the_alphabet(
    bench: Bench, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = broken / "character.jsonl"
    manifest.write_text(f"{row()}\n{row(text='abx')}\n", encoding="utf-8")
    rows = ["--manifest", str(manifest), "--task-by", "speaker", "--out", str(tmp_path / "out")]
    assert main(["adapt", "--backbone", str(bench.backbone), *rows]) == 2
    assert "line 2: character 3 of 'abx', 'x', is not in 'abc'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[model", "cannot be read ("),
        ("[modell]\n", "unknown section 'modell'; known: model, features, training, augment"),
        ("[model]\nwidht = 3\n", "unknown setting 'widht' in [model]; known: width, layers"),
        ("[model]\nwidth = 3\n", "[model]: width must be even"),
        ("[training]\npeak = -1\n", "[training]: peak must be positive"),
        ("[training]\nschedule = 'linear'\n", "unknown schedule 'linear'; known: cosine, constant"),
        ("[augment]\ntime_share = 2\n", "[augment]: time_share must be at most 1"),
    ],
)
def test_a_bad_configuration(
    content: str, message: str, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(content, encoding="utf-8")
    rows = ["--manifest", str(bench.manifest), "--config", str(config), "--out", str(tmp_path / "out")]
    assert main(["pretrain", *rows]) == 2
    assert message in capsys.readouterr().err


def test_no_folder_of_that_name(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--backbone", str(tmp_path), "--manifest", str(bench.manifest)]) == 2
    assert "no backbone in this folder" in capsys.readouterr().err
    assert main(["eval", "--backbone", str(bench.backbone), "--manifest", str(tmp_path / "m.jsonl")]) == 2
    assert "the manifest cannot be read (No such file or directory)" in capsys.readouterr().err
    assert main(["pretrain", "--manifest", str(bench.manifest), "--size", "huge", "--out", str(tmp_path / "x")]) == 2
    assert "unknown size 'huge'; known: tiny, small" in capsys.readouterr().err


def test_a_task_without_a_head(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "--backbone", str(bench.backbone), "--adapter", str(bench.adapter)]
    command += ["--manifest", str(bench.manifest)]
    assert main(command) == 2
    assert "the adapter has no head for ann; known: bob, eve; --unknown base" in capsys.readouterr().err
    assert main([*command, "--unknown", "base"]) == 0
