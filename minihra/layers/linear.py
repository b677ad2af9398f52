"""The linear map (affine when it has a bias).

y = x W + b                         x (..., I), W (I, O), b (O,)
"""

from typing import NamedTuple

from minihra.arrays import Array


class LinearParams(NamedTuple):
    """Parameters of a linear map; `b` is None for a map without bias."""

    W: Array  # (I, O)
    b: Array | None  # (O,)


class LinearCache(NamedTuple):
    """What `linear_backward` reads."""

    x: Array | None  # (..., I)  None when the parameters are frozen
    p: LinearParams


def linear_forward(x: Array, p: LinearParams, *, params: bool = True) -> tuple[Array, LinearCache]:
    """Map x (..., I) to y (..., O)."""
    rows = x.reshape(-1, x.shape[-1])  # one product over all rows, whatever the leading axes
    y = rows @ p.W if p.b is None else rows @ p.W + p.b  # (1)
    return y.reshape(*x.shape[:-1], p.W.shape[1]), LinearCache(x if params else None, p)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, LinearParams | None]:
    """Return dx (..., I) and dp for dy (..., O)."""
    x, p = cache
    drows = dy.reshape(-1, dy.shape[-1])
    dx = (drows @ p.W.T).reshape(*dy.shape[:-1], p.W.shape[0])  # (1)
    if x is None:
        return dx, None
    dW = x.reshape(-1, x.shape[-1]).T @ drows  # (1)
    return dx, LinearParams(dW, None if p.b is None else drows.sum(0))
