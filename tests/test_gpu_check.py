"""`make gpu-check`, on made-up stages: what it writes, when it fails; and its own stages as far as no GPU is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import QUICK, RIVAL, ROWS, TOOLS, Stage, bench_file, check, figures_of, main, stages_of
from benchmarks.spoken_digits import outside, parsed
from minihra.bench_rows import all_rows
from minihra.cli import parser
from minihra.device import gpu_problem
from tests.imports_of import ROOT


def python(name: str, code: str) -> Stage:
    return Stage(name, [sys.executable, "-c", code])


def stages(folder: Path, quick: bool = False) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages_of(folder, quick, folder / "FSDD", None)}


def test_results_are_written_after_each_stage(tmp_path: Path) -> None:
    seen = f"import json; print(len(json.load(open({str(tmp_path / 'gpu_check.json')!r}))['stages']), 'before')"
    rows = [
        {"row": "heads a", "ours": 0.001, "to dense": 1.1},
        {"row": "heads b", "ours": 0.002, "to dense": 1.5},
    ]
    bench = f"import json; json.dump({{'rows': {rows}}}, open({str(bench_file(tmp_path, 'heads'))!r}, 'w'))"
    bench_file(tmp_path, "ctc").write_text("left by an earlier run")
    chosen = [
        python("good", "print('a | b')"),
        python("counts", seen),
        python("bench heads", bench),
        Stage("absent", ["nothing"], "there is no such tool"),
        python("bad", "import sys; print(*range(40), sep='\\n'); sys.exit(9)"),
    ]
    told: list[str] = []
    assert check(chosen, tmp_path, told.append) == 1
    content = json.loads((tmp_path / "gpu_check.json").read_text())
    good, counts, timed, absent, bad = content["stages"]
    assert good["result"] == counts["result"] == timed["result"] == "passed" and good["exit"] == 0
    assert counts["last"] == ["1 before"]
    assert absent["result"] == "could not run" and absent["why"] == "there is no such tool" and "exit" not in absent
    assert bad["result"] == "failed" and bad["exit"] == 9 and bad["last"] == [str(n) for n in range(25, 40)]
    assert content["bench"] == {"heads": rows} and "processors" in content["machine"]
    page = (tmp_path / "gpu_check.md").read_text()
    assert f"| good | passed | {good['seconds']} | a / b |" in page
    assert "| absent | could not run |  | there is no such tool |" in page
    assert "| heads of mixed tasks, of one dense product | <= 1.25 | 1 of 2 rows | 1.50 (heads b) |" in page
    assert "| heads b | 2.00 |" in page and "not measured" in page
    assert not list(tmp_path.glob(".*")) and (tmp_path / "bad.log").read_text().startswith("0\n1\n")
    assert "absent: could not run, there is no such tool" in told


def test_exit_status(tmp_path: Path) -> None:
    good, absent = python("good", ""), Stage("absent", [], "it is not here")
    assert check([good, absent], tmp_path, lambda _: None) == 0
    assert check([absent], tmp_path, lambda _: None) == 1


def test_figures_that_are_required() -> None:
    bandwidth = [{"row": "x", "of copy": 0.8}, {"row": "y", "of copy": 0.7}]
    lines = figures_of({"bandwidth": bandwidth, "ctc": [{"row": "ctc", "ours": 1.0}]})
    assert [line[1] for line in lines] == ["<= 0.8", "<= 1.25", ">= 0.75", "<= 0.7"]
    assert [line[2] for line in lines] == ["not measured", "not measured", "1 of 2 rows", "not measured"]
    assert lines[2][3] == "0.70 (y)"


@pytest.mark.parametrize("words", [ROWS, QUICK], ids=["all", "quick"])
def test_every_stage_of_the_bench_has_rows(words: dict[str, list[str]]) -> None:
    for name, chosen in words.items():
        rows = [row for row in all_rows("cuda") if all(word in row.name for word in chosen)]
        assert rows, name
        assert words is ROWS or len(rows) <= 2, name


@pytest.mark.parametrize("quick", [False, True], ids=["all", "quick"])
def test_commands_can_be_parsed(quick: bool, tmp_path: Path) -> None:
    found = stages(tmp_path, quick)
    names = ["tests", *TOOLS, *(f"bench {name}" for name in ROWS), "digits cpu", "digits cuda"]
    assert list(found) == names
    for name in ROWS:
        _, *module, command = found[f"bench {name}"].command[:4]
        assert [*module, command] == ["-m", "minihra", "bench"]
        arguments = parser().parse_args(found[f"bench {name}"].command[3:])
        assert arguments.device == "cuda" and arguments.json == bench_file(tmp_path, name) and not arguments.tf32
        assert arguments.rival in (RIVAL, None) and (ROOT / RIVAL).is_file()
    for name, device in (("digits cpu", "cpu"), ("digits cuda", "cuda")):
        command = found[name].command
        assert (ROOT / command[1]).is_file()
        arguments = parsed(command[2:])
        assert arguments.device == device and arguments.folder == tmp_path / "FSDD"
    assert arguments.within == parsed(found["digits cpu"].command[2:]).json
    assert "digits cpu" not in {stage.name for stage in stages_of(tmp_path, quick, tmp_path, tmp_path / "cpu.json")}


def test_its_tests_are_there_and_say_why_they_are_skipped(tmp_path: Path) -> None:
    """Those that compute-sanitizer is given."""
    command = stages(tmp_path)["memcheck"].command
    assert command[:2] == ["env", "MINIHRA_NO_POOL=1"] and "--error-exitcode" in command
    tests = command[command.index(sys.executable) :]
    run = subprocess.run(tests, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout
    problem = gpu_problem()
    if problem is not None:
        assert f"needs a GPU: {problem}" in run.stdout and " skipped" in run.stdout
        assert all(stage.problem == problem for stage in stages(tmp_path).values())


def test_stages_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--stages", "tests", "cache"])
    assert "unknown stages: cache; known: tests, memcheck" in capsys.readouterr().err
    if gpu_problem() is not None:
        assert main(["--out", str(tmp_path / "new"), "--stages", "racecheck"]) == 1
        (result,) = json.loads((tmp_path / "new" / "gpu_check.json").read_text())["stages"]
        assert result["stage"] == "racecheck" and result["why"] == gpu_problem()


def test_own_heads_within_the_range_of_earlier_runs() -> None:
    def row(own: float, recordings: int = 50) -> dict:
        return {"known": "a, b", "recordings": recordings, "rates": {"own": own, "frozen": 9.0}}

    earlier = [row(0.1), row(0.2), row(0.15), row(0.0, 450)]
    assert outside([row(0.1), row(0.2), row(0.0, 450)], earlier) == []
    assert outside([row(0.25)], earlier) == ["a, b, 50 recordings: 0.250, earlier ones: between 0.100 and 0.200"]
    assert outside([row(0.25)], []) == ["a, b, 50 recordings: 0.250, earlier ones: none"]


def test_make_runs_it() -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    assert "gpu-check: .venv/.installed-$(GPU_EXTRAS)\n\t$(BIN)/python benchmarks/gpu_check.py $(CHECK)\n" in text
    run = subprocess.run(["make", "-n", "gpu-check"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "benchmarks/gpu_check.py" in run.stdout
