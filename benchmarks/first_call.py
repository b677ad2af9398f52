"""Seconds of the first step of a process, with machine code kept and without: a figure of docs/performance.md.

    python benchmarks/first_call.py [--runs 7] [--kinds adaptation training]

Each step is one of C=96 x 4, 8 utterances of 100 frames, in a process of its own, timed from when its inputs are there:
in an empty folder for machine code; again, with what the first one kept; and with no folder at all.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from statistics import median

STEP = """
import sys, time
from minihra.ahead import compile_ahead
from minihra.bench_rows import Row, inputs_of
from minihra.bench_runs import runs_of
from minihra.threads import set_threads, threads
set_threads(threads())
row = Row(sys.argv[1], 96, 4, 8, 100)
step = runs_of(row, inputs_of(row))["ours"]
start = time.perf_counter()
other = compile_ahead(row.kind)
step()
print(time.perf_counter() - start)
if other is not None:
    other.wait()
"""


def first_step(kind: str, folder: str) -> float:
    """Return the seconds of the first step of a process that keeps machine code in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    command = [sys.executable, "-c", STEP, kind]
    done = subprocess.run(command, env=environment | {"XDG_CACHE_HOME": folder}, check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def main() -> None:
    """Time all, in turn, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--kinds", nargs="+", default=["adaptation", "training"])
    arguments = parser.parse_args()
    print("| first step | nothing kept: median, all | kept: median, all | no folder: median, all |\n|---|---|---|---|")
    for kind in arguments.kinds:
        columns = [], [], []
        for _ in range(arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                for column, where in zip(columns, (folder, folder, os.devnull), strict=True):
                    column.append(first_step(kind, where))
        cells = (f"{median(c):.2f}: {', '.join(f'{seconds:.2f}' for seconds in sorted(c))}" for c in columns)
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
