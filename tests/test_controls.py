"""The controls beside an adaptation, and the demo that prints and draws them."""

import json
import sys
from pathlib import Path

import pytest

from minihra import demo, report
from minihra.blocks.config import ConformerConfig
from minihra.cli import main
from minihra.controls import CONDITIONS, Controls, as_table
from minihra.speech.error_rate import ErrorCount


def controls(own: int, shared: int) -> Controls:
    errors = {"frozen": 8, "own": own, "shared": shared, "other": 9}
    words = {c: {"ann": ErrorCount(errors[c], 10), "bob": ErrorCount(0, 10)} for c in CONDITIONS}
    return Controls(words, 1.0)


def test_mean_is_over_speakers() -> None:
    assert controls(2, 4).mean("frozen") == pytest.approx(0.4)


def test_table_says_when_own_heads_do_not_win() -> None:
    assert "do not beat" not in as_table(controls(2, 4))
    assert as_table(controls(4, 4)).endswith("Here the speakers' own heads do not beat one task for all of them.")
    assert as_table(controls(2, 4)).splitlines()[1].split() == ["ann", "0.800", "0.200", "0.400", "0.900"]


def test_demo_runs_the_whole_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In small: two words, three voices and a tiny backbone."""
    for name, value in (("WORDS", ("go", "stop")), ("SEEN_VOICES", 3), ("UNSEEN_VOICES", 2)):
        monkeypatch.setattr(demo, name, value)
    small = {"width": 16, "layers": 2, "heads": 2, "kernel": 3}
    monkeypatch.setattr(demo, "ConformerConfig", lambda labels: ConformerConfig(labels, **small))
    monkeypatch.setattr(demo, "ADAPTATION", {**demo.ADAPTATION, "epochs": 1, "least_steps": 3})
    assert main(["demo", "--out", str(tmp_path)]) == 0
    table = (tmp_path / "table.txt").read_text()
    assert table in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["unseen"].keys() == set(CONDITIONS)
    assert results["voices"].keys() == {"unseen-00", "unseen-01"}
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "there is a run already" in capsys.readouterr().err
    assert main(["demo", "--out", str(tmp_path), "--resume"]) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == results


def test_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'minihra[plot]'")
    report.draw_controls(controls(1, 2), tmp_path / "controls.png")
    assert (tmp_path / "controls.png").read_bytes().startswith(b"\x89PNG")


def test_no_matplotlib_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    report.draw_controls(controls(1, 2), tmp_path / "controls.png")
    assert "pip install 'minihra[plot]'" in capsys.readouterr().err
