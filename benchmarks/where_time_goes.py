"""Where the time of a step of adaptation goes, and the two floors under it: the table of docs/performance.md.

    python benchmarks/where_time_goes.py [--width 144 --layers 16 --batch 16 --frames 400 --cell gru --head linear]

The step is that of `minihra bench`. Its parts are those of one thread, as the profiler of Python sees them: a compiled
loop counts for the file where it stands, a product for the one that calls it. The floors are those of all threads: the
products alone, made in NumPy, and the arrays that a step makes, written once and read once at the speed of a copy
in main memory (those that stay in a cache take less).
"""

import argparse
import cProfile
import pstats
import time
from collections import Counter
from pathlib import Path

import numpy as np

from minihra.allocator import keep_freed_memory
from minihra.bench_floor import operations_of, products_run, rehearsed
from minihra.bench_rows import Row, Run, inputs_of
from minihra.bench_runs import runs_of
from minihra.threads import set_threads, threads

STEPS = 5
FILES = {
    "linear": "linear maps",
    "subsampling": "front end",
    "attention": "attention",
    "gru": "controller",
    "indrnn": "controller",
    "heads": "heads",
    "activations": "swish, GLU",
    "norms": "norms",
    "conv": "depthwise convolution",
    "residual": "residual steps",
    "ctc": "CTC",
}
"""What is done in files of minihra/layers and minihra/kernels/cpu, by name; all else is "the rest"."""


def copy_speed() -> float:
    """Return how many bytes a second a copy reads and writes."""
    source = np.ones(2**26, np.float32)
    target, times = np.empty_like(source), []
    for _ in range(STEPS):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def seconds_of(run: Run) -> float:
    """Return the median time of a run that has warmed up."""
    run()
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    """Profile a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option, default in (("width", 144), ("layers", 16), ("batch", 16), ("frames", 400)):
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--cell", default="gru")
    parser.add_argument("--head", default="linear")
    arguments = parser.parse_args()
    keep_freed_memory()
    row, number = Row("adaptation", **vars(arguments)), threads()
    step = runs_of(row, inputs_of(row))["ours"]
    whole, products = seconds_of(step), seconds_of(products_run(row))
    print(f"{row.name}: {1e3 * whole:.0f} ms with {number} threads")
    print(f"products alone {1e3 * products:.0f} ms ({operations_of(row) / products / 1e9:.0f} GFLOP/s)")
    made = rehearsed(row).made
    print(f"memory alone {1e3 * 2 * made / copy_speed():.0f} ms ({made / 1e6:.0f} MB of arrays)\n")
    set_threads(1)
    profile = cProfile.Profile()
    with profile:
        for _ in range(STEPS):
            step()
    shares: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, callers) in pstats.Stats(profile).stats.items():
        if Path(file).stem != "product":
            shares[FILES.get(Path(file).stem, "the rest")] += own
        elif name in ("product", "panels_of"):
            for (caller, _, _), (*_, whole) in callers.items():
                shares[FILES.get(Path(caller).stem, "the rest")] += whole
    print("| with one thread | ms | share |\n|---|---|---|")
    for what, seconds in shares.most_common():
        print(f"| {what} | {1e3 * seconds / STEPS:.0f} | {seconds / shares.total():.0%} |")


if __name__ == "__main__":
    main()
