"""All that must be seen on a machine with a GPU, in one command: `make gpu-check`.

    python benchmarks/gpu_check.py [--out gpu_check] [--quick] [--digits FSDD_FOLDER] [--stages tests memcheck ...]

Each stage is a process of its own, with a log in the folder; what cannot run says why. After each stage the folder has
one `gpu_check.json` with all results and one `gpu_check.md` with them as tables. The exit status is 1 if a stage failed
or none could run. With `--quick` a few rows of the bench stand for all. `--digits` trains on spoken digits: on the GPU
once, and with three seeds on the CPU, whose results `--cpu-digits` can take from an earlier run.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from minihra.bench import COLUMNS, NOT_ON
from minihra.device import gpu_problem

ROOT = Path(__file__).parents[1]
LAST = 15  # lines of a stage's output that are kept with its result
TOOLS = ("memcheck", "racecheck", "initcheck")
RIVAL = "tests/torch_twin.py"

ROWS = {"step": ["adaptation"], "heads": ["heads", "linear"], "bandwidth": ["bandwidth"], "ctc": ["ctc"]}
QUICK = {
    "step": ["adaptation, C=96", "gru, linear, 8 tasks"],
    "heads": ["heads", "linear", "zipf, 64 tasks", "x 100"],
    "bandwidth": ["bandwidth", "layer_norm"],
    "ctc": ["ctc"],
}
"""The words of `minihra bench --rows` by stage."""


class Required(NamedTuple):
    """A figure that rows of the bench must reach."""

    title: str
    stage: str
    key: str  # of a row of the bench's JSON
    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.limit if self.at_least else value <= self.limit


REQUIRED = (
    Required("a whole step of adaptation, of PyTorch's best", "step", "ratio", 0.8),
    Required("heads of mixed tasks, of one dense product", "heads", "to dense", 1.25),
    Required("LayerNorm, GLU, convolution, softmax, cells: of a copy's speed", "bandwidth", "of copy", 0.75, True),
    Required("CTC with its gradient, of PyTorch's best", "ctc", "ratio", 0.7),
)


class Stage(NamedTuple):
    """A command, or why it cannot run."""

    name: str
    command: list[str]
    problem: str | None = None


def stages_of(out: Path, quick: bool, digits: Path | None, cpu_digits: Path | None) -> list[Stage]:
    """Return all stages, in their order."""
    no_gpu, python = gpu_problem(), sys.executable
    tests = [python, "-m", "pytest", "-rs", "tests/test_gpu.py"]
    stages = [Stage("tests", tests, no_gpu)]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    problem = no_gpu or (None if sanitizer else "compute-sanitizer, of the CUDA toolkit, is not in PATH")
    for tool in TOOLS:
        sanitized = [sanitizer or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        chosen = ["-x", "-k", "twin_equals and float32"]
        stages.append(Stage(tool, ["env", "MINIHRA_NO_POOL=1", *sanitized, *tests, *chosen], problem))
    torch = find_spec("torch") is not None
    for name, words in (QUICK if quick else ROWS).items():
        command = [python, "-m", "minihra", "bench", "--device", "cuda", "--json", str(bench_file(out, name))]
        more = [*(["--rival", RIVAL] if torch else []), *(["--turns", "3"] if quick else []), "--rows", *words]
        needs_rival = any(required.stage == name and required.key == "ratio" for required in REQUIRED)
        problem = no_gpu or ("PyTorch is not installed" if needs_rival and not torch else None)
        stages.append(Stage(f"bench {name}", command + more, problem))
    script, given = [python, "benchmarks/spoken_digits.py", str(digits or "FSDD")], cpu_digits or out / "cpu.json"
    problem = no_gpu or (None if digits else "no recordings: give --digits FSDD_FOLDER")
    if cpu_digits is None:
        on_cpu = [*script, str(out / "digits-cpu"), "--json", str(given)]
        stages.append(Stage("digits cpu", on_cpu, problem))
    on_gpu = [*script, str(out / "digits-cuda"), "--seeds", "1", "--device", "cuda"]
    on_gpu += ["--json", str(out / "cuda.json"), "--within", str(given)]
    stages.append(Stage("digits cuda", on_gpu, problem))
    return stages


def bench_file(out: Path, name: str) -> Path:
    """Return where a stage of the bench writes its rows."""
    return out / f"bench_{name}.json"


def run_stage(stage: Stage, out: Path) -> dict[str, Any]:
    """Run a stage, with all that it prints in a file, and return its result."""
    result: dict[str, Any] = {"stage": stage.name, "command": " ".join(stage.command)}
    if stage.problem is not None:
        return result | {"result": "could not run", "why": stage.problem}
    log, start = out / f"{stage.name.replace(' ', '_')}.log", time.perf_counter()
    with log.open("wb") as file:
        how: dict[str, Any] = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        code = subprocess.run(stage.command, check=False, **how).returncode
    lines = log.read_text("utf-8", "replace").replace("\r", "\n").strip().splitlines()
    seconds = round(time.perf_counter() - start, 1)
    return result | {"result": "failed" if code else "passed", "exit": code, "seconds": seconds, "last": lines[-LAST:]}


def machine() -> dict[str, Any]:
    """Return what the results depend on."""
    found: dict[str, Any] = {"python": platform.python_version(), "processors": os.cpu_count(), "gpu": None}
    if gpu_problem() is None:
        cupy = import_module("cupy")
        runtime = cupy.cuda.runtime
        found |= {"gpu": runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()}
        found |= {"cupy": cupy.__version__, "driver": runtime.driverGetVersion(), "cuda": runtime.runtimeGetVersion()}
    return found


def bench_rows(out: Path, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that stages of the bench have written, by stage."""
    files = {name: bench_file(out, name) for name in names}
    return {name: json.loads(file.read_text("utf-8"))["rows"] for name, file in files.items() if file.exists()}


def table(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [titles, ["---"] * len(titles), *lines]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)


def figures_of(rows: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return, for each figure that is required, how many rows reach it, and the worst of them."""
    lines = []
    for required in REQUIRED:
        values = {row["row"]: row[required.key] for row in rows.get(required.stage, ()) if required.key in row}
        limit = f"{'>=' if required.at_least else '<='} {required.limit}"
        if not values:
            lines.append([required.title, limit, "not measured", ""])
            continue
        worst = (min if required.at_least else max)(values, key=values.get)
        met = sum(map(required.met, values.values()))
        lines.append([required.title, limit, f"{met} of {len(values)} rows", f"{values[worst]:.2f} ({worst})"])
    return lines


def page_of(content: dict[str, Any]) -> str:
    """Return the results as a page in Markdown."""
    about = ", ".join(f"{name} {value}" for name, value in content["machine"].items())
    stages = [
        [r["stage"], r["result"], str(r.get("seconds", "")), r.get("why") or (r["last"][-1] if r["last"] else "")]
        for r in content["stages"]
    ]
    columns = [column for column in COLUMNS if column[0] not in NOT_ON["cuda"]]
    rows = [
        [row["row"], *(form(row[key]) if key in row else "" for key, _, form in columns)]
        for of_stage in content["bench"].values()
        for row in of_stage
    ]
    parts = [
        f"# The check of the GPU\n\n{about}",
        table(["stage", "result", "seconds", "last line, or why it did not run"], stages),
        table(["figure", "required", "reached by", "the worst row"], figures_of(content["bench"])),
        table(["row", *(title for _, title, _ in columns)], rows) if rows else "No row was timed.",
    ]
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str) -> None:
    """Write a file under another name, and then give it its own."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def check(stages: Sequence[Stage], out: Path, tell: Callable[[str], None] = print) -> int:
    """Run stages, write the results after each, and return the exit status."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ROWS:
        bench_file(out, name).unlink(missing_ok=True)
    content: dict[str, Any] = {"machine": machine(), "stages": [], "bench": {}}
    for stage in stages:
        tell(f"{stage.name} ...")
        result = run_stage(stage, out)
        content["stages"].append(result)
        content["bench"] = bench_rows(out, list(ROWS))
        write(out / "gpu_check.json", json.dumps(content, indent=1) + "\n")
        write(out / "gpu_check.md", page_of(content))
        tell(f"{stage.name}: {result['result']}{', ' + result['why'] if 'why' in result else ''}")
    tell(f"results: {out / 'gpu_check.md'}")
    results = {result["result"] for result in content["stages"]}
    return int("failed" in results or "passed" not in results)


def main(argv: Sequence[str] | None = None) -> int:
    """Choose the stages and run them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="a few rows of the bench")
    parser.add_argument("--digits", type=Path, metavar="FSDD_FOLDER", help="with manifest.jsonl in it")
    parser.add_argument("--cpu-digits", type=Path, metavar="FILE", help="cpu.json of an earlier run with --digits")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="only those, in their order")
    arguments = parser.parse_args(argv)
    given = arguments.out, arguments.digits, arguments.cpu_digits
    out, digits, cpu_digits = (path and path.resolve() for path in given)
    stages = stages_of(out, arguments.quick, digits, cpu_digits)
    if unknown := sorted(set(arguments.stages or ()) - {stage.name for stage in stages}):
        parser.error(f"unknown stages: {', '.join(unknown)}; known: {', '.join(stage.name for stage in stages)}")
    return check([s for s in stages if arguments.stages is None or s.name in arguments.stages], out)


if __name__ == "__main__":
    sys.exit(main())
