"""Convolutions over time and frequency, 3x3, stride 2, pad 1. Padded frames count as zeros, in and out.

    full        y_tf  = b + sum_{i,j} x_{2t+i-1, 2f+j-1} W_ij             W_ij (I, O); n frames become ceil(n/2), F too
    depthwise   y_tfc = b_c + sum_{i,j} W_ijc x_{2t+i-1, 2f+j-1, c}       each channel on its own

Two full ones make the 4x subsampling front end of Gulati et al. 2020, 2005.08100, section 2. A depthwise one and a
linear map from channels to channels stand for a full one in the 8x subsampling of Rekesh et al. 2023, 2305.05084.
"""

from collections.abc import Iterator
from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.masks import halve, hide


class Conv2dParams(NamedTuple):
    """Kernel and bias of a strided 2-D convolution from I to O channels."""

    W: Array  # (3, 3, I, O)  time, frequency, in, out
    b: Array  # (O,)


class Conv2dCache(NamedTuple):
    """What `conv2d_backward` reads."""

    x: Array | None  # (B, T, F, I)  None when the parameters are frozen
    frequencies: int  # F
    valid: Array  # (B, T)
    p: Conv2dParams
    below: bool


def bordered(x: Array, valid: Array) -> Array:
    """Return x (B, T, F, I) with zeros around it and on padded frames: (B, T+2, F+2, I)."""
    B, T, F, I = x.shape
    padded = array_module(x).zeros((B, T + 2, F + 2, I), x.dtype)
    padded[:, 1 : T + 1, 1 : F + 1] = hide(x, valid)
    return padded


def taps(T2: int, F2: int) -> Iterator[tuple[slice, slice, slice]]:
    """Yield, for the nine elements of the kernel, which elements (B, time, frequency) of the padded input they meet."""
    for i in range(3):
        for j in range(3):
            yield slice(None), slice(i, i + 2 * T2 - 1, 2), slice(j, j + 2 * F2 - 1, 2)


def patches_of(padded: Array, T2: int, F2: int) -> Array:
    """Return, one a row, the nine elements that each output reads: (B T2 F2, 9 I)."""
    return array_module(padded).stack([padded[tap] for tap in taps(T2, F2)], axis=3).reshape(-1, 9 * padded.shape[3])


def conv2d_forward(
    x: Array, valid: Array, p: Conv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, Conv2dCache]:
    """Convolve x (B, T, F, I) to y (B, ceil(T/2), ceil(F/2), O), which is 0 on padded frames.

    `below=False` says that nobody wants the gradient of x.
    """
    (B, T, F, _), (*_, I, O) = x.shape, p.W.shape
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    patches = patches_of(bordered(x, valid), T2, F2)  # (1) (2)
    y = (patches @ p.W.reshape(9 * I, O) + p.b).reshape(B, T2, F2, O)  # (3)
    return hide(y, halve(valid)), Conv2dCache(x if params else None, F, valid, p, below)  # (4)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Conv2dParams | None]:
    """Return dx (B, T, F, I), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    x, F, valid, p, below = cache
    (B, T2, F2, O), T, I = dy.shape, valid.shape[1], p.W.shape[2]
    rows, dx, dp = hide(dy, halve(valid)).reshape(-1, O), None, None  # (4)
    if x is not None:
        dW = patches_of(bordered(x, valid), T2, F2).T @ rows  # (3)
        dp = Conv2dParams(dW.reshape(p.W.shape), rows.sum(0))  # (3)
    if below:
        dpatches = (rows @ p.W.reshape(9 * I, O).T).reshape(B, T2, F2, 9, I)  # (3)
        dpadded = array_module(dy).zeros((B, T + 2, F + 2, I), dy.dtype)
        for n, tap in enumerate(taps(T2, F2)):
            dpadded[tap] += dpatches[:, :, :, n]  # (2)
        dx = hide(dpadded[:, 1 : T + 1, 1 : F + 1], valid)  # (1)
    return dx, dp


class DepthwiseConv2dParams(NamedTuple):
    """Kernel and bias of a strided 2-D convolution of each channel on its own."""

    W: Array  # (3, 3, C)  time, frequency, channel
    b: Array  # (C,)


class DepthwiseConv2dCache(NamedTuple):
    """What `depthwise_conv2d_backward` reads."""

    x: Array | None  # (B, T, F, C)  None when the parameters are frozen
    frequencies: int  # F
    valid: Array  # (B, T)
    p: DepthwiseConv2dParams
    below: bool


def depthwise_conv2d_forward(
    x: Array, valid: Array, p: DepthwiseConv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, DepthwiseConv2dCache]:
    """Convolve each channel of x (B, T, F, C) to y (B, ceil(T/2), ceil(F/2), C), which is 0 on padded frames."""
    xp, (B, T, F, C), W = array_module(x), x.shape, p.W.reshape(9, -1)
    T2, F2 = (T + 1) // 2, (F + 1) // 2
    padded, y = bordered(x, valid), xp.zeros((B, T2, F2, C), x.dtype)  # (1)
    for n, tap in enumerate(taps(T2, F2)):
        y += padded[tap] * W[n]  # (2)
    y += p.b  # (3)
    return hide(y, halve(valid)), DepthwiseConv2dCache(x if params else None, F, valid, p, below)  # (4)


def depthwise_conv2d_backward(
    dy: Array, cache: DepthwiseConv2dCache
) -> tuple[Array | None, DepthwiseConv2dParams | None]:
    """Return dx (B, T, F, C), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), C)."""
    x, F, valid, p, below = cache
    xp, (B, T2, F2, C), T, W = array_module(dy), dy.shape, valid.shape[1], p.W.reshape(9, -1)
    dy, dx, dp = hide(dy, halve(valid)), None, None  # (4)
    if x is not None:
        padded = bordered(x, valid)  # (1)
        dW = xp.stack([(padded[tap] * dy).sum((0, 1, 2)) for tap in taps(T2, F2)])  # (2)
        dp = DepthwiseConv2dParams(dW.reshape(p.W.shape), dy.sum((0, 1, 2)))  # (2) (3)
    if below:
        dpadded = xp.zeros((B, T + 2, F + 2, C), dy.dtype)
        for n, tap in enumerate(taps(T2, F2)):
            dpadded[tap] += dy * W[n]  # (2)
        dx = hide(dpadded[:, 1 : T + 1, 1 : F + 1], valid)  # (1)
    return dx, dp
