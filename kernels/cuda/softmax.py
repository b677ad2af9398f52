"""Twin of minihra/layers/softmax.py for the GPU: a warp for each row, under any mask."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.attention import KERNELS
from minihra.kernels.cuda.launch import contiguous, per_warp
from minihra.layers.softmax import MaskedSoftmaxCache


def masked_softmax_forward(s: Array, mask: Array) -> tuple[Array, MaskedSoftmaxCache]:
    """Map scores s (..., T) to weights y (..., T); `mask` is bool and broadcasts to s."""
    xp, s, T = array_module(s), contiguous(s), s.shape[-1]
    N, y, mask = s.size // T, xp.empty_like(s), contiguous(xp.broadcast_to(mask, s.shape))
    KERNELS.run("masked_softmax_forward", per_warp(N), s=s, mask=mask, y=y, N=N, T=T)
    return y, MaskedSoftmaxCache(y)


def masked_softmax_backward(dy: Array, cache: MaskedSoftmaxCache) -> Array:
    """Return ds (..., T) for dy (..., T)."""
    xp, dy, T = array_module(dy), contiguous(dy), dy.shape[-1]
    N, ds = dy.size // T, xp.empty_like(dy)
    KERNELS.run("masked_softmax_backward", per_warp(N), y=contiguous(cache.y), dy=dy, ds=ds, N=N, T=T)
    return ds
