"""Twin of the linear map: its products in tiles, with the bias; for few rows and a large W, on a thread that has no
others, by BLAS from W'.

Where weights lie as PyTorch stores them, (O, I), y' = W' x' is a product of two arrays in the order of their rows,
which BLAS makes faster than y = x W; turning y' back costs less than that wins, unless y is wider than x.
"""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch, must_have
from minihra.kernels.cpu.product import product, turned_product
from minihra.layers.linear import LinearCache, LinearParams
from minihra.threads import alone

MOST_ROWS = 512
LEAST_SIZE = 2**18  # of W


@compiled
def _turn(y: Array, b: Array, turned: Array) -> None:
    """Let turned (N, O) be the transpose of y (O, N) plus b, tile by tile."""
    O, N = y.shape
    for first in range(0, N, 16):
        for left in range(0, O, 64):
            for n in range(first, min(first + 16, N)):
                for o in range(left, min(left + 64, O)):
                    turned[n, o] = y[o, n] + b[o]


def linear_forward(x: Array, p: LinearParams, *, params: bool = True) -> tuple[Array, LinearCache]:
    """Map x (..., I) to y (..., O)."""
    xp = array_module(x)
    rows, (I, O) = x.reshape(-1, x.shape[-1]), p.W.shape
    stored_turned = p.W.strides[0] == p.W.dtype.itemsize
    if alone() and stored_turned and len(rows) <= MOST_ROWS and O <= I and I * O >= LEAST_SIZE:
        y = xp.empty((len(rows), O), x.dtype)
        b = xp.zeros((O,), x.dtype) if p.b is None else p.b
        must_have((O,), b)
        launch(_turn, p.W.T @ rows.T, b, y)
    else:
        y = product(rows, p.W, p.b)
    return y.reshape(*x.shape[:-1], O), LinearCache(x if params else None, p)


def linear_backward(dy: Array, cache: LinearCache) -> tuple[Array, LinearParams | None]:
    """Return dx (..., I) and dp for dy (..., O)."""
    x, p = cache
    drows = dy.reshape(-1, dy.shape[-1])
    dx = product(drows, p.W.T).reshape(*dy.shape[:-1], len(p.W))
    if x is None:
        return dx, None
    dW = turned_product(x.reshape(-1, x.shape[-1]), drows)
    return dx, LinearParams(dW, None if p.b is None else drows.sum(0))
