"""PyTorch as a rival that is ready in a minute, for the rows of 16 layers of `minihra bench`.

    minihra bench --rival benchmarks/torch_blocks.py --rows "adaptation, C=256"

The network is that of tests/torch_twin.py, eagerly, and with its blocks compiled one by one: they are alike, so that
one compilation serves all. That rival compiles the whole model, too, which takes minutes for each way of meeting the
heads. On a GPU forward and backward of the compiled blocks are one CUDA graph. Rows without blocks are its rows.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import torch_twin
from tests.torch_twin import TorchHRA, at_first_run, blocks_in_a_graph, gpu_memory, model_run

__all__ = ["gpu_memory", "runs_of"]

WITH_BLOCKS = ("adaptation", "inference", "training")


def as_it_is(model: TorchHRA, *_: Any) -> None:
    """Compile nothing."""


def blocks_alone(model: TorchHRA, *_: Any) -> None:
    """Compile the blocks of a model."""
    for block in model.backbone["layers"]:
        block.compile(dynamic=False)


def runs_of(
    row: Any, inputs: dict[str, Any], *, device: str = "cpu", tf32: bool = False
) -> dict[str, Callable[[], Any]]:
    """What PyTorch can do a row with, by name, on as many threads as OMP_NUM_THREADS says."""
    if row.kind not in WITH_BLOCKS:
        return torch_twin.runs_of(row, inputs, device=device, tf32=tf32)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    ways = {("gather", "eager"): as_it_is, ("loop", "eager"): as_it_is}
    if device == "cuda":
        ways["gather", "blocks compiled, in one CUDA graph"] = blocks_in_a_graph
    else:
        ways |= {("gather", "blocks compiled"): blocks_alone, ("loop", "blocks compiled"): blocks_alone}
    return {
        f"{mode}, {name}": at_first_run(partial(model_run, row, inputs, mode, device, prepare))
        for (mode, name), prepare in ways.items()
        if mode == "gather" or row.kind != "training"
    }
