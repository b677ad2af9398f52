"""The floor under a step's time: its products alone.

A dry run over arrays without content (weightless.py) lists the products of a step by shape; each is then timed alone,
in NumPy, with the threads of BLAS.
"""

import time
from functools import cache
from statistics import median
from typing import NamedTuple

import numpy as np

from minihra.bench_rows import STATE, Row, config_of
from minihra.memory import AdapterShape, rehearse_infer, rehearse_step
from minihra.weightless import Product, Weightless

TIMES = 5


class Floor(NamedTuple):
    """What the products of a step take alone."""

    operations: int  # multiplications and additions
    seconds: float


def floor_of(row: Row) -> Floor | None:
    """Return the floor of a step of adaptation or an inference; None for other rows."""
    products = rehearsed(row).products
    if not products:
        return None
    return Floor(
        sum(2 * count * int(np.prod(product)) for product, count in products.items()),
        sum(count * seconds_of(product) for product, count in products.items()),
    )


def rehearsed(row: Row) -> Weightless:
    """Return what a dry run of a row counts, of adaptation and inference alone; the heads of all tasks count as one."""
    xp, shape = Weightless(), AdapterShape(STATE, row.cell, row.head)
    match row.kind:
        case "adaptation":
            rehearse_step(xp, config_of(row), shape, row.batch, row.frames, row.frames // 16)
        case "inference":
            rehearse_infer(xp, config_of(row), row.batch, row.frames, shape)
    return xp


@cache
def seconds_of(product: Product) -> float:
    """Return the median time of one product."""
    outer, N, I, O = product
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((outer, N, I), np.float32), rng.standard_normal((outer, I, O), np.float32)
    times = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return median(times[1:])
