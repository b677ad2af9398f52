"""Our side of each row of `minihra bench`.

A run is given the batch as a training has it, on the host; models live where they compute. It ends with the number that
it fetches, or returns an array, of which bench_side.py fetches an element.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from minihra.adapters.controller import group_tasks
from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.bench_bandwidth import bandwidth_runs
from minihra.bench_rows import BLANK, HOP, RATE, STATE, Row, Run, config_of
from minihra.blocks.initial import initial_conformer
from minihra.device import moved, to_host
from minihra.evaluate import infer_parts
from minihra.graphs import InferenceGraphs
from minihra.ops import (
    ctc_backward,
    ctc_forward,
    grouped_heads_backward,
    grouped_heads_forward,
    linear_forward,
    log_mel_forward,
    twins_in,
)
from minihra.optim import AdamW
from minihra.recogniser import Adapter, Recogniser
from minihra.trainees import Adaptation, Batch, Pretraining
from minihra.tree import from_leaves, map_leaves


def with_prefix(inputs: dict[str, Any], prefix: str) -> dict[str, Array]:
    """Return the arrays below a prefix, by the rest of their names."""
    return {name.removeprefix(prefix): a for name, a in inputs.items() if name.startswith(prefix)}


def adapter_of(row: Row, inputs: dict[str, Any], xp: ModuleType) -> HRA:
    """Return the HRA of the inputs, in `xp`."""
    hra = HRA(row.width, STATE, cell=row.cell, head=row.head)
    for n in range(row.heads):
        hra.add_task(f"task{n}")
    hra.p = map_leaves(np.array, from_leaves(hra.p, with_prefix(inputs, "adapter.")))
    hra.move(xp)
    return hra


def runs_of(row: Row, inputs: dict[str, Any], xp: ModuleType = np) -> dict[str, Run]:
    """Return what is timed on our side by name, with arrays in `xp`.

    That is "ours"; for linear heads beside the "dense" product of their size, and where the time is that of the memory
    beside a "copy".
    """
    if row.kind.startswith("bandwidth"):
        return bandwidth_runs(row, xp)
    runs = {"ours": MAKERS[row.kind](row, inputs, xp)}
    if row.kind.startswith("heads") and row.head == "linear":
        runs["dense"] = dense_run(row, inputs, xp)
    return runs


def recogniser_of(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Recogniser:
    """Return the frozen backbone of the inputs, in `xp` and without features."""
    model = initial_conformer(config_of(row), seed=0)
    model.p = map_leaves(np.array, from_leaves(model.p, with_prefix(inputs, "backbone.")))
    model.statistics = map_leaves(np.array, from_leaves(model.statistics, with_prefix(inputs, "statistics.")))
    model.frozen = True
    return Recogniser(model, None, SimpleNamespace(blank=BLANK)).moved(xp)


def batch_of(inputs: dict[str, Any]) -> Batch:
    """Return the batch of the inputs."""
    return Batch(inputs["features"], inputs["lengths"], inputs["labels"], inputs["tasks"])


def step_run(trainee: Adaptation | Pretraining, batch: Batch) -> Run:
    """Return one whole step: loss, gradients, clipping, AdamW."""
    optimiser, rng = AdamW(), np.random.default_rng(0)

    def step() -> float:
        loss, gradients = trainee.gradients(batch, rng)
        trainee.update(gradients, optimiser, RATE, 1.0)
        return float(to_host(loss.mean))

    return step


def adaptation_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return one step of adaptation."""
    adapter = Adapter(adapter_of(row, inputs, xp), "task", "")
    return step_run(Adaptation(recogniser_of(row, inputs, xp), adapter, graph=xp is not np), batch_of(inputs))


def training_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return one step of pre-training, without dropout."""
    return step_run(Pretraining(recogniser_of(row, inputs, xp), 0.0, graph=xp is not np), batch_of(inputs))


def inference_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return the frozen backbone and the HRA on one batch."""
    recogniser, hra = recogniser_of(row, inputs, xp), adapter_of(row, inputs, xp)
    recogniser = recogniser._replace(model=recogniser.model.settled())
    features, tasks = list(inputs["features"]), inputs["tasks"]
    graphs = None if xp is np else InferenceGraphs(recogniser.model, hra)
    return lambda: float(np.concatenate(infer_parts(recogniser, features, hra, tasks, graphs)).mean())


def heads_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return the heads of a batch, its rows sorted by task, with the sum onto the residual; or their backward."""
    heads = adapter_of(row, inputs, xp).p.heads
    groups = group_tasks(inputs["tasks"], heads)
    h, residual, do = moved(tuple(inputs[name][groups.rows] for name in ("h", "residual", "do")), xp)

    def forward() -> Array:
        o, _ = grouped_heads_forward(h, heads, segments=groups.segments)
        o += residual
        return o

    if row.kind == "heads forward":
        return at_once(forward, xp)
    _, cache = grouped_heads_forward(h, heads, segments=groups.segments)
    return at_once(lambda: grouped_heads_backward(do, cache)[0], xp)


def at_once(run: Run, xp: ModuleType) -> Run:
    """Return a run; on a GPU as a graph, as a step of adaptation starts what it consists of."""
    if xp is np:
        return run
    recorder = twins_in("capture", "cuda").Recorder()
    recorder.run(run)
    captured = recorder.record(run)

    def start() -> Array:
        captured.launch()
        return captured.outputs

    return start


def dense_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return one dense map of the size of all linear heads together, or the two products of its backward."""
    W, b = p = adapter_of(row, inputs, xp).p.heads["task0"]
    h, do, residual = moved(
        (
            inputs["h"].reshape(-1, STATE),
            inputs["do"].reshape(-1, row.width),
            inputs["residual"].reshape(-1, row.width),
        ),
        xp,
    )
    if xp is np:
        return (lambda: h @ W + b + residual) if row.kind == "heads forward" else lambda: (do @ W.T, h.T @ do)[0]
    if row.kind == "heads backward":
        product = twins_in("products", "cuda").product
        return at_once(lambda: (product(do, W.T), product(h.T, do))[0], xp)

    def forward() -> Array:
        o, _ = linear_forward(h, p, params=False)
        o += residual
        return o

    return at_once(forward, xp)


def ctc_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return CTC from logits to their gradient."""
    labels, valid = np.array(inputs["labels"]), np.ones((row.batch, row.frames), bool)
    sizes, share = np.full(row.batch, labels.shape[1]), np.full(row.batch, 1 / row.batch, np.float32)
    logits, valid, labels, sizes, share = moved((inputs["logits"], valid, labels, sizes, share), xp)

    def run() -> float:
        losses, cache = ctc_forward(logits, valid, labels, sizes, blank=BLANK)
        ctc_backward(share, cache)
        return float(to_host(losses.mean()))

    return run


def log_mel_run(row: Row, inputs: dict[str, Any], xp: ModuleType) -> Run:
    """Return the log-mel frames of some recordings of 16 kHz."""
    samples, window, filters = moved(tuple(inputs[name] for name in ("samples", "window", "filters")), xp)
    n_fft = 2 * (len(filters) - 1)

    def run() -> float:
        y, _ = log_mel_forward(samples, window=window, filters=filters, hop=HOP, n_fft=n_fft)
        return float(to_host(y.mean()))

    return run


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
