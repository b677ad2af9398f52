"""Mistakes of a user: one clear line each, and exit status 2."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from minihra.cli import main
from tests.tones import RATE, Bench, adapt, pretrain, record, write_corpus


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
    "truncated WAV": (
        row(audio_filepath="cut.wav"),
        "cut.wav: the recording is truncated, 999 bytes of it are missing",
    ),
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
    soundfile.write(folder / "cut.wav", good, RATE)
    (folder / "cut.wav").write_bytes((folder / "cut.wav").read_bytes()[:-999])
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
            assert "1 bad row skipped" in capsys.readouterr().err
    assert (tmp_path / "out").exists() == (mistake != "empty manifest")


def test_all_bad_rows_are_reported_together(broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = broken / "many.jsonl"
    manifest.write_text("\n".join(line for line, _ in MANIFESTS.values() if line.strip()), encoding="utf-8")
    config = ["--config", str(broken / "tiny.toml"), "--out", str(tmp_path / "out")]
    assert main(["pretrain", "--manifest", str(manifest), *config]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == "13 bad rows; --skip-bad goes on without them"
    assert len(printed) == 14
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
    "other version": (edit_json(format=9), "format version 9, but this minihra reads 2"),
    "not a backbone": (
        edit_json(kind="adapter"),
        "of kind 'backbone' is needed, this one is of 'adapter'",
    ),
    "damaged size": (edit_json(model={"labels": 5, "heads": 3, "width": 16}), "config.json: damaged ("),
    "missing tensor": (edit_tensors(lambda t: dict(list(t.items())[1:])), "1 tensors missing: p."),
    "extra tensor": (edit_tensors(lambda t: t | {"more": np.zeros(1)}), "1 tensors extra: more"),
    "other shape": (
        edit_tensors(lambda t: t | {"p.readout.linear.b": np.zeros(1)}),
        "shape or type: p.readout.linear.b",
    ),
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
        ("[model]\nwidth = 3\n", "[model]: width must be a multiple of heads = 4, got 3"),
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


def test_a_model_too_big_for_the_memory(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["eval", "--backbone", str(bench.backbone), "--manifest", str(bench.manifest)]
    monkeypatch.setattr("minihra.commands.load_backbone", lambda folder: np.zeros(2**55))  # beyond any address space
    assert main(command) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("minihra: memory ran out (Unable to allocate ") and printed.count("\n") == 1
    assert "`minihra inspect` tells what a model takes; shorter recordings, smaller batches" in printed


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


def test_files_and_folders_in_each_others_place(
    bench: Bench, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = ["--backbone", str(bench.backbone)]
    a_file = tmp_path / "file"
    a_file.touch()
    nowhere = tmp_path / "nowhere" / "file"
    for command, message in (
        (pretrain(bench.manifest, a_file), f"minihra: {a_file}: a file; --out names the folder of a run\n"),
        (
            ["eval", *backbone, "--manifest", str(bench.manifest), "--hypotheses", str(nowhere)],
            f"minihra: --hypotheses {nowhere}: there is no folder {nowhere.parent}\n",
        ),
        (
            ["transcribe", *backbone, str(tmp_path), str(broken / "nan.wav")],
            f"minihra: {tmp_path}: a folder, not a recording\n"
            f"{broken / 'nan.wav'}: the recording holds a NaN or an infinity\n",
        ),
    ):
        assert main(command) == 2
        assert capsys.readouterr().err == message
