"""The floor under a step's time: its products alone.

A dry run over arrays without content (weightless.py) lists the products of a step by shape; each of them is then made
alone, in NumPy, with the threads of BLAS, as often as the step makes it.
"""

import numpy as np

from minihra.bench_rows import STATE, Row, Run, config_of
from minihra.memory import AdapterShape, rehearse_infer, rehearse_step
from minihra.weightless import Weightless


def operations_of(row: Row) -> int:
    """Return the multiplications and additions in products of a step of adaptation or an inference; 0 of other rows."""
    return sum(2 * count * int(np.prod(product)) for product, count in rehearsed(row).products.items())


def products_run(row: Row) -> Run:
    """Return what makes these products."""
    rng, listed = np.random.default_rng(0), []
    for (outer, N, I, O), count in rehearsed(row).products.items():
        a, b = rng.standard_normal((outer, N, I), np.float32), rng.standard_normal((outer, I, O), np.float32)
        listed.append((count, a, b))

    def run() -> float:
        for count, a, b in listed:
            for _ in range(count):
                y = a @ b
        return float(y[0, 0, 0])

    return run


def rehearsed(row: Row) -> Weightless:
    """Return what a dry run of a row counts, of adaptation and inference alone; the heads of all tasks count as one."""
    xp, shape = Weightless(), AdapterShape(STATE, row.cell, row.head)
    match row.kind:
        case "adaptation":
            rehearse_step(xp, config_of(row), shape, row.batch, row.frames, row.frames // 16)
        case "inference":
            rehearse_infer(xp, config_of(row), row.batch, row.frames, shape)
    return xp
