"""Initial values of a Conformer that is trained from nothing.

Weights are normal with variance 1 / fan-in (2 / fan-in before a relu, He et al. 2015, 1502.01852), gains 1, biases 0.
"""

import math

import numpy as np

from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.conformer import Conformer
from minihra.blocks.parameters import conformer_parameters


class InitialValues:
    """A maker of initial values."""

    def __init__(self, seed: int, dtype: np.dtype) -> None:
        self._rng, self._dtype = np.random.default_rng(seed), dtype

    def weight(self, *shape: int, gain: float = 1.0) -> Array:
        """Return normal numbers of variance gain / fan-in."""
        fan_in = math.prod(shape[:-1])
        return (self._rng.standard_normal(shape) * math.sqrt(gain / fan_in)).astype(self._dtype)

    def zeros(self, *shape: int) -> Array:
        """Return zeros."""
        return np.zeros(shape, self._dtype)

    def ones(self, *shape: int) -> Array:
        """Return ones."""
        return np.ones(shape, self._dtype)


def initial_conformer(config: ConformerConfig, seed: int, dtype: np.dtype = np.float32) -> Conformer:
    """Return an untrained Conformer, not frozen, with parameters of `dtype`."""
    p, statistics = conformer_parameters(config, InitialValues(seed, dtype))
    return Conformer(config, p, statistics, frozen=False)
