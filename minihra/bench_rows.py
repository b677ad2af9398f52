"""What `minihra bench` times: the rows of its table, and their inputs.

A row is a value that both sides are given, with arrays from which they build the same model and the same batch:
`runs_of` in bench_runs.py is our side; a rival's file has a function of that name with the same meaning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from minihra.adapters.hra import HRA
from minihra.adapters.parts import HEADS
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.speech.features import LogMel
from minihra.tree import leaves, map_leaves

Run = Callable[[], Any]
"""One measurement; it returns the number by which the two sides are compared, such as the loss, or an array of which
that is the sum, taken when the time has been measured."""

STATE, LABELS, MELS, BLANK = 64, 32, 80, 0
RATE = 1e-4  # of the optimiser
HOP = 160  # samples of 16 kHz from frame to frame
SIZES = {(96, 4): (32, 200), (144, 16): (16, 400), (256, 16): (8, 400)}
"""Width and layers: utterances and feature frames of a batch."""

GPU_SIZES = SIZES | {(512, 17): (16, 800)}

ONE_RECORDING = 1, 1000
"""The batch of a recording of 10 s, which has no parts for threads to share."""

APPLIED = 10
"""How often a run of a row of "bandwidth" applies its function, so that starting it does not count."""

BANDWIDTH = {
    "layer_norm": (164, 800, 512),
    "glu": (82, 800, 1024),
    "depthwise_conv": (164, 800, 512),
    "masked_softmax": (105, 400, 4),
    "gru": (164, 800, 512),
    "indrnn": (164, 800, 512),
}
"""Pairs whose time is that of the memory, on a GPU: batch, frames and width of an input of more than 256 MB.

Of the softmax the width is its attention heads, each with a row of `frames` scores for every frame.
"""

PATTERNS = ("identical", "uniform", "zipf", "skewed", "distinct")
"""How often each task occurs in a batch: see `tasks_by`."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    kind: str  # "adaptation", "inference", "training", "heads ...", "bandwidth ...", "ctc" or "log-mel"
    width: int = 0
    layers: int = 0
    batch: int = 32
    frames: int = 200
    cell: str = "gru"
    head: str = "linear"
    tasks: int = 8
    pattern: str = "uniform"
    absent: int = 0  # more tasks, which have a head and no row in the batch
    pair: str = ""  # of "bandwidth forward" and "bandwidth backward": the pair of ops.py

    @property
    def heads(self) -> int:
        """How many heads the adapter has."""
        return self.tasks + self.absent

    @property
    def name(self) -> str:
        """What the table calls it."""
        size = f"C={self.width} x {self.layers}"
        match self.kind:
            case "adaptation" | "inference":
                more = f" of {self.heads}" if self.absent else ""
                what = "one recording" if self.batch == 1 else f"{self.tasks}{more} tasks"
                return f"{self.kind}, {size}, {self.cell}, {self.head}, {what}"
            case "training":
                return f"training, {size}"
            case "heads forward" | "heads backward":
                return f"{self.kind}, {self.head}, {self.pattern}, {self.tasks} tasks, {self.batch} x {self.frames}"
            case "bandwidth forward" | "bandwidth backward":
                return f"{self.kind}, {self.pair}, {self.batch} x {self.frames} x {self.width}, {APPLIED} times"
        return f"{self.kind}, {self.batch} x {self.frames}"


def all_rows(device: str = "cpu") -> Iterator[Row]:
    """Yield every row of a device, the dearest kinds first. On a GPU features are computed on the host."""
    sizes = GPU_SIZES if device == "cuda" else SIZES
    for (C, L), (B, T) in sizes.items():
        for cell in ("gru", "indrnn"):
            for head in HEADS:
                for tasks in (8, 64):
                    yield Row("adaptation", C, L, B, T, cell, head, tasks)
        yield Row("inference", C, L, B, T)
        yield Row("inference", C, L, *ONE_RECORDING, tasks=1)
    yield Row("adaptation", 96, 4, *SIZES[96, 4], absent=1016)
    yield Row("training", 144, 16, *SIZES[144, 16])
    for head in HEADS:
        for kind in ("heads forward", "heads backward"):
            for frames in (25, 100, 400):
                for tasks in (1, 8, 64, 512, 1024):
                    for pattern in PATTERNS:
                        if head == "linear" or (pattern == "zipf" and frames == 100):
                            yield Row(kind, 144, 1, max(16, tasks), frames, "gru", head, tasks, pattern)
    yield Row("ctc", batch=32, frames=200)
    if device == "cpu":
        yield Row("log-mel", batch=8, frames=1000)
        return
    for pair, (B, T, C) in BANDWIDTH.items():
        for kind in ("bandwidth forward", "bandwidth backward"):
            yield Row(kind, C, 1, B, T, pair=pair)


def tasks_by(pattern: str, tasks: int, batch: int, rng: np.random.Generator) -> list[str]:
    """Return the task of each row of a batch.

    identical   all rows are of one task
    uniform     every task is as likely as any other
    zipf        the n-th task has a probability in proportion to n^-1.5
    skewed      half of the rows are of one task
    distinct    each task in turn, so that as many as possible differ
    """
    match pattern:
        case "identical":
            numbers = np.zeros(batch, int)
        case "uniform":
            numbers = rng.integers(0, tasks, batch)
        case "zipf":
            share = np.arange(1, tasks + 1) ** -1.5
            numbers = rng.choice(tasks, batch, p=share / share.sum())
        case "skewed":
            numbers = np.where(rng.random(batch) < 0.5, 0, rng.integers(0, tasks, batch))
        case "distinct":
            numbers = np.arange(batch) % tasks
    return [f"task{n}" for n in numbers]


def inputs_of(row: Row) -> dict[str, Any]:
    """Return the arrays of a row by name, and of a batch `labels` and `tasks` as lists.

    Those of a row of "bandwidth" are large, and made where they are needed.
    """
    rng, B, T = np.random.default_rng(1), row.batch, row.frames

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    match row.kind:
        case "ctc":
            lengths = {"lengths": np.full(B, T), "labels": rng.integers(1, LABELS, (B, 30)).tolist()}
            return {"logits": 2 * normal(B, T, LABELS), **lengths}
        case "log-mel":
            window, filters, _ = LogMel(16000, mels=MELS)._constants
            return {"samples": 0.1 * normal(B, HOP * (T - 1) + len(window)), "window": window, "filters": filters}
        case "bandwidth forward" | "bandwidth backward":
            return {}
    tasks = tasks_by(row.pattern, row.tasks, B, rng)
    named = {} if row.kind == "training" else hra_of(row, rng)
    if row.kind.startswith("heads"):
        shapes = {"h": normal(B, T, STATE), "residual": normal(B, T, row.width), "do": normal(B, T, row.width)}
        return {**shapes, "tasks": tasks, **named}
    backbone = initial_conformer(config_of(row), seed=1)
    named |= {f"backbone.{name}": leaf for name, leaf in leaves(backbone.p)}
    named |= {f"statistics.{name}": leaf for name, leaf in leaves(backbone.statistics)}
    labels = [rng.integers(1, LABELS, T // 16).tolist() for _ in range(B)]
    return {"features": normal(B, T, MELS), "lengths": np.full(B, T), "labels": labels, "tasks": tasks, **named}


def hra_of(row: Row, rng: np.random.Generator) -> dict[str, Array]:
    """Return the parameters of the adapter by name; heads are not zero, as if they had been trained."""
    hra = HRA(row.width, STATE, cell=row.cell, head=row.head, seed=1)
    for n in range(row.heads):
        hra.add_task(f"task{n}")
    p = map_leaves(lambda leaf: leaf + rng.normal(0, 0.02, leaf.shape).astype(leaf.dtype), hra.p)
    return {f"adapter.{name}": leaf for name, leaf in leaves(p)}


def config_of(row: Row) -> ConformerConfig:
    """Return the backbone of a row: the core's Conformer with relative positions and batch norm."""
    return ConformerConfig(labels=LABELS, mels=MELS, width=row.width, layers=row.layers)
