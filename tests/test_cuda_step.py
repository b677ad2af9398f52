"""Whole steps with the twins for the GPU: stand-ins that refuse NumPy, and kernels that an emulation runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minihra import device
from minihra.arrays import Array
from minihra.blocks.conformer import Conformer
from minihra.cli import main
from minihra.device import moved, to_host
from minihra.model import backward, ctc_loss, forward
from minihra.ops import references
from minihra.optim import AdamW, clip_by_global_norm
from minihra.tree import Tree, leaves
from tests.cuda_twins import gpu_of_stand_ins
from tests.tiny import TASKS, batch, frozen_backbone, trained_hra
from tests.tones import Bench, adapt


def adaptation_step(xp: Any, cell: str, head: str, **changes: Any) -> Tree:
    """The outputs, the loss and the gradients of a step, and the parameters after it."""
    backbone, given, hra = frozen_backbone(**changes), batch(), trained_hra(cell, head)
    backbone = replace(backbone, p=moved(backbone.p, xp), statistics=moved(backbone.statistics, xp))
    hra.move(xp)
    logits, cache = forward(backbone, xp.asarray(given.features), given.lengths, hra.edit(list(TASKS)))
    loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
    gradients, norm = clip_by_global_norm(backward(dlogits, cache).adapter, 0.5)
    AdamW(decay=0.1).update(hra.p, gradients, lr=1e-2)
    return to_host((logits, loss, gradients, norm, hra.p))


def training_step(xp: Any) -> Tree:
    """The outputs, loss, gradients and running statistics of a step that trains the backbone, in float64."""
    backbone, given = frozen_backbone(np.float64), batch(np.float64)
    p, statistics = moved((backbone.p, backbone.statistics), xp)
    model = Conformer(backbone.config, p, statistics, frozen=False)
    rng = np.random.default_rng(0)
    training = model.draw_dropout(0.2, *given.features.shape[:2], rng)
    logits, cache = forward(model, xp.asarray(given.features), given.lengths, None, training)
    loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
    statistics = tuple(layer.statistics for layer in cache.layers)
    return to_host((logits, loss, backward(dlogits, cache).backbone, statistics))


def assert_near(found: Tree, wanted: Tree, allowed: float = 1e-4) -> None:
    """Of the maximum of each array; one that is 0 but for rounding, as the gradient of a key's bias, is near 0."""
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for name, b in wanted.items():
        a: Array = found[name]
        assert a.shape == b.shape and a.dtype == b.dtype, name
        error = np.abs(a.astype(float) - b.astype(float)).max(initial=0)
        assert error <= allowed * np.abs(b).max(initial=1e-3), (name, error)


@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn"), ("none", "linear")])
def test_an_adaptation_step_is_that_of_the_reference(cell: str, head: str, conv_norm: str) -> None:
    how = {"conv_norm": conv_norm, "reach": (3, 1)}
    with references():
        wanted = adaptation_step(np, cell, head, **how)
    with gpu_of_stand_ins() as xp:
        found = adaptation_step(xp, cell, head, **how)
    assert_near(found, wanted)


def test_a_training_step_is_that_of_the_reference() -> None:
    with references():
        wanted = training_step(np)
    with gpu_of_stand_ins() as xp:
        assert_near(training_step(xp), wanted, 1e-9)


def test_a_checked_step() -> None:
    with gpu_of_stand_ins(checked=True, threads=64) as xp:
        adaptation_step(xp, "gru", "linear")


def test_commands_on_a_gpu(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the CPU's adapter writes down, a GPU writes down; and what the GPU learns is what the CPU learns."""
    who = ["--manifest", str(bench.manifest), "--where", "speaker!=ann", "--split", "test"]
    evaluate = ["eval", "--backbone", str(bench.backbone), "--adapter", str(bench.adapter), *who]
    learn = ["--state-size", "8", "--limit-per-task", "2", "--steps", "3"]
    texts, losses = {}, {}
    with gpu_of_stand_ins() as xp:
        monkeypatch.setitem(sys.modules, "cupy", xp)
        monkeypatch.setattr(device, "gpu_problem", lambda: None)
        for name in ("cpu", "cuda"):
            texts[name], run = tmp_path / f"{name}.jsonl", tmp_path / name
            assert main([*evaluate, "--device", name, "--hypotheses", str(texts[name])]) == 0
            assert main(adapt(bench, run, *learn, "--device", name, *["--no-graph"] * (name == "cuda"))) == 0
            losses[name] = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert texts["cpu"].read_text() == texts["cuda"].read_text()
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
