"""`minihra bench`: how fast the parts are, alone or beside a rival.

    minihra bench --rival tests/torch_twin.py --rows adaptation
    minihra bench --device cuda --rival tests/torch_twin.py

Each side of a row has a fresh process with a clean environment and the same number of threads, and builds the same
model and batch from the same arrays. First the twins of the kernels are compared with their references; then each side
warms up, and they take turns, A B A B; a third side, which makes the products of a step in NumPy and nothing else, with
them. The rival's file offers `runs_of(row, inputs)`, which for a GPU also takes
`device` and `tf32` by name: by name, what it can do the same with; the fastest of them counts, and one that fails is
left out and told. `gpu_memory(reset)` of that file, if it has one, tells the most bytes on the GPU since a reset.
Medians are of `--turns` measurements; the numbers that both sides return must agree.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from minihra.bench_bandwidth import share_of_copy
from minihra.bench_floor import operations_of
from minihra.bench_rows import Row, all_rows, inputs_of
from minihra.bench_side import ON_CPU, PRODUCTS, Side, Where, load_rival
from minihra.bench_twins import check_twins
from minihra.checkpoint import write_json
from minihra.device import array_module_for
from minihra.threads import threads

WARM_UPS = 2  # on a GPU the second of them also tells the memory
AGREE = 1e-3  # of the numbers that both sides return, which are sums of float32
AGREE_TF32 = 5e-2


def measure(row: Row, rival: str | None, turns: int, where: Where = ON_CPU) -> dict[str, Any]:
    """Return the medians of a row on each side, and what follows of them.

    Raises:
        ValueError: the two sides disagree, or one cannot run.
    """
    operations = operations_of(row) if where.device == "cpu" else 0
    with ExitStack() as stack:
        inputs = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "inputs.npz"
        np.savez(inputs, **inputs_of(row))
        names = ["ours", *([rival] if rival else []), *([PRODUCTS] if operations else [])]
        sides = {name: stack.enter_context(Side(name, row, inputs, where)) for name in names}
        for turn in range(-WARM_UPS, turns):
            for side in sides.values():
                side.turn(keep=turn >= 0)
    ours = sides["ours"]
    result: dict[str, Any] = {"row": row.name, "ours": median(ours.seconds["ours"]), "memory": ours.memory["ours"]}
    result["first"] = ours.first["ours"]
    if "dense" in ours.seconds:
        result["to dense"] = result["ours"] / median(ours.seconds["dense"])
    if "copy" in ours.seconds:
        result["of copy"] = share_of_copy(row, result["ours"], median(ours.seconds["copy"]))
    if operations:
        products = median(sides[PRODUCTS].seconds[PRODUCTS])
        result |= {"gflops": operations / result["ours"] / 1e9, "products": products / result["ours"]}
    if rival:
        result |= beside(row, ours, sides[rival], AGREE_TF32 if where.tf32 else AGREE)
    return result


def beside(row: Row, ours: Side, other: Side, agree: float) -> dict[str, Any]:
    """Return what a row says of a rival: nothing where the rival has no such row.

    Raises:
        ValueError: it disagrees, or nothing of it ran.
    """
    medians = {name: median(seconds) for name, seconds in other.seconds.items()}
    failed = {"failed": other.failed} if other.failed else {}
    for name, error in other.failed.items():
        tqdm.write(f"{row.name}: {name} of {other.side} failed and is left out: {error.splitlines()[0]}")
        if not medians:
            raise ValueError(f"{row.name}: nothing of {other.side} runs")
    if not medians:
        return {}
    best = min(medians, key=medians.get)
    for name, value in other.value.items():
        if not abs(value - ours.value["ours"]) <= agree * max(1, abs(value)):
            raise ValueError(f"{row.name}: ours gives {ours.value['ours']:.6g}, {name} of {other.side} {value:.6g}")
    ratio = median(ours.seconds["ours"]) / medians[best]
    found = {"rival": medians[best], "variant": best, "variants": medians, "rival memory": other.memory[best]}
    return found | {"ratio": ratio} | failed


COLUMNS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("ours", "ours ms", lambda v: f"{1e3 * v:.2f}"),
    ("rival", "rival ms", lambda v: f"{1e3 * v:.2f}"),
    ("ratio", "ratio", lambda v: f"{v:.2f}"),
    ("variant", "its best", str),
    ("to dense", "of dense", lambda v: f"{v:.2f}"),
    ("of copy", "of copy", lambda v: f"{v:.2f}"),
    ("gflops", "GFLOP/s", lambda v: f"{v:.0f}"),
    ("products", "products", lambda v: f"{v:.2f}"),
    ("first", "first s", lambda v: f"{v:.2f}"),
    ("memory", "MB", lambda v: f"{v / 1e6:.0f}"),
    ("rival memory", "its MB", lambda v: f"{v / 1e6:.0f}"),
)
"""Key, title and form of each column."""

NOT_ON = {"cpu": ("of copy",), "cuda": ("gflops", "products")}
"""The columns that a device has not."""


def run_bench(arguments: argparse.Namespace) -> None:
    """Check the twins, time every row that was asked for, and print a table in Markdown."""
    if arguments.turns < 1:
        raise ValueError(f"--turns must be at least 1, got {arguments.turns}")
    device = arguments.device
    if device == "auto":
        device = "cpu" if array_module_for("auto") is np else "cuda"
    rows = [row for row in all_rows(device) if all(word in row.name for word in arguments.rows)]
    if not rows:
        raise ValueError(f"no row has {' and '.join(map(repr, arguments.rows))} in its name; --list shows them")
    if arguments.list:
        print("\n".join(row.name for row in rows))
        return
    xp, where = array_module_for(device), Where(device, arguments.tf32)
    if arguments.rival:
        load_rival(arguments.rival, where)
    errors = check_twins(xp)
    worst = f", errors of at most {max(errors.values()):.1e}" if errors else ""
    content: dict[str, Any] = {"threads": threads(), "turns": arguments.turns, "device": device}
    place = f"{threads()} threads"
    if device == "cuda":
        place = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
        content |= {"gpu": place, "tf32": where.tf32}
    print(f"{len(errors)} cases of twins agree with their references{worst}; {place}\n")
    columns = [column for column in COLUMNS if column[0] not in NOT_ON[device]]
    print(f"| row | {' | '.join(title for _, title, _ in columns)} |\n|{'---|' * (1 + len(columns))}", flush=True)
    content["rows"] = []
    for row in tqdm(rows, desc="rows", disable=None):
        result = measure(row, arguments.rival, arguments.turns, where)
        content["rows"].append(result)
        cells = (form(result[key]) if key in result else "" for key, _, form in columns)
        print(f"| {row.name} | {' | '.join(cells)} |", flush=True)
        if arguments.json:
            write_json(arguments.json, content)
