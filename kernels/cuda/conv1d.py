"""Twin of the strided convolution of minihra/layers/conv.py for the GPU: a product of what its outputs read."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.conv import KERNELS as DEPTHWISE
from minihra.kernels.cuda.launch import Source, contiguous, per_element, per_warp
from minihra.kernels.cuda.products import product
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.conv import Conv1dCache, Conv1dParams

KERNELS = Source("conv1d.cu")


def windows_of(x: Array, valid: Array, T2: int, K: int, *, stride: int, pad: int) -> Array:
    """Return, one a row, the K frames of x (B, T, I) that each of T2 outputs reads: (B T2, K I)."""
    B, T, I = x.shape
    windows = array_module(x).empty((B * T2, K * I), x.dtype)
    sizes = {"B": B, "T": T, "T2": T2, "K": K, "I": I, "stride": stride, "pad": pad}
    KERNELS.run("conv1d_windows", per_warp(B * T2 * K), x=x, valid=valid, windows=windows, **sizes)
    return windows


def finish(y: Array, b: Array | None, valid: Array, K: int, *, stride: int, pad: int) -> None:
    """Add the bias to y (B, T2, O) and hide padded frames, in place."""
    (B, T2, O), frames = y.shape, valid.sum(1, dtype="int64")
    sizes = {"B": B, "T2": T2, "O": O, "K": K, "stride": stride, "pad": pad}
    KERNELS.run("conv1d_finish", per_warp(B * T2), y=y, b=b, frames=frames, **sizes)


def conv1d_forward(
    x: Array, valid: Array, p: Conv1dParams, *, stride: int, pad: int = 0, params: bool = True
) -> tuple[Array, Conv1dCache]:
    """Convolve x (B, T, I) to y (B, T2, O), which is 0 on frames that `strided` calls padded."""
    x, valid, (B, T, I), (K, _, O), padded = contiguous(x), contiguous(valid), x.shape, p.W.shape, None
    T2, how = max(0, (T + 2 * pad - K) // stride + 1), {"stride": stride, "pad": pad}
    y = product(windows_of(x, valid, T2, K, **how), p.W.reshape(K * I, O)).reshape(B, T2, O)
    finish(y, p.b, valid, K, **how)
    if params:
        padded = array_module(x).empty((B, T + 2 * pad, I), x.dtype)
        sizes = {"B": B, "T": T, "C": I, "K": 2 * pad + 1, "left": pad}
        DEPTHWISE.run("pad_frames", per_element(padded.size), x=x, valid=valid, padded=padded, **sizes)
    return y, Conv1dCache(padded, valid, stride, pad, p)


def conv1d_backward(dy: Array, cache: Conv1dCache) -> tuple[Array, Conv1dParams | None]:
    """Return dx (B, T, I), 0 on padded frames, and dp for dy (B, T2, O)."""
    padded, valid, stride, pad, p = cache
    xp, valid, (B, T2, O), (K, I, _) = array_module(dy), contiguous(valid), dy.shape, p.W.shape
    T, how, rows = valid.shape[1], {"stride": stride, "pad": pad}, xp.empty(dy.shape, dy.dtype)
    rows[...] = dy
    finish(rows, None, valid, K, **how)
    rows, dx = rows.reshape(B * T2, O), xp.empty((B, T, I), dy.dtype)
    dwindows = product(rows, p.W.reshape(K * I, O).T)
    sizes = {"B": B, "T": T, "T2": T2, "K": K, "I": I, **how}
    KERNELS.run("conv1d_backward", per_warp(B * T), dwindows=dwindows, valid=valid, dx=dx, **sizes)
    if padded is None:
        return dx, None
    x = contiguous(padded[:, pad : pad + T])
    dW = product(windows_of(x, valid, T2, K, **how).T, rows).reshape(K, I, O)
    return dx, Conv1dParams(dW, None if p.b is None else column_sums(rows))
