"""One side of a row of `minihra bench`: the process that runs it, and the one that tells it when.

On the CPU a side is timed by the wall alone. On a GPU a run has ended when its number, or one element of its array, has
come back to the host: nothing else waits for the GPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np

from minihra.bench_floor import products_run
from minihra.bench_rows import Row, Run
from minihra.bench_runs import runs_of
from minihra.device import array_module_for
from minihra.ops import TWINS, UNPAIRED, twins_in
from minihra.threads import threads

KEPT = (
    "PATH", "HOME", "PYTHONPATH", "TMPDIR", "XDG_CACHE_HOME", "MINIHRA_REFERENCE",
    "LD_LIBRARY_PATH", "CUDA_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "CUPY_CACHE_DIR",
)  # fmt: skip
"""What of the environment a side is given."""

COUNTS = ("MINIHRA_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PAUSE = 0.15  # seconds between two turns, in which idle threads fall asleep: OpenBLAS's after 0.11
TURN = 0.03  # seconds that a turn takes at least: what is shorter runs several times, but for the first turn

Memory = Callable[[bool], int]
"""Returns the most bytes that a process has held since the last reset; with True it resets, and tells what it holds."""


@dataclass(frozen=True)
class Where:
    """Where both sides compute."""

    device: str = "cpu"  # or "cuda"
    tf32: bool = False


ON_CPU = Where()

PRODUCTS = "products"
"""The side, and what it runs, of a step's products alone."""


def load_rival(path: str, where: Where) -> ModuleType:
    """Return the module of a file, which has a function `runs_of`.

    Raises:
        ValueError: there is no such file, no such function in it, or one that cannot be told to compute on the GPU.
    """
    spec = importlib.util.spec_from_file_location("rival", path)
    if spec is None or not Path(path).is_file():
        raise ValueError(f"{path}: no file of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "runs_of"):
        raise ValueError(f"{path}: a rival has a function runs_of(row, inputs), which returns what is timed, by name")
    if where.device == "cuda" and not {"device", "tf32"} <= signature(module.runs_of).parameters.keys():
        raise ValueError(f"{path}: for a GPU a rival has a function runs_of(row, inputs, *, device, tf32)")
    return module


def built(side: str, row: Row, inputs: dict[str, Any], where: Where) -> tuple[dict[str, Run], Memory]:
    """Return what is timed on one side, by name, and what tells its memory."""
    if side == "ours":
        xp = array_module_for(where.device, tf32=where.tf32)
        runs = runs_of(row, inputs, xp)
        if where.device == "cuda":
            return runs, lambda reset: pool_memory(xp, reset)
        for file in (TWINS | UNPAIRED).values():  # so that Numba's own memory does not count as a step's
            twins_in(file)
        return runs, host_memory
    if side == PRODUCTS:
        return {PRODUCTS: products_run(row)}, host_memory
    rival = load_rival(side, where)
    if where.device == "cpu":
        return rival.runs_of(row, inputs), host_memory
    runs = rival.runs_of(row, inputs, device=where.device, tf32=where.tf32)
    return runs, getattr(rival, "gpu_memory", lambda reset: 0)


def serve(side: str, row: str, inputs: str, where: str) -> None:
    """Build one side of a row; run what standard input names, a line for each, and print seconds and result.

    Memory is that beyond what stood before the first run. On a GPU it is that of the second run alone, beyond what
    stood before it: there a reset gives memory back, and a timed run shall find it warm.
    """
    from minihra.allocator import keep_freed_memory

    keep_freed_memory()
    with np.load(inputs) as file:
        arrays = {name: a if a.dtype.kind == "f" or name == "lengths" else a.tolist() for name, a in file.items()}
    place = Where(**json.loads(where))
    runs, memory = built(side, Row(**json.loads(row)), arrays, place)
    before, begun, on_gpu = memory(True), Counter(), place.device == "cuda"
    print(json.dumps(list(runs)), flush=True)
    for line in map(str.strip, sys.stdin):
        measured = not on_gpu or begun[line] == 1
        if measured:
            held = memory(True)
            before = held if on_gpu else before
        try:
            seconds, value = timed(runs[line], on_gpu, begun[line] > 0)
        except Exception as error:
            if side == "ours":
                raise
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
            continue
        begun[line] += 1
        most = memory(False) - before if measured else 0
        print(json.dumps({"seconds": seconds, "value": number(value), "memory": most}), flush=True)


def timed(run: Run, on_gpu: bool, again: bool) -> tuple[float, Any]:
    """Return the seconds of a run, and what it returned; with `again` of as many as fill a turn."""
    start, times = time.perf_counter(), 0
    while not times or (again and time.perf_counter() - start < TURN):
        value = run()
        if on_gpu and hasattr(value, "ndim"):
            value[(0,) * value.ndim].item()
        times += 1
    return (time.perf_counter() - start) / times, value


def number(value: Any) -> float:
    """Return what a run returned, or the sum of it."""
    return float(value.sum()) if hasattr(value, "sum") else float(value)


def host_memory(reset: bool) -> int:
    """Return the most bytes that the process has held since the last reset, as far as Linux tells."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        return 0


def pool_memory(xp: ModuleType, reset: bool) -> int:
    """Return the bytes of CuPy's memory pool, which keeps what was freed until a reset gives it back, and of graphs."""
    pool = xp.get_default_memory_pool()
    if reset:
        pool.free_all_blocks()
    return pool.total_bytes() + twins_in("capture", "cuda").bytes_held()


class Side:
    """A process with one side of a row."""

    def __init__(self, side: str, row: Row, inputs: Path, where: Where) -> None:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= dict.fromkeys(COUNTS, str(threads()))
        arguments = [side, json.dumps(asdict(row)), str(inputs), json.dumps(asdict(where))]
        command = [sys.executable, "-m", "minihra.bench_side", *arguments]
        self.side, self.row = side, row
        self.process = subprocess.Popen(command, env=environment, stdin=-1, stdout=-1, text=True)
        self.seconds: dict[str, list[float]] = {}
        self.first: dict[str, float] = {}  # seconds, loading and compiling included
        self.value: dict[str, float] = {}
        self.memory: dict[str, int] = {}
        self.failed: dict[str, str] = {}  # what a rival could not run, and why

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
        """Run each variant once; with `keep=False` to warm up. A variant that fails takes no more turns."""
        for name, seconds in list(self.seconds.items()):
            self.process.stdin.write(f"{name}\n")
            self.process.stdin.flush()
            answer = self.answer()
            if "error" in answer:
                self.failed[name] = answer["error"]
                for table in (self.seconds, self.first, self.value, self.memory):
                    table.pop(name, None)
                continue
            self.first.setdefault(name, answer["seconds"])
            self.value.setdefault(name, answer["value"])
            self.memory[name] = max(self.memory.get(name, 0), answer["memory"])
            if keep:
                seconds.append(answer["seconds"])
            time.sleep(PAUSE)


if __name__ == "__main__":
    serve(*sys.argv[1:])
