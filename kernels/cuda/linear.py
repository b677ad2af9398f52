"""Twin of minihra/layers/linear.py for the GPU: products, and the bias added in place."""

from minihra.arrays import Array
from minihra.kernels.cuda.launch import Source, contiguous, per_warp
from minihra.kernels.cuda.products import product
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.linear import LinearCache, LinearParams

KERNELS = Source("linear.cu")


def linear_forward(x: Array, p: LinearParams, *, params: bool = True) -> tuple[Array, LinearCache]:
    """Map x (..., I) to y (..., O)."""
    y = product(x.reshape(-1, x.shape[-1]), p.W)
    N, O = y.shape
    if p.b is not None:
        KERNELS.run("add_bias", per_warp(N), y=y, b=p.b, N=N, O=O)
    return y.reshape(*x.shape[:-1], O), LinearCache(x if params else None, p)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, LinearParams | None]:
    """Return dx (..., I) and dp for dy (..., O)."""
    x, p = cache
    drows = contiguous(dy).reshape(-1, dy.shape[-1])
    dx = product(drows, p.W.T).reshape(*dy.shape[:-1], p.W.shape[0])
    if x is None:
        return dx, None
    dW = product(x.reshape(-1, x.shape[-1]).T, drows)
    return dx, LinearParams(dW, None if p.b is None else column_sums(drows))
