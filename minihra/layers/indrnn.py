"""The IndRNN cell, the controller of the HRA paper. Li et al. 2018, arXiv 1803.04831, section 3.

h_next = relu(x W + u * h + b)              u is a vector: each unit of the state sees only itself
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module


class IndRNNParams(NamedTuple):
    """Parameters of the IndRNN cell."""

    W: Array  # (C, H)
    u: Array  # (H,)
    b: Array  # (H,)


class IndRNNCache(NamedTuple):
    """What `indrnn_backward` reads."""

    x: Array | None  # (N, C)  None when the parameters are frozen
    h: Array | None  # (N, H)  None when the parameters are frozen
    positive: Array  # (N, H)  bool
    p: IndRNNParams


def indrnn_forward(x: Array, h: Array, p: IndRNNParams, *, params: bool = True) -> tuple[Array, IndRNNCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    a = x @ p.W + p.u * h + p.b  # (1)
    return array_module(x).maximum(a, 0), IndRNNCache(x if params else None, h if params else None, a > 0, p)  # (2)


def indrnn_backward(dh_next: Array, cache: IndRNNCache) -> tuple[Array, Array, IndRNNParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, positive, p = cache
    da = dh_next * positive  # (2)
    dx, dh = da @ p.W.T, da * p.u  # (1)
    if x is None:
        return dx, dh, None
    return dx, dh, IndRNNParams(x.T @ da, (da * h).sum(0), da.sum(0))  # (1)
