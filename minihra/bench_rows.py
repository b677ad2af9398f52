"""What `minihra bench` times: the rows of its table, their inputs, and our side of each.

A row is a value that both sides are given, with arrays from which they build the same model and the same batch.
`runs_of` returns what is timed; a rival's file has a function of that name with the same meaning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from minihra.adapters.controller import group_tasks
from minihra.adapters.hra import HRA
from minihra.adapters.parts import HEADS
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.evaluate import infer_parts
from minihra.ops import ctc_backward, ctc_forward, grouped_heads_backward, grouped_heads_forward, log_mel_forward
from minihra.optim import AdamW, clip_by_global_norm
from minihra.recogniser import Adapter, Recogniser
from minihra.speech.features import LogMel
from minihra.trainees import Adaptation, Batch, Pretraining
from minihra.tree import from_leaves, leaves, map_leaves

Run = Callable[[], Any]
"""One measurement; it returns the number by which the two sides are compared, such as the loss, or an array of which
that is the sum, taken when the time has been measured."""

STATE, LABELS, MELS, BLANK = 64, 32, 80, 0
RATE = 1e-4  # of the optimiser
SIZES = {(96, 4): (32, 200), (144, 16): (16, 400), (256, 16): (8, 400)}
"""Width and layers: utterances and feature frames of a batch."""

PATTERNS = ("identical", "uniform", "zipf", "skewed", "distinct")
"""How often each task occurs in a batch: see `tasks_by`."""


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    kind: str  # "adaptation", "inference", "training", "heads forward", "heads backward", "ctc" or "log-mel"
    width: int = 0
    layers: int = 0
    batch: int = 32
    frames: int = 200
    cell: str = "gru"
    head: str = "linear"
    tasks: int = 8
    pattern: str = "uniform"
    absent: int = 0  # more tasks, which have a head and no row in the batch

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
                return f"{self.kind}, {size}, {self.cell}, {self.head}, {self.tasks}{more} tasks"
            case "training":
                return f"training, {size}"
            case "heads forward" | "heads backward":
                return f"{self.kind}, {self.head}, {self.pattern}, {self.tasks} tasks, {self.batch} x {self.frames}"
        return f"{self.kind}, {self.batch} x {self.frames}"


def all_rows() -> Iterator[Row]:
    """Yield every row, the dearest kinds first."""
    for (C, L), (B, T) in SIZES.items():
        for cell in ("gru", "indrnn"):
            for head in HEADS:
                for tasks in (8, 64):
                    yield Row("adaptation", C, L, B, T, cell, head, tasks)
        yield Row("inference", C, L, B, T)
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
    yield Row("log-mel", batch=8, frames=1000)


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
    """Return the arrays of a row by name, and of a batch `labels` and `tasks` as lists."""
    rng, B, T = np.random.default_rng(1), row.batch, row.frames

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape, np.float32)

    match row.kind:
        case "ctc":
            lengths = {"lengths": np.full(B, T), "labels": rng.integers(1, LABELS, (B, 30)).tolist()}
            return {"logits": 2 * normal(B, T, LABELS), **lengths}
        case "log-mel":
            return {"samples": 0.1 * normal(B, 160 * T + 240)}
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


def with_prefix(inputs: dict[str, Any], prefix: str) -> dict[str, Array]:
    """Return the arrays below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): a for name, a in inputs.items() if name.startswith(prefix)}


def adapter_of(row: Row, inputs: dict[str, Any]) -> HRA:
    """Return the HRA of the inputs."""
    hra = HRA(row.width, STATE, cell=row.cell, head=row.head)
    for n in range(row.heads):
        hra.add_task(f"task{n}")
    hra.p = map_leaves(np.array, from_leaves(hra.p, with_prefix(inputs, "adapter.")))
    return hra


def runs_of(row: Row, inputs: dict[str, Any]) -> dict[str, Run]:
    """Return what is timed on our side by name: "ours", and for linear heads the "dense" product of their size."""
    runs = {"ours": MAKERS[row.kind](row, inputs)}
    if row.kind.startswith("heads") and row.head == "linear":
        runs["dense"] = dense_run(row, inputs)
    return runs


def recogniser_of(row: Row, inputs: dict[str, Any]) -> Recogniser:
    """Return the frozen backbone of the inputs, without features."""
    model = initial_conformer(config_of(row), seed=0)
    model.p = map_leaves(np.array, from_leaves(model.p, with_prefix(inputs, "backbone.")))
    model.statistics = map_leaves(np.array, from_leaves(model.statistics, with_prefix(inputs, "statistics.")))
    model.frozen = True
    return Recogniser(model, None, SimpleNamespace(blank=BLANK))


def batch_of(inputs: dict[str, Any]) -> Batch:
    """Return the batch of the inputs."""
    return Batch(inputs["features"], inputs["lengths"], inputs["labels"], inputs["tasks"])


def step_run(trainee: Adaptation | Pretraining, batch: Batch) -> Run:
    """Return one whole step: loss, gradients, clipping, AdamW."""
    optimiser, rng = AdamW(), np.random.default_rng(0)

    def step() -> float:
        loss, gradients = trainee.gradients(batch, rng)
        gradients, _ = clip_by_global_norm(gradients, 1.0)
        optimiser.update(trainee.parameters, gradients, RATE)
        return float(loss.mean)

    return step


def adaptation_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return one step of adaptation."""
    adapter = Adapter(adapter_of(row, inputs), "task", "")
    return step_run(Adaptation(recogniser_of(row, inputs), adapter), batch_of(inputs))


def training_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return one step of pre-training, without dropout."""
    return step_run(Pretraining(recogniser_of(row, inputs), 0.0), batch_of(inputs))


def inference_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return the frozen backbone and the HRA on one batch."""
    recogniser, hra = recogniser_of(row, inputs), adapter_of(row, inputs)
    features, tasks = list(inputs["features"]), inputs["tasks"]
    return lambda: float(np.mean([logits.mean() for logits in infer_parts(recogniser, features, hra, tasks)]))


def heads_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return the heads of a batch, its rows sorted by task, with the sum onto the residual; or their backward."""
    heads = adapter_of(row, inputs).p.heads
    groups = group_tasks(inputs["tasks"], heads)
    h, residual, do = (inputs[name][groups.rows] for name in ("h", "residual", "do"))

    def forward() -> Array:
        o, _ = grouped_heads_forward(h, heads, segments=groups.segments)
        o += residual
        return o

    _, cache = grouped_heads_forward(h, heads, segments=groups.segments)
    return forward if row.kind == "heads forward" else lambda: grouped_heads_backward(do, cache)[0]


def dense_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return one dense map of the size of all linear heads together, or the two products of its backward."""
    W, b = adapter_of(row, inputs).p.heads["task0"]
    h, do = inputs["h"].reshape(-1, STATE), inputs["do"].reshape(-1, row.width)
    residual = inputs["residual"].reshape(-1, row.width)
    if row.kind == "heads forward":
        return lambda: h @ W + b + residual
    return lambda: (do @ W.T, h.T @ do)[0]


def ctc_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return CTC from logits to their gradient."""
    labels = np.array(inputs["labels"])
    logits, valid, sizes = inputs["logits"], np.ones((row.batch, row.frames), bool), np.full(row.batch, labels.shape[1])
    share = np.full(row.batch, 1 / row.batch, np.float32)

    def run() -> float:
        losses, cache = ctc_forward(logits, valid, labels, sizes, blank=BLANK)
        ctc_backward(share, cache)
        return float(losses.mean())

    return run


def log_mel_run(row: Row, inputs: dict[str, Any]) -> Run:
    """Return the log-mel frames of some recordings of 16 kHz."""
    window, filters, n_fft = LogMel(16000, mels=MELS)._constants
    samples = inputs["samples"]
    return lambda: float(log_mel_forward(samples, window=window, filters=filters, hop=160, n_fft=n_fft)[0].mean())


MAKERS = {
    "adaptation": adaptation_run,
    "inference": inference_run,
    "training": training_run,
    "heads forward": heads_run,
    "heads backward": heads_run,
    "ctc": ctc_run,
    "log-mel": log_mel_run,
}
"""What makes our run of each kind of row."""
