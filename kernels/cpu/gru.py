"""Twin of the GRU cell: between its products, a pass over the gates; short loops, as longer ones do not vectorise."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ONE, TWO, compiled, launch, must_have, sigmoid
from minihra.kernels.cpu.product import product, turned_product
from minihra.layers.gru import GRUCache, GRUParams


@compiled
def _gates(
    a: Array, g: Array, b: Array, c: Array, h: Array, r: Array, z: Array, n: Array, q: Array, h_next: Array
) -> None:
    N, H = h.shape
    for i in range(N):
        for j in range(H):
            r[i, j] = sigmoid(a[i, j] + b[j] + g[i, j])
        for j in range(H):
            z[i, j] = sigmoid(a[i, H + j] + b[H + j] + g[i, H + j])
        for j in range(H):
            q[i, j] = g[i, 2 * H + j] + c[j]
        for j in range(H):
            bent = a[i, 2 * H + j] + b[2 * H + j] + r[i, j] * q[i, j]
            n[i, j] = TWO * sigmoid(TWO * bent) - ONE  # tanh
        for j in range(H):
            h_next[i, j] = n[i, j] + z[i, j] * (h[i, j] - n[i, j])


def gru_forward(x: Array, h: Array, p: GRUParams, *, params: bool = True) -> tuple[Array, GRUCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    xp = array_module(x)
    H = h.shape[1]
    must_have((len(x), H), h)
    must_have((3 * H,), p.b)
    must_have((H,), p.c)
    must_have((x.shape[1], 3 * H), p.W)
    must_have((H, 3 * H), p.U)
    r, z, n, q, h_next = (xp.empty(h.shape, h.dtype) for _ in range(5))
    launch(_gates, product(x, p.W), product(h, p.U), p.b, p.c, h, r, z, n, q, h_next)
    return h_next, GRUCache(x if params else None, h, r, z, n, q, p)


@compiled
def _gates_backward(
    dh_next: Array, h: Array, r: Array, z: Array, n: Array, q: Array, da: Array, dg: Array, dh: Array
) -> None:
    N, H = h.shape
    for i in range(N):
        for j in range(H):
            dn = dh_next[i, j] * (ONE - z[i, j]) * (ONE - n[i, j] * n[i, j])
            da[i, 2 * H + j] = dn
            dg[i, 2 * H + j] = dn * r[i, j]
        for j in range(H):
            dr = da[i, 2 * H + j] * q[i, j] * r[i, j] * (ONE - r[i, j])
            da[i, j] = dr
            dg[i, j] = dr
        for j in range(H):
            dz = dh_next[i, j] * (h[i, j] - n[i, j]) * z[i, j] * (ONE - z[i, j])
            da[i, H + j] = dz
            dg[i, H + j] = dz
        for j in range(H):
            dh[i, j] = dh_next[i, j] * z[i, j]


def gru_backward(dh_next: Array, cache: GRUCache) -> tuple[Array, Array, GRUParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    xp = array_module(dh_next)
    x, h, r, z, n, q, p = cache
    (N, H), dtype = h.shape, h.dtype
    da, dg, dh = xp.empty((N, 3 * H), dtype), xp.empty((N, 3 * H), dtype), xp.empty((N, H), dtype)
    launch(_gates_backward, xp.ascontiguousarray(dh_next), h, r, z, n, q, da, dg, dh)
    dx = product(da, p.W.T)
    dh += product(dg, p.U.T)
    if x is None:
        return dx, dh, None
    return dx, dh, GRUParams(turned_product(x, da), turned_product(h, dg), da.sum(0), dg[:, 2 * H :].sum(0))
