"""Runs that are killed, interrupted or out of disk space lose nothing, and go on to the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minihra.cli import main
from minihra.loaders.backbone import load_backbone
from tests.tones import Bench, bits, pretrain

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
