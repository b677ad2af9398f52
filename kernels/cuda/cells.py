"""Twins of the cells of the controller for the GPU: products, and one kernel for what is left of a step each way."""

from typing import Any

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_element
from minihra.kernels.cuda.products import product
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.gru import GRUCache, GRUParams
from minihra.layers.indrnn import IndRNNCache, IndRNNParams
from minihra.layers.li_gru import LiGRUCache, LiGRUParams
from minihra.layers.no_recurrence import NoRecurrenceCache, NoRecurrenceParams
from minihra.layers.rnn import RNNCache, RNNParams

KERNELS = Source("cells.cu")


def run(kernel: str, N: int, H: int, **arrays: Any) -> None:
    """Start a kernel for N frames of a state of H units."""
    KERNELS.run(kernel, per_element(N * H), **arrays, N=N, H=H)


def gru_forward(x: Array, h: Array, p: GRUParams, *, params: bool = True) -> tuple[Array, GRUCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    xp, h = array_module(x), contiguous(h)
    r, z, n, q, h_next = (xp.empty_like(h) for _ in range(5))
    a, g = product(x, p.W), product(h, p.U)
    run("gru_forward", *h.shape, a=a, g=g, b=p.b, c=p.c, h=h, r=r, z=z, n=n, q=q, h_next=h_next)
    return h_next, GRUCache(x if params else None, h, r, z, n, q, p)


def gru_backward(dh_next: Array, cache: GRUCache) -> tuple[Array, Array, GRUParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, r, z, n, q, p = cache
    xp, dh_next, (N, H) = array_module(dh_next), contiguous(dh_next), dh_next.shape
    da, dg, dh = (xp.empty((N, width), dh_next.dtype) for width in (3 * H, 3 * H, H))
    run("gru_backward", N, H, dh_next=dh_next, h=contiguous(h), r=r, z=z, n=n, q=q, da=da, dg=dg, dh=dh)
    dx, dh = product(da, p.W.T), product(dg, p.U.T, out=dh, add=True)
    if x is None:
        return dx, dh, None
    return dx, dh, GRUParams(product(x.T, da), product(h.T, dg), column_sums(da), column_sums(dg)[2 * H :])


def indrnn_forward(x: Array, h: Array, p: IndRNNParams, *, params: bool = True) -> tuple[Array, IndRNNCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    xp, h = array_module(x), contiguous(h)
    positive, h_next = xp.empty(h.shape, bool), xp.empty_like(h)
    run("indrnn_forward", *h.shape, a=product(x, p.W), h=h, u=p.u, b=p.b, positive=positive, h_next=h_next)
    return h_next, IndRNNCache(x if params else None, h if params else None, positive, p)


def indrnn_backward(dh_next: Array, cache: IndRNNCache) -> tuple[Array, Array, IndRNNParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, positive, p = cache
    xp, dh_next = array_module(dh_next), contiguous(dh_next)
    da, dh = xp.empty_like(dh_next), xp.empty_like(dh_next)
    run("indrnn_backward", *da.shape, dh_next=dh_next, positive=positive, u=p.u, da=da, dh=dh)
    dx = product(da, p.W.T)
    if x is None:
        return dx, dh, None
    return dx, dh, IndRNNParams(product(x.T, da), column_sums(da, contiguous(h)), column_sums(da))


def no_recurrence_forward(
    x: Array, h: Array, p: NoRecurrenceParams, *, params: bool = True
) -> tuple[Array, NoRecurrenceCache]:
    """Map x (N, C) to h_next (N, H)."""
    xp, a = array_module(x), product(x, p.W)
    positive, h_next = xp.empty(a.shape, bool), xp.empty_like(a)
    run("indrnn_forward", *a.shape, a=a, h=None, u=None, b=p.b, positive=positive, h_next=h_next)
    return h_next, NoRecurrenceCache(x if params else None, positive, p)


def no_recurrence_backward(dh_next: Array, cache: NoRecurrenceCache) -> tuple[Array, None, NoRecurrenceParams | None]:
    """Return dx (N, C), dh = None (exactly zero) and dp for dh_next (N, H)."""
    x, positive, p = cache
    dh_next = contiguous(dh_next)
    da = array_module(dh_next).empty_like(dh_next)
    run("indrnn_backward", *da.shape, dh_next=dh_next, positive=positive, u=None, da=da, dh=None)
    return product(da, p.W.T), None, None if x is None else NoRecurrenceParams(product(x.T, da), column_sums(da))


def rnn_forward(x: Array, h: Array, p: RNNParams, *, params: bool = True) -> tuple[Array, RNNCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    h_next = array_module(x).empty(h.shape, h.dtype)
    a = product(h, p.U, out=product(x, p.W), add=True)
    run("rnn_forward", *h.shape, a=a, b=p.b, h_next=h_next)
    return h_next, RNNCache(x if params else None, h if params else None, h_next, p)


def rnn_backward(dh_next: Array, cache: RNNCache) -> tuple[Array, Array, RNNParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, h_next, p = cache
    da = array_module(dh_next).empty_like(h_next)
    run("rnn_backward", *da.shape, dh_next=contiguous(dh_next), h_next=h_next, da=da)
    dx, dh = product(da, p.W.T), product(da, p.U.T)
    if x is None:
        return dx, dh, None
    return dx, dh, RNNParams(product(x.T, da), product(h.T, da), column_sums(da))


def li_gru_forward(x: Array, h: Array, p: LiGRUParams, *, params: bool = True) -> tuple[Array, LiGRUCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    xp, h = array_module(x), contiguous(h)
    z, n, h_next = (xp.empty_like(h) for _ in range(3))
    a = product(h, p.U, out=product(x, p.W), add=True)
    run("li_gru_forward", *h.shape, a=a, b=p.b, h=h, z=z, n=n, h_next=h_next)
    return h_next, LiGRUCache(x if params else None, h, z, n, p)


def li_gru_backward(dh_next: Array, cache: LiGRUCache) -> tuple[Array, Array, LiGRUParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, z, n, p = cache
    xp, dh_next, (N, H) = array_module(dh_next), contiguous(dh_next), dh_next.shape
    da, dh = xp.empty((N, 2 * H), dh_next.dtype), xp.empty((N, H), dh_next.dtype)
    run("li_gru_backward", N, H, dh_next=dh_next, h=contiguous(h), z=z, n=n, da=da, dh=dh)
    dx, dh = product(da, p.W.T), product(da, p.U.T, out=dh, add=True)
    if x is None:
        return dx, dh, None
    return dx, dh, LiGRUParams(product(x.T, da), product(h.T, da), column_sums(da))
