"""Twin of the IndRNN cell: beside its product, one pass."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ZERO, compiled, launch, must_have
from minihra.kernels.cpu.product import product, turned_product
from minihra.layers.indrnn import IndRNNCache, IndRNNParams


@compiled
def _step(a: Array, h: Array, u: Array, b: Array, positive: Array, h_next: Array) -> None:
    N, H = h.shape
    for i in range(N):
        for j in range(H):
            value = a[i, j] + u[j] * h[i, j] + b[j]
            positive[i, j] = value > 0
            h_next[i, j] = value if value > 0 or value != value else ZERO  # NaN stays


def indrnn_forward(x: Array, h: Array, p: IndRNNParams, *, params: bool = True) -> tuple[Array, IndRNNCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    xp = array_module(x)
    H = h.shape[1]
    must_have((len(x), H), h)
    must_have((H,), p.u, p.b)
    must_have((x.shape[1], H), p.W)
    positive, h_next = xp.empty(h.shape, bool), xp.empty(h.shape, h.dtype)
    launch(_step, product(x, p.W), h, p.u, p.b, positive, h_next)
    return h_next, IndRNNCache(x if params else None, h if params else None, positive, p)


@compiled
def _step_backward(dh_next: Array, positive: Array, u: Array, da: Array, dh: Array) -> None:
    N, H = dh.shape
    for i in range(N):
        for j in range(H):
            da[i, j] = dh_next[i, j] if positive[i, j] else ZERO
            dh[i, j] = da[i, j] * u[j]


@compiled
def _vector_gradients(da: Array, h: Array, du: Array, db: Array) -> None:
    for i in range(len(da)):
        for j in range(len(du)):
            du[j] += da[i, j] * h[i, j]
            db[j] += da[i, j]


def indrnn_backward(dh_next: Array, cache: IndRNNCache) -> tuple[Array, Array, IndRNNParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, positive, p = cache
    xp, shape, dtype = array_module(dh_next), dh_next.shape, dh_next.dtype
    da, dh = xp.empty(shape, dtype), xp.empty(shape, dtype)
    launch(_step_backward, xp.ascontiguousarray(dh_next), positive, p.u, da, dh)
    dx = product(da, p.W.T)
    if x is None:
        return dx, dh, None
    du, db = xp.zeros(p.u.shape, dtype), xp.zeros(p.b.shape, dtype)
    launch(_vector_gradients, da, h, du, db)
    return dx, dh, IndRNNParams(turned_product(x, da), du, db)
