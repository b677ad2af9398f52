"""The other process, which compiles its part of a first step, and when it is started."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minihra import ahead, demo, training_commands
from minihra.cli import main
from minihra.model import forward
from minihra.ops import Switch, references, twins_in
from minihra.threads import set_threads, threads
from tests.tones import Bench, adapt, pretrain, write_corpus

if twins_in("compiled") is None:
    pytest.skip("Numba is not installed: nothing is compiled", allow_module_level=True)

AHEAD = {
    "adaptation": {"_gates", "_maps", "_log_softmax", "_backward", "_gates_backward", "_maps_back", "_attend_back"},
    "training": {"_log_softmax", "_kernel_gradient"},
}
FIRST = {"_front_end", "_attend", "_swish", "_gates", "_maps", "_log_softmax", "_backward"}
"""What the first process compiles, unless the other one does: `_backward` is that of the loss."""


@pytest.mark.parametrize("kind", AHEAD)
def test_it_keeps_its_part(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    process = ["-m", "minihra.ahead", kind]
    if kind == "training":  # without what comes behind it
        process = ["-c", "from minihra.ahead import tiny_step; tiny_step('training')"]
    subprocess.run([sys.executable, *process], check=True)
    kept = {path.name.partition(".")[2].partition("-")[0] for path in tmp_path.rglob("*.nbi")}
    assert kept >= AHEAD[kind] and not kept & (FIRST - AHEAD[kind])


@pytest.mark.parametrize("idle", [True, False], ids=["Linux", "others"])
def test_what_an_adaptation_needs_comes_behind_a_training(idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, and only from time that nobody else wants."""
    done: list[object] = []
    monkeypatch.setattr(ahead, "tiny_step", lambda kind, *, whole=False: done.append((kind, whole)))
    system = SimpleNamespace(nice=done.append)
    if idle:
        system = SimpleNamespace(SCHED_IDLE=5, sched_param=int, sched_setscheduler=lambda *given: done.append(given))
    monkeypatch.setattr(ahead, "os", system)
    ahead.main("adaptation")
    assert done == [("adaptation", False)]
    ahead.main("training")
    assert done[1:] == [("training", False), (0, 5, 0) if idle else 19, ("adaptation", True)]


@pytest.mark.parametrize("whole", [False, True])
def test_a_whole_step_has_the_twins_in_its_forward(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def spied(*given: Any) -> Any:
        seen.append(Switch.off > 0)
        return forward(*given)

    monkeypatch.setattr(ahead, "forward", spied)
    before = threads()
    try:
        ahead.tiny_step("adaptation", whole=whole)
    finally:
        set_threads(before)
    assert seen == [not whole]


def test_commands_that_train_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    for module in (training_commands, demo):
        monkeypatch.setattr(module, "compile_ahead", kinds.append)
    made = Bench(tmp_path, write_corpus(tmp_path), tmp_path / "backbone", tmp_path / "adapter")
    assert main(pretrain(made.manifest, made.backbone, "--steps", "1")) == 0
    assert main(adapt(made, made.adapter, "--steps", "1")) == 0
    monkeypatch.setattr(demo, "initial_conformer", lambda *_: sys.exit("so far"))
    with pytest.raises(SystemExit, match="so far"):
        main(["demo", "--out", str(tmp_path / "demo")])
    assert kinds == ["training", "adaptation", "training"]


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were started; there is room for machine code, and nothing in it."""
    commands: list[list[str]] = []
    monkeypatch.setattr(twins_in("compiled"), "CACHE", tmp_path)
    monkeypatch.setattr(ahead, "threads", lambda: 2)
    monkeypatch.setattr(ahead.subprocess, "Popen", lambda command, **_: commands.append(command) or SimpleNamespace())
    return commands


def test_it_is_started_where_nothing_is_kept(started: list, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    assert ahead.compile_ahead("training") is not None
    assert started == [[sys.executable, "-m", "minihra.ahead", "training"]]
    (tmp_path / "cpu" / "gru._gates-1.py311.nbi").touch()
    assert ahead.compile_ahead("training") is None and len(started) == 1


def test_it_is_not_started_in_vain(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder, with one thread, on the references, and without Numba."""
    with references():
        assert ahead.compile_ahead("adaptation") is None
    for place, name, value in (
        (twins_in("compiled"), "CACHE", None),
        (ahead, "threads", lambda: 1),
        (ahead, "twins_in", lambda _: None),
    ):
        with monkeypatch.context() as context:
            context.setattr(place, name, value)
            assert ahead.compile_ahead("adaptation") is None
    assert not started
