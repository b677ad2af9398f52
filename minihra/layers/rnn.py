"""The plain recurrent cell of Elman (1990), an ablation of the controller.

h_next = tanh(x W + h U + b)
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module


class RNNParams(NamedTuple):
    """Parameters of the plain recurrent cell."""

    W: Array  # (C, H)
    U: Array  # (H, H)
    b: Array  # (H,)


class RNNCache(NamedTuple):
    """What `rnn_backward` reads."""

    x: Array | None  # (N, C)  None when the parameters are frozen
    h: Array | None  # (N, H)  None when the parameters are frozen
    h_next: Array  # (N, H)
    p: RNNParams


def rnn_forward(x: Array, h: Array, p: RNNParams, *, params: bool = True) -> tuple[Array, RNNCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    h_next = array_module(x).tanh(x @ p.W + h @ p.U + p.b)  # (1) (2)
    return h_next, RNNCache(x if params else None, h if params else None, h_next, p)


def rnn_backward(dh_next: Array, cache: RNNCache) -> tuple[Array, Array, RNNParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, h_next, p = cache
    da = dh_next * (1 - h_next * h_next)  # (2)
    dx, dh = da @ p.W.T, da @ p.U.T  # (1)
    if x is None:
        return dx, dh, None
    return dx, dh, RNNParams(x.T @ da, h.T @ da, da.sum(0))  # (1)
