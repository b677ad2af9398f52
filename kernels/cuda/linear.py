"""Twin of minihra/layers/linear.py for the GPU: products, with the bias in them or, in float64, added in place."""

from minihra.arrays import Array, is_cupys
from minihra.kernels.cuda.biased_product import biased_product
from minihra.kernels.cuda.launch import Source, contiguous, per_warp
from minihra.kernels.cuda.products import product
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.linear import LinearCache, LinearParams

KERNELS = Source("linear.cu")


def linear_forward(x: Array, p: LinearParams, *, params: bool = True) -> tuple[Array, LinearCache]:
    """Map x (..., I) to y (..., O)."""
    y = rows_forward(x.reshape(-1, x.shape[-1]), p)
    return y.reshape(*x.shape[:-1], y.shape[-1]), LinearCache(x if params else None, p)


def rows_forward(x: Array, p: LinearParams) -> Array:
    """Map x (N, I) to y (N, O)."""
    if p.b is not None and is_cupys(x) and (y := biased_product(x, p.W, p.b)) is not None:
        return y
    y = product(x, p.W)
    if p.b is not None:
        KERNELS.run("add_bias", per_warp(len(y)), y=y, b=p.b, N=len(y), O=y.shape[1])
    return y


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, LinearParams | None]:
    """Return dx (..., I) and dp for dy (..., O)."""
    x, p = cache
    drows = contiguous(dy).reshape(-1, dy.shape[-1])
    dx = product(drows, p.W.T).reshape(*dy.shape[:-1], p.W.shape[0])
    if x is None:
        return dx, None
    dW = product(x.reshape(-1, x.shape[-1]).T, drows)
    return dx, LinearParams(dW, None if p.b is None else column_sums(drows))
