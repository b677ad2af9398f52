"""Twin of drawing dropout's mask: each thread goes to its share of the numbers, and draws it as NumPy does."""

from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np

from minihra.arrays import Array
from minihra.threads import alone, share, threads

LEAST = 2**16
"""Numbers that are worth two threads: some 0.2 ms."""


def draw_keep(like: Array, rng: np.random.Generator, shape: tuple[int, ...], *, rate: float) -> Array:
    """Draw a mask of this shape, True with probability 1 - rate, and leave the generator as NumPy does."""
    N, portions = prod(shape), 1 if alone() else threads()
    if N < LEAST or portions == 1 or type(rng.bit_generator) is not np.random.PCG64:
        return NotImplemented
    begun: dict[str, Any] = rng.bit_generator.state
    if begun["has_uint32"]:  # half a word is left, which comes before all others
        return NotImplemented
    keep = np.empty(N, bool)

    def draw(first: int, stop: int) -> dict[str, Any]:
        """Draw the numbers first ... stop, of which each word gives two, and return the state after them."""
        bits = np.random.PCG64(0)
        bits.state = begun
        bits.advance(first // 2)
        numbers = np.random.Generator(bits).random(stop - first, np.float32)
        np.greater_equal(numbers, rate, out=keep[first:stop])
        return bits.state

    bounds = [*(N * n // portions // 2 * 2 for n in range(portions)), N]
    rng.bit_generator.state = share([partial(draw, *bound) for bound in pairwise(bounds)])[-1]
    return keep.reshape(shape)
