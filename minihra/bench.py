"""`minihra bench`: how fast the parts are, alone or beside a rival.

    minihra bench --rival tests/torch_twin.py --rows adaptation

Each side of a row has a fresh process with a clean environment and the same number of threads, and builds the same
model and batch from the same arrays. First the twins of the kernels are compared with their references; then each side
warms up, and they take turns, A B A B. The rival's file offers `runs_of(row, inputs)`: by name, what it can do the same
with; the fastest of them counts. Medians are of `--turns` measurements; the numbers that both sides return must agree.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np
from tqdm import tqdm

from minihra.bench_floor import Floor, floor_of
from minihra.bench_rows import Row, Run, all_rows, inputs_of, runs_of
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.blocks.subsampling import subsample
from minihra.cases import layer_cases
from minihra.checkpoint import write_json
from minihra.ops import PAIRS, TWINS, UNPAIRED, adamw_update, references, twins_in
from minihra.threads import share, threads
from minihra.tree import leaves, map_leaves

KEPT = ("PATH", "HOME", "PYTHONPATH", "TMPDIR", "XDG_CACHE_HOME", "MINIHRA_REFERENCE")
"""What of the environment a side is given."""

COUNTS = ("MINIHRA_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
WARM_UPS, PAUSE = 2, 0.15  # seconds between two turns, in which idle threads fall asleep: OpenBLAS's after 0.11
TURN = 0.03  # seconds that a turn takes at least: what is shorter runs several times, but for the first turn
AGREE = 1e-3  # of the numbers that both sides return, which are sums of float32
ALLOWED = 1e-5  # between a twin and its reference, of the largest element


def load_rival(path: str) -> Callable[[Row, dict[str, Any]], dict[str, Run]]:
    """Return the function `runs_of` of a file.

    Raises:
        ValueError: there is no such file, or no such function in it.
    """
    spec = importlib.util.spec_from_file_location("rival", path)
    if spec is None or not Path(path).is_file():
        raise ValueError(f"{path}: no file of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "runs_of"):
        raise ValueError(f"{path}: a rival has a function runs_of(row, inputs), which returns what is timed, by name")
    return module.runs_of


def serve(side: str, row: str, inputs: str) -> None:
    """Build one side of a row; run what standard input names, a line for each, and print seconds and result."""
    from minihra.allocator import keep_freed_memory

    keep_freed_memory()
    with np.load(inputs) as file:
        arrays = {name: a if a.dtype.kind == "f" or name == "lengths" else a.tolist() for name, a in file.items()}
    runs = (runs_of if side == "ours" else load_rival(side))(Row(**json.loads(row)), arrays)
    if side == "ours":
        for file in (TWINS | UNPAIRED).values():  # so that Numba's own memory does not count as a step's
            twins_in(file)
    before, begun = memory(reset=True), set()
    print(json.dumps(list(runs)), flush=True)
    for line in map(str.strip, sys.stdin):
        memory(reset=True)
        start, times = time.perf_counter(), 1
        value = runs[line]()
        while line in begun and time.perf_counter() - start < TURN:
            runs[line]()
            times += 1
        seconds = (time.perf_counter() - start) / times
        begun.add(line)
        most = memory() - before
        print(json.dumps({"seconds": seconds, "value": number(value), "memory": most}), flush=True)


def number(value: Any) -> float:
    """Return what a run returned, or the sum of it."""
    return float(value.sum()) if hasattr(value, "sum") else float(value)


def memory(reset: bool = False) -> int:
    """Return the most bytes that the process has held since the last reset, as far as Linux tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return 0


class Side:
    """A process with one side of a row."""

    def __init__(self, side: str, row: Row, inputs: Path) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= dict.fromkeys(COUNTS, str(threads()))
        command = [sys.executable, "-m", "minihra.bench", side, json.dumps(asdict(row)), str(inputs)]
        self.side, self.row = side, row
        self.process = subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True)
        self.seconds: dict[str, list[float]] = {}
        self.first: dict[str, float] = {}  # seconds, loading and compiling included
        self.value: dict[str, float] = {}
        self.memory: dict[str, int] = {}

    def __enter__(self) -> "Side":
        try:
            self.seconds = {name: [] for name in self.answer()}
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        if kind is not None:
            self.process.kill()
        self.process.wait()

    def answer(self) -> Any:
        """Return what the process says next.

        Raises:
            ValueError: it has ended.
        """
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"{self.row.name}: the process of {self.side} ended; its error stands above")
        return json.loads(line)

    def turn(self, keep: bool = True) -> None:
        """Run each variant once; with `keep=False` to warm up."""
        for name, seconds in self.seconds.items():
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
            answer = self.answer()
            self.first.setdefault(name, answer["seconds"])
            self.value.setdefault(name, answer["value"])
            self.memory[name] = max(self.memory.get(name, 0), answer["memory"])
            if keep:
                seconds.append(answer["seconds"])
            time.sleep(PAUSE)


def measure(row: Row, rival: str | None, turns: int) -> dict[str, Any]:
    """Return the medians of a row on each side, and what follows of them.

    Raises:
        ValueError: the two sides disagree, or one cannot run.
    """
    with ExitStack() as stack:
        inputs = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "inputs.npz"
        np.savez(inputs, **inputs_of(row))
        ours, *others = [stack.enter_context(Side(side, row, inputs)) for side in ("ours", rival) if side]
        for turn in range(-WARM_UPS, turns):
            for side in (ours, *others):
                side.turn(keep=turn >= 0)
    result: dict[str, Any] = {"row": row.name, "ours": median(ours.seconds["ours"]), "memory": ours.memory["ours"]}
    result["first"] = ours.first["ours"]
    if "dense" in ours.seconds:
        result["to dense"] = result["ours"] / median(ours.seconds["dense"])
    floor: Floor | None = floor_of(row)
    if floor is not None:
        result |= {"gflops": floor.operations / result["ours"] / 1e9, "products": floor.seconds / result["ours"]}
    for other in others:
        medians = {name: median(seconds) for name, seconds in other.seconds.items()}
        best = min(medians, key=medians.get)
        for name, value in other.value.items():
            if not abs(value - ours.value["ours"]) <= AGREE * max(1, abs(value)):
                raise ValueError(f"{row.name}: ours gives {ours.value['ours']:.6g}, {name} of {rival} {value:.6g}")
        result |= {"rival": medians[best], "variant": best, "variants": medians, "rival memory": other.memory[best]}
        result["ratio"] = result["ours"] / result["rival"]
    return result


def check_twins() -> dict[str, float]:
    """Return, for each case of a function with a twin, the largest error of the twin in float32.

    Raises:
        ValueError: one is above what is allowed.
    """
    errors = {}
    for case in layer_cases():
        pair = case.name.partition(",")[0]
        if pair not in TWINS or twins_in(TWINS[pair]) is None:
            continue
        arguments = map_leaves(single, {**case.arguments, **case.constants})
        with references():
            wanted = results_of(pair, arguments)
        found = results_of(pair, arguments)
        errors[case.name] = largest_error(found, wanted)
    for name, run in unpaired_runs().items():
        if twins_in(UNPAIRED[name]) is not None:
            with references():
                wanted = run()
            found, _ = share([run, run])  # on threads of their own, where all twins are taken
            errors[name] = largest_error(found, wanted)
    for name, error in errors.items():
        if not error <= ALLOWED:
            raise ValueError(f"{name}: the twin is off by {error:.1e}, allowed are {ALLOWED:g}")
    return errors


def unpaired_runs() -> dict[str, Callable[[], Sequence[np.ndarray]]]:
    """Return what runs each function of `UNPAIRED`, by name."""
    rng = np.random.default_rng(0)
    front_end = initial_conformer(ConformerConfig(labels=2, width=16, layers=1, mels=21), seed=0).p.front_end
    features, valid = rng.standard_normal((2, 30, 21), np.float32), np.arange(30) < [[30], [17]]
    leaf = rng.random((4, 30, 21), np.float32)

    def moved() -> Sequence[np.ndarray]:
        arrays = leaf.copy()
        adamw_update(*arrays, np.array(3.0), np.array(1e-3))
        return arrays

    return {
        "adamw_update": moved,
        "subsample": lambda: subsample(features, valid, front_end)[:1],
    }


def largest_error(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Return the largest difference, of the largest element of each array."""
    return max(
        float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))
        for a, b in zip(found, wanted, strict=True)
    )


def single(leaf: Any) -> Any:
    """Return an array of float64 in float32."""
    return leaf.astype(np.float32) if getattr(leaf, "dtype", None) == np.float64 else leaf


def results_of(pair: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    """Return the output of a pair and its gradients."""
    y, *_, cache = PAIRS[pair].forward(**arguments)
    gradients = PAIRS[pair].backward(np.ones_like(y) + y * y, cache)
    return [y, *(leaf for _, leaf in leaves(gradients if isinstance(gradients, tuple) else (gradients,)))]


COLUMNS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("ours", "ours ms", lambda v: f"{1e3 * v:.2f}"),
    ("rival", "rival ms", lambda v: f"{1e3 * v:.2f}"),
    ("ratio", "ratio", lambda v: f"{v:.2f}"),
    ("variant", "its best", str),
    ("to dense", "of dense", lambda v: f"{v:.2f}"),
    ("gflops", "GFLOP/s", lambda v: f"{v:.0f}"),
    ("products", "products", lambda v: f"{v:.2f}"),
    ("first", "first s", lambda v: f"{v:.2f}"),
    ("memory", "MB", lambda v: f"{v / 1e6:.0f}"),
    ("rival memory", "its MB", lambda v: f"{v / 1e6:.0f}"),
)
"""Key, title and form of each column."""


def run_bench(arguments: argparse.Namespace) -> None:
    """Check the twins, time every row that was asked for, and print a table in Markdown."""
    if arguments.turns < 1:
        raise ValueError(f"--turns must be at least 1, got {arguments.turns}")
    rows = [row for row in all_rows() if all(word in row.name for word in arguments.rows)]
    if not rows:
        raise ValueError(f"no row has {' and '.join(map(repr, arguments.rows))} in its name; --list shows them")
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return
    if arguments.rival:
        load_rival(arguments.rival)
    errors = check_twins()
    worst = f", errors of at most {max(errors.values()):.1e}" if errors else ""
    print(f"{len(errors)} cases of twins agree with their references{worst}; {threads()} threads\n")
    print(f"| row | {' | '.join(title for _, title, _ in COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}", flush=True)
    results = []
    for row in tqdm(rows, desc="rows", disable=None):
        results.append(measure(row, arguments.rival, arguments.turns))
        cells = (form(results[-1][key]) if key in results[-1] else "" for key, _, form in COLUMNS)
        print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
        if arguments.json:
            write_json(arguments.json, {"threads": threads(), "turns": arguments.turns, "rows": results})


if __name__ == "__main__":
    serve(*sys.argv[1:])
