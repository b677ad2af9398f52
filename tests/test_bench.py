"""`minihra bench`: the rows, the turns, the rival, and what it refuses."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minihra import bench
from minihra.bench import check_twins, measure, number
from minihra.bench_floor import floor_of, rehearsed
from minihra.bench_rows import PATTERNS, Row, all_rows, inputs_of, runs_of, tasks_by
from minihra.cli import main
from minihra.ops import TWINS, UNPAIRED

TINY = Row("adaptation", width=8, layers=2, batch=3, frames=64, tasks=2)
KINDS = ("adaptation", "inference", "training", "heads forward", "heads backward", "ctc", "log-mel")
RIVAL = """
import atexit, json, os
from pathlib import Path

def runs_of(row, inputs):
    Path({log!r}).write_text(json.dumps([row.name, sorted(inputs), os.environ["OMP_NUM_THREADS"]]))
    calls = []
    atexit.register(lambda: Path({log!r} + ".calls").write_text(json.dumps(calls)))
    return {{
        "fast": lambda: calls.append("fast") or {first},
        "slow": lambda: calls.append("slow") or sum(range(10**6)) and {first},
    }}
"""


def rival(folder: Path, first: float) -> str:
    file = folder / "rival.py"
    file.write_text(RIVAL.format(log=str(folder / "log.json"), first=first))
    return str(file)


def test_every_kind_of_row_is_there_and_names_differ() -> None:
    rows = list(all_rows())
    assert {row.kind for row in rows} == set(KINDS)
    assert len({row.name for row in rows}) == len(rows)
    heads = [row for row in rows if row.kind == "heads forward" and row.head == "linear"]
    assert Counter(row.pattern for row in heads) == dict.fromkeys(PATTERNS, len(heads) // 5)
    assert all(row.batch == max(16, row.tasks) for row in heads)


def test_patterns() -> None:
    rng = np.random.default_rng(0)
    counts = {pattern: Counter(tasks_by(pattern, 64, 640, rng)) for pattern in PATTERNS}
    assert counts["identical"] == {"task0": 640}
    assert set(counts["distinct"].values()) == {10} and len(counts["distinct"]) == 64
    assert 280 < counts["skewed"]["task0"] < 370
    assert counts["zipf"]["task0"] > 3 * counts["zipf"]["task2"] > 0
    assert max(counts["uniform"].values()) < 25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn")])
def test_each_side_gives_one_number(kind: str, cell: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and that of PyTorch, which is built from the same arrays, eagerly and in both of its ways."""
    torch_twin = pytest.importorskip(
        "tests.torch_twin", reason="the rival needs PyTorch: pip install 'minihra[parity]'"
    )
    row = Row(kind, 8, 2, 3, 64, cell, head, 2)
    inputs = inputs_of(row)
    ours = number(runs_of(row, inputs)["ours"]())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    theirs = {name: run for name, run in torch_twin.runs_of(row, inputs).items() if name.endswith("eager")}
    assert np.isfinite(ours)
    assert len(theirs) == {"training": 1, "ctc": 1, "log-mel": 0}.get(kind, 2)
    for name, run in theirs.items():
        assert number(run()) == pytest.approx(ours, rel=1e-4, abs=1e-3 if kind.startswith("heads") else 1e-5), name


def test_absent_tasks_have_heads_and_no_rows() -> None:
    row = replace(TINY, absent=3)
    inputs = inputs_of(row)
    assert row.name.endswith("2 of 5 tasks")
    assert {name.split(".")[2] for name in inputs if name.startswith("adapter.heads.")} == {
        f"task{n}" for n in range(5)
    }
    assert set(inputs["tasks"]) <= {"task0", "task1"}
    assert runs_of(row, inputs)["ours"]() > 0


def test_two_sides_take_turns(tmp_path: Path) -> None:
    value = runs_of(TINY, inputs_of(TINY))["ours"]()
    result = measure(TINY, rival(tmp_path, value), turns=3)
    assert result["row"] == TINY.name
    assert result["variant"] == "fast"
    assert result["rival"] == result["variants"]["fast"] < result["variants"]["slow"]
    assert result["ratio"] == result["ours"] / result["rival"] > 1
    assert result["gflops"] > 0 and result["products"] > 0 and result["first"] > result["ours"] / 2
    name, inputs, threads = json.loads((tmp_path / "log.json").read_text())
    assert name == TINY.name
    assert {"features", "tasks", "adapter.controller.W", "backbone.readout.linear.W"} <= set(inputs)
    assert int(threads) >= 1
    calls = json.loads((tmp_path / "log.json.calls").read_text())
    assert calls[:3] == ["fast", "slow", "fast"]  # once, in the first turn
    assert calls.count("fast") > 100  # what is short is repeated in the others


def test_a_rival_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ours gives .*, fast of .*rival\.py 1e\+06"):
        measure(TINY, rival(tmp_path, 1e6), turns=1)


def test_products_are_those_of_the_model() -> None:
    """Of one layer's feed-forward modules, forward and backward, and of the controller."""
    row = Row("adaptation", width=12, layers=2, batch=3, frames=64, tasks=2)
    products, N = rehearsed(row).products, 3 * 16  # frames behind the front end
    assert products[1, N, 12, 48] == 2 * 2 + 2  # up in two layers; down turned, in the one layer that has a backward
    assert products[1, N, 12, 3 * 64] == 2  # the GRU's gates
    floor = floor_of(row)
    assert floor.operations == sum(2 * n * int(np.prod(shape)) for shape, n in products.items())
    assert floor.seconds > 0
    assert floor_of(Row("ctc")) is None


def test_twins_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the twins for the CPU need numba")
    errors = check_twins()
    assert {name.partition(",")[0] for name in errors} == TWINS.keys() | UNPAIRED.keys()
    assert max(errors.values()) < 1e-5
    file = bench.twins_in("activations")
    right = file.swish_forward
    monkeypatch.setattr(file, "swish_forward", lambda x: (right(x)[0] * np.float32(1.001), right(x)[1]))
    with pytest.raises(ValueError, match=r"swish: the twin is off by 1\.8e-03"):
        check_twins()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--rows", "heads", "ffn"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed and all("heads" in line and "ffn" in line for line in listed)
    out = tmp_path / "bench.json"
    assert main(["bench", "--rows", "ctc", "--turns", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| ctc, 32 x 200 |" in printed
    content = json.loads(out.read_text())
    assert content["turns"] == 1 and [row["row"] for row in content["rows"]] == ["ctc, 32 x 200"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "nonsense"], "no row has 'nonsense' in its name"),
        (["--turns", "0"], "--turns must be at least 1"),
        (["--rows", "ctc", "--rival", "absent.py"], "absent.py: no file of Python"),
        (["--rows", "ctc", "--rival", "tests/tiny.py"], "a rival has a function runs_of"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
