"""Convolutions (cross-correlations, as everywhere in deep learning). Padded frames count as zeros, in and out.

    depthwise over time   y_tc = b_c + sum_k W_kc x_{t+k-left, c}        left = (K-1)//2, so T frames stay T frames
    strided in 2-D        y_tf = b + sum_{i,j} x_{2t+i-1, 2f+j-1} W_ij   3x3, stride 2, pad 1: n frames become ceil(n/2)

The depthwise convolution is the heart of the convolution module of Gulati et al. 2020, 2005.08100, section 2.2; two
of the strided ones make its 4x subsampling front end, section 2.
"""

from collections.abc import Iterator
from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.masks import halve, hide


class DepthwiseConvParams(NamedTuple):
    """Kernel and bias of a depthwise convolution; `b` is None for one without bias."""

    W: Array  # (K, C)
    b: Array | None  # (C,)


class DepthwiseConvCache(NamedTuple):
    """What `depthwise_conv_backward` reads."""

    padded: Array | None  # (B, T+K-1, C)  None when the parameters are frozen
    valid: Array  # (B, T)
    p: DepthwiseConvParams


def depthwise_conv_forward(
    x: Array, valid: Array, p: DepthwiseConvParams, *, params: bool = True
) -> tuple[Array, DepthwiseConvCache]:
    """Convolve each channel of x (B, T, C) over time; y (B, T, C) is 0 on padded frames."""
    (B, T, C), K = x.shape, len(p.W)
    left = (K - 1) // 2
    padded = array_module(x).zeros((B, T + K - 1, C), x.dtype)
    padded[:, left : left + T] = hide(x, valid)  # (1)
    y = padded[:, :T] * p.W[0]
    for k in range(1, K):
        y += padded[:, k : k + T] * p.W[k]  # (2)
    if p.b is not None:
        y += p.b  # (3)
    return hide(y, valid), DepthwiseConvCache(padded if params else None, valid, p)  # (4)


def depthwise_conv_backward(dy: Array, cache: DepthwiseConvCache) -> tuple[Array, DepthwiseConvParams | None]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C)."""
    padded, valid, p = cache
    xp, (B, T, C), K = array_module(dy), dy.shape, len(p.W)
    left = (K - 1) // 2
    dy = hide(dy, valid)  # (4)
    dpadded = xp.zeros((B, T + K - 1, C), dy.dtype)
    for k in range(K):
        dpadded[:, k : k + T] += dy * p.W[k]  # (2)
    dx = hide(dpadded[:, left : left + T], valid)  # (1)
    if padded is None:
        return dx, None
    dW = xp.stack([(padded[:, k : k + T] * dy).sum((0, 1)) for k in range(K)])  # (2)
    return dx, DepthwiseConvParams(dW, None if p.b is None else dy.sum((0, 1)))  # (2) (3)


class Conv2dParams(NamedTuple):
    """Kernel and bias of a strided 2-D convolution from I to O channels."""

    W: Array  # (3, 3, I, O)  time, frequency, in, out
    b: Array  # (O,)


class Conv2dCache(NamedTuple):
    """What `conv2d_backward` reads."""

    patches: Array | None  # (B, T2, F2, 9, I)  None when the parameters are frozen
    frequencies: int  # F
    valid: Array  # (B, T)
    p: Conv2dParams


def taps(T2: int, F2: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield, for the nine elements of the kernel, which elements (B, time, frequency) of the padded input they meet."""
    for i in range(3):
        for j in range(3):
            yield slice(None), slice(i, i + 2 * T2 - 1, 2), slice(j, j + 2 * F2 - 1, 2)


def conv2d_forward(x: Array, valid: Array, p: Conv2dParams, *, params: bool = True) -> tuple[Array, Conv2dCache]:
    """Convolve x (B, T, F, I) to y (B, ceil(T/2), ceil(F/2), O), which is 0 on padded frames."""
    xp, (B, T, F, _), (*_, I, O) = array_module(x), x.shape, p.W.shape
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    padded = xp.zeros((B, T + 2, F + 2, I), x.dtype)
    padded[:, 1 : T + 1, 1 : F + 1] = hide(x, valid)  # (1)
    patches = xp.stack([padded[tap] for tap in taps(T2, F2)], axis=3)  # (2)
    y = (patches.reshape(-1, 9 * I) @ p.W.reshape(9 * I, O) + p.b).reshape(B, T2, F2, O)  # (3)
    return hide(y, halve(valid)), Conv2dCache(patches if params else None, F, valid, p)  # (4)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array, Conv2dParams | None]:
    """Return dx (B, T, F, I), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    patches, F, valid, p = cache
    (B, T2, F2, O), T, I = dy.shape, valid.shape[1], p.W.shape[2]
    rows = hide(dy, halve(valid)).reshape(-1, O)  # (4)
    dpatches = (rows @ p.W.reshape(9 * I, O).T).reshape(B, T2, F2, 9, I)  # (3)
    dpadded = array_module(dy).zeros((B, T + 2, F + 2, I), dy.dtype)
    for n, tap in enumerate(taps(T2, F2)):
        dpadded[tap] += dpatches[:, :, :, n]  # (2)
    dx = hide(dpadded[:, 1 : T + 1, 1 : F + 1], valid)  # (1)
    if patches is None:
        return dx, None
    dW = (patches.reshape(-1, 9 * I).T @ rows).reshape(p.W.shape)  # (3)
    return dx, Conv2dParams(dW, rows.sum(0))  # (3)
