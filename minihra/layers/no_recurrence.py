"""The cell "none": no recurrence over depth at all, the control of every ablation of the controller.

h_next = relu(x W + b)                      h is taken and not used, so that this is a cell like the others
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module


class NoRecurrenceParams(NamedTuple):
    """Parameters of the cell without recurrence."""

    W: Array  # (C, H)
    b: Array  # (H,)


class NoRecurrenceCache(NamedTuple):
    """What `no_recurrence_backward` reads."""

    x: Array | None  # (N, C)  None when the parameters are frozen
    positive: Array  # (N, H)  bool
    p: NoRecurrenceParams


def no_recurrence_forward(
    x: Array, h: Array, p: NoRecurrenceParams, *, params: bool = True
) -> tuple[Array, NoRecurrenceCache]:
    """Map x (N, C) to h_next (N, H)."""
    a = x @ p.W + p.b  # (1)
    return array_module(x).maximum(a, 0), NoRecurrenceCache(x if params else None, a > 0, p)  # (2)


def no_recurrence_backward(dh_next: Array, cache: NoRecurrenceCache) -> tuple[Array, None, NoRecurrenceParams | None]:
    """Return dx (N, C), dh = None (exactly zero) and dp for dh_next (N, H)."""
    x, positive, p = cache
    da = dh_next * positive  # (2)
    return da @ p.W.T, None, None if x is None else NoRecurrenceParams(x.T @ da, da.sum(0))  # (1)
