"""Elementwise activations and the gated linear unit; x has any shape.

sigmoid   s(x) = 1 / (1 + exp(-x)) = (1 + tanh(x/2)) / 2     the second form cannot overflow
swish     y = x s(x)                                          Ramachandran et al. 2017, 1710.05941
GLU       y = a s(g), [a, g] = halves of the last axis        Dauphin et al. 2017, 1612.08083
relu      y = max(x, 0)
GELU      y = x Phi(x), Phi(x) = (1 + erf(x / sqrt 2)) / 2     Hendrycks and Gimpel 2016, 1606.08415
"""

import math
from typing import NamedTuple

from minihra.arrays import Array, array_module, special_functions


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    return 0.5 * (1 + array_module(x).tanh(0.5 * x))


class SigmoidCache(NamedTuple):
    """What `sigmoid_backward` reads."""

    y: Array  # (...)


def sigmoid_forward(x: Array) -> tuple[Array, SigmoidCache]:
    """Map x (...) to s(x) (...)."""
    y = sigmoid(x)  # (1)
    return y, SigmoidCache(y)


def sigmoid_backward(dy: Array, cache: SigmoidCache) -> Array:
    """Return dx (...) for dy (...)."""
    y = cache.y
    return dy * y * (1 - y)  # (1)


class SwishCache(NamedTuple):
    """What `swish_backward` reads."""

    slope: Array  # (...)  dy/dx


def swish_forward(x: Array) -> tuple[Array, SwishCache]:
    """Map x (...) to x s(x) (...)."""
    s = sigmoid(x)  # (1)
    y = x * s  # (2)
    return y, SwishCache(s + y * (1 - s))


def swish_backward(dy: Array, cache: SwishCache) -> Array:
    """Return dx (...) for dy (...): y' = s + x s (1 - s) = s + y (1 - s)."""
    return dy * cache.slope  # (2) (1)


class GLUCache(NamedTuple):
    """What `glu_backward` reads."""

    s: Array  # (..., C)  s(g) = dy/da
    slope: Array  # (..., C)  dy/dg


def glu_forward(x: Array) -> tuple[Array, GLUCache]:
    """Map x (..., 2C) to y (..., C)."""
    C = x.shape[-1] // 2
    s = sigmoid(x[..., C:])  # (1)
    y = x[..., :C] * s  # (2)
    return y, GLUCache(s, y * (1 - s))


def glu_backward(dy: Array, cache: GLUCache) -> Array:
    """Return dx (..., 2C) for dy (..., C): dy/dg = a s (1 - s) = y (1 - s)."""
    return array_module(dy).concatenate([dy * cache.s, dy * cache.slope], axis=-1)  # (2) (1)


class ReluCache(NamedTuple):
    """What `relu_backward` reads."""

    positive: Array  # (...)  bool


def relu_forward(x: Array) -> tuple[Array, ReluCache]:
    """Map x (...) to max(x, 0) (...)."""
    return array_module(x).maximum(x, 0), ReluCache(x > 0)  # (1)


def relu_backward(dy: Array, cache: ReluCache) -> Array:
    """Return dx (...) for dy (...); the derivative at 0 is taken as 0."""
    return dy * cache.positive  # (1)


class GELUCache(NamedTuple):
    """What `gelu_backward` reads."""

    x: Array  # (...)
    phi: Array  # (...)  Phi(x), the normal distribution function


def gelu_forward(x: Array) -> tuple[Array, GELUCache]:
    """Map x (...) to x Phi(x) (...)."""
    erf = special_functions(array_module(x)).erf
    phi = 0.5 * (1 + erf(x / math.sqrt(2)))  # (1)
    return x * phi, GELUCache(x, phi)  # (2)


def gelu_backward(dy: Array, cache: GELUCache) -> Array:
    """Return dx (...) for dy (...): y' = Phi(x) + x times the normal density."""
    x, phi = cache
    density = array_module(x).exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return dy * (phi + x * density)  # (2) (1)
