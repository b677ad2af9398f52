"""Twin of the linear map: its products in tiles, with the bias."""

from minihra.arrays import Array
from minihra.kernels.cpu.product import product, turned_product
from minihra.layers.linear import LinearCache, LinearParams


def linear_forward(x: Array, p: LinearParams, *, params: bool = True) -> tuple[Array, LinearCache]:
    """Map x (..., I) to y (..., O)."""
    y = product(x.reshape(-1, x.shape[-1]), p.W, p.b)
    return y.reshape(*x.shape[:-1], p.W.shape[1]), LinearCache(x if params else None, p)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, LinearParams | None]:
    """Return dx (..., I) and dp for dy (..., O)."""
    x, p = cache
    drows = dy.reshape(-1, dy.shape[-1])
    dx = product(drows, p.W.T).reshape(*dy.shape[:-1], len(p.W))
    if x is None:
        return dx, None
    dW = turned_product(x.reshape(-1, x.shape[-1]), drows)
    return dx, LinearParams(dW, None if p.b is None else drows.sum(0))
