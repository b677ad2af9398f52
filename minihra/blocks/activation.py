"""The activations that a model can be made with, by the names of its configuration."""

from minihra.arrays import Array
from minihra.layers.activations import GELUCache, ReluCache, SwishCache
from minihra.ops import PAIRS, Pair, gelu_backward, relu_backward, swish_backward

ACTIVATIONS: dict[str, Pair] = {name: PAIRS[name] for name in ("swish", "gelu", "relu")}
"""The pair of each name."""

ActivationCache = SwishCache | GELUCache | ReluCache

BACKWARD = {SwishCache: swish_backward, GELUCache: gelu_backward, ReluCache: relu_backward}


def activation_backward(dy: Array, cache: ActivationCache) -> Array:
    """Return dx (...) for dy (...): the backward of whichever activation made the cache."""
    return BACKWARD[type(cache)](dy, cache)
