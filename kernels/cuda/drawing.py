"""Dropout's mask drawn on the GPU: the bits that NumPy draws on the host, where they take longer than a step."""

from functools import reduce
from math import prod
from typing import Any

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, per_element

KERNELS = Source("drawing.cu")
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645  # a, of PCG64's single step
WORDS = 16  # that a thread draws: the way to its first one costs it about as much
POWERS = 32  # of two, by which it goes there

Stride = tuple[int, int]
"""a and c of some steps at once."""


def after(first: Stride, second: Stride) -> Stride:
    """Return the stride of one after another."""
    (a, c), (b, d) = first, second
    return a * b % 2**128, (b * c + d) % 2**128


def strides_of(increment: int) -> list[Stride]:
    """Return the strides of 2^k steps for each k."""
    strides = [(MULTIPLIER, increment)]
    while len(strides) < POWERS:
        strides.append(after(strides[-1], strides[-1]))
    return strides


def stride_of(n: int, strides: list[Stride]) -> Stride:
    """Return that of n steps."""
    return reduce(after, [stride for k, stride in enumerate(strides) if n >> k & 1], (1, 0))


def word_of(state: int) -> int:
    """Return the 64 bits that PCG64 makes of a state."""
    mixed, by = (state >> 64 ^ state) % 2**64, state >> 122
    return (mixed >> by | mixed << (64 - by)) % 2**64


def draw_keep(like: Array, rng: np.random.Generator, shape: tuple[int, ...], *, rate: float) -> Array:
    """Draw a mask of this shape, True with probability 1 - rate, where `like` is."""
    now: dict[str, Any] = rng.bit_generator.state
    if now["bit_generator"] != "PCG64":
        return NotImplemented
    keep, state, increment = array_module(like).empty(shape, bool), now["state"]["state"], now["state"]["inc"]
    N, left, half = prod(shape), now["has_uint32"], now["uinteger"]
    W = -(-(N - left) // 2)
    if N == 0:
        return keep
    strides, grid = strides_of(increment), per_element(-(-W // WORDS))
    table = [*strides, stride_of(grid.blocks[0] * grid.threads[0], strides)]
    halves = {f"{name}_{part}": [stride[n] >> shift & 2**64 - 1 for stride in table]
              for n, name in enumerate("ac") for part, shift in (("high", 64), ("low", 0))}  # fmt: skip
    given = {"N": N, "W": W, "high": state >> 64, "low": state % 2**64, "left": left, "half": half, "rate": rate}
    KERNELS.run("draw_keep", grid, strides=KERNELS.table("Strides", **halves), keep=keep, **given)
    a, c = stride_of(W, strides)
    state = (a * state + c) % 2**128
    rng.bit_generator.state = now | {
        "state": {"state": state, "inc": increment},
        "has_uint32": (N - left) % 2,
        "uinteger": word_of(state) >> 32 if W else half,
    }
    return keep
