"""How many parameters adapting to many tasks takes: counted from shapes, nothing is allocated.

HRA is compared with residual adapters, one in every layer for each task (Tomanek et al. 2021, 2109.06952: layer norm,
C -> width, C <- width, with biases), and with a fine-tuned copy of the whole model for each task. The model of the
paper, USM, has C = 1536, 32 layers and 2 billion parameters.
"""

from collections.abc import Sequence
from typing import NamedTuple

from minihra.adapters.parts import CELLS, HEADS, known
from minihra.tree import count

RESIDUAL_ADAPTER_WIDTH = 64


class Budget(NamedTuple):
    """Parameters that `tasks` tasks take, by each of three ways."""

    tasks: int
    hra: int  # controller + a head for each task
    residual_adapters: int
    fine_tuning: int


def count_hra(
    width: int,
    state_size: int,
    tasks: int,
    *,
    cell: str = "gru",
    head: str = "linear",
    bottleneck: int | None = None,
) -> tuple[int, int, int]:
    """Return (shared, per task, total) parameters of an HRA of any size.

    Raises:
        ValueError: an unknown cell or head, a size below 1, or a bottleneck for a linear head.
    """
    if head == "linear" and bottleneck is not None:
        raise ValueError("a linear head has no bottleneck; leave it out, or take head='ffn'")
    bottleneck = state_size if bottleneck is None else bottleneck
    if min(width, state_size, bottleneck) < 1 or tasks < 0:
        raise ValueError("width, state size and bottleneck must be at least 1, and tasks at least 0")
    known("cell", cell, CELLS), known("head", head, HEADS)
    shared = count(CELLS[cell].shapes(width, state_size))
    per_task = count(HEADS[head](width, state_size, bottleneck))
    return shared, per_task, shared + tasks * per_task


def count_residual_adapters(width: int, layers: int, inner: int = RESIDUAL_ADAPTER_WIDTH) -> int:
    """Return the parameters of one task's residual adapters: norm, down and up map, in each of `layers` layers."""
    return layers * (2 * width + (width + 1) * inner + (inner + 1) * width)


def budgets(
    width: int,
    layers: int,
    backbone: int,
    state_size: int,
    tasks: Sequence[int],
    *,
    cell: str = "gru",
    head: str = "linear",
    bottleneck: int | None = None,
) -> list[Budget]:
    """Return the budget of each number of `tasks` for a backbone of `backbone` parameters.

    Raises:
        ValueError: as `count_hra`.
    """
    return [
        Budget(
            n,
            count_hra(width, state_size, n, cell=cell, head=head, bottleneck=bottleneck)[2],
            n * count_residual_adapters(width, layers),
            n * backbone,
        )
        for n in tasks
    ]
