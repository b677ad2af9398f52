"""Compiling ahead: while a process compiles what the forward of its first step needs, another does so for the backward.

Numba compiles with one thread. A backward takes the reference's caches as well as its twin's, so that a process of its
own can begin there: it computes a tiny forward on the references, and then the loss, the backward and the optimiser's
step, and of an adaptation the controller and heads, too, with the twins, whose machine code is kept where the first
process finds it. Who has pre-trained a model adapts it next: so what an adaptation needs is compiled behind that of a
training, while it runs, from processor time that nobody else wants.
"""

import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from minihra.bench_rows import RATE, Row, inputs_of
from minihra.bench_runs import adapter_of, batch_of, recogniser_of
from minihra.model import backward, ctc_loss, forward, pack_labels
from minihra.ops import Switch, ctc_forward, references, twins_in
from minihra.optim import AdamW
from minihra.threads import set_threads, threads

TINY = {"width": 96, "layers": 2, "batch": 4, "frames": 100, "tasks": 2}


def compile_ahead(kind: str) -> subprocess.Popen | None:
    """Start the other process for an "adaptation" or a "training", if the code of no twin is kept yet, it can be kept,
    and more than one thread may compute. It ends by itself, some seconds later.
    """
    compiled = None if Switch.off else twins_in("compiled")
    if compiled is None or compiled.CACHE is None or threads() == 1 or any(compiled.CACHE.rglob("*.nbi")):
        return None
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    return subprocess.Popen([sys.executable, "-m", "minihra.ahead", kind], **streams)


def tiny_step(kind: str, *, whole: bool = False) -> None:
    """Compute a tiny step on one thread, as a part of a batch has it: the model's forward on the references, unless the
    `whole` step is asked for.
    """
    set_threads(1)
    row = Row(kind, **TINY)
    inputs = inputs_of(row)
    batch, model, edit, training = batch_of(inputs), recogniser_of(row, inputs, np).model, None, None
    if kind == "training":
        model = replace(model, frozen=False)
        training = model.draw_dropout(0.1, *batch.features.shape[:2], np.random.default_rng(0))
    else:
        hra = adapter_of(row, inputs, np)
        edit = hra.edit(batch.tasks)
    with nullcontext() if whole else references():
        logits, cache = forward(model, batch.features, batch.lengths, edit, training)
    labels = pack_labels(batch.labels, logits.shape[2])
    if kind == "training":  # whose backward takes long enough: the first process compiles that of the loss
        ctc_forward(logits, cache.context.valid, labels.labels, labels.lengths)
        dlogits = np.ones_like(logits)
    else:
        # the controller and heads, too, which the first process reaches last in its forward
        edit.forward("block", 0, np.zeros((*logits.shape[:2], row.width), logits.dtype), None, None)
        _, dlogits = ctc_loss(logits, cache.context.valid, labels)
    dbackbone, dadapter = backward(dlogits, cache)
    parameters, gradients = (model.p, dbackbone) if edit is None else (hra.p, dadapter)
    AdamW().clipped_update(parameters, gradients, RATE, 1.0)


def main(kind: str) -> None:
    """Be the other process."""
    tiny_step(kind)
    if kind == "training":
        if hasattr(os, "SCHED_IDLE"):  # Linux: whoever else wakes up has the processor at once
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        elif hasattr(os, "nice"):
            os.nice(19)
        tiny_step("adaptation", whole=True)


if __name__ == "__main__":
    main(sys.argv[1])
