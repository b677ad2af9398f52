"""Convolutions over time (cross-correlations, as in all of deep learning). Padded frames count as zeros, in and out.

    depthwise   y_tc = b_c + sum_k W_kc x_{t+k-left, c}       left = (K-1)//2, or K-1 where the convolution is causal;
                                                              T frames stay T frames
    strided     y_t = b + sum_k x_{t stride + k - pad} W_k    W_k (I, O); n frames become (n + 2 pad - K)//stride + 1,
                                                              and none where there are fewer than K with the padding

The depthwise convolution is the heart of the convolution module of Gulati et al. 2020, 2005.08100, section 2.2. The
strided ones make the waveform front end of Baevski et al. 2020, 2006.11477, section 2.
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module, as_strided
from minihra.masks import hide, strided


class DepthwiseConvParams(NamedTuple):
    """Kernel and bias of a depthwise convolution; `b` is None for one without bias."""

    W: Array  # (K, C)
    b: Array | None  # (C,)


class DepthwiseConvCache(NamedTuple):
    """What `depthwise_conv_backward` reads."""

    padded: Array | None  # (B, T+K-1, C)  None when the parameters are frozen
    valid: Array  # (B, T)
    left: int  # frames of padding before the first one
    p: DepthwiseConvParams


def depthwise_conv_forward(
    x: Array, valid: Array, p: DepthwiseConvParams, *, causal: bool = False, params: bool = True
) -> tuple[Array, DepthwiseConvCache]:
    """Convolve each channel of x (B, T, C) over time; y (B, T, C) is 0 on padded frames.

    A causal convolution reads no frame behind its own.
    """
    (B, T, C), K = x.shape, len(p.W)
    left = K - 1 if causal else (K - 1) // 2
    padded = array_module(x).zeros((B, T + K - 1, C), x.dtype)
    padded[:, left : left + T] = hide(x, valid)  # (1)
    y = padded[:, :T] * p.W[0]
    for k in range(1, K):
        y += padded[:, k : k + T] * p.W[k]  # (2)
    if p.b is not None:
        y += p.b  # (3)
    return hide(y, valid), DepthwiseConvCache(padded if params else None, valid, left, p)  # (4)


def depthwise_conv_backward(dy: Array, cache: DepthwiseConvCache) -> tuple[Array, DepthwiseConvParams | None]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C)."""
    padded, valid, left, p = cache
    xp, (B, T, C), K = array_module(dy), dy.shape, len(p.W)
    dy = hide(dy, valid)  # (4)
    dpadded = xp.zeros((B, T + K - 1, C), dy.dtype)
    for k in range(K):
        dpadded[:, k : k + T] += dy * p.W[k]  # (2)
    dx = hide(dpadded[:, left : left + T], valid)  # (1)
    if padded is None:
        return dx, None
    dW = xp.stack([(padded[:, k : k + T] * dy).sum((0, 1)) for k in range(K)])  # (2)
    return dx, DepthwiseConvParams(dW, None if p.b is None else dy.sum((0, 1)))  # (2) (3)


class Conv1dParams(NamedTuple):
    """Kernel and bias of a strided convolution from I to O channels; `b` is None for one without bias."""

    W: Array  # (K, I, O)  time, in, out
    b: Array | None  # (O,)


class Conv1dCache(NamedTuple):
    """What `conv1d_backward` reads."""

    padded: Array | None  # (B, T + 2 pad, I)  None when the parameters are frozen
    valid: Array  # (B, T)
    stride: int
    pad: int
    p: Conv1dParams


def windows(padded: Array, K: int, stride: int, T2: int) -> Array:
    """Return, one a row, the K frames of padded (B, T + 2 pad, I) that each of T2 outputs reads: (B T2, K I).

    They overlap, so they are a view of the same memory until they are copied; the last one ends inside it because
    (T2 - 1) stride + K <= T + 2 pad. One copy makes one product of the whole convolution.
    """
    (B, _, I), (b, t, one) = padded.shape, padded.strides
    view = as_strided(padded, (B, T2, K * I), (b, stride * t, one))
    return array_module(padded).ascontiguousarray(view).reshape(B * T2, K * I)


def conv1d_forward(
    x: Array, valid: Array, p: Conv1dParams, *, stride: int, pad: int = 0, params: bool = True
) -> tuple[Array, Conv1dCache]:
    """Convolve x (B, T, I) to y (B, T2, O), which is 0 on frames that `strided` calls padded."""
    xp, (B, T, I), (K, _, O) = array_module(x), x.shape, p.W.shape
    mask = strided(valid, K, stride, pad)  # (B, T2)
    padded = xp.zeros((B, T + 2 * pad, I), x.dtype)
    padded[:, pad : pad + T] = hide(x, valid)  # (1)
    y = windows(padded, K, stride, mask.shape[1]) @ p.W.reshape(K * I, O)  # (2)
    if p.b is not None:
        y += p.b  # (3)
    y = hide(y.reshape(*mask.shape, O), mask)  # (4)
    return y, Conv1dCache(padded if params else None, valid, stride, pad, p)


def conv1d_backward(dy: Array, cache: Conv1dCache) -> tuple[Array, Conv1dParams | None]:
    """Return dx (B, T, I), 0 on padded frames, and dp for dy (B, T2, O)."""
    padded, valid, stride, pad, p = cache
    (B, T2, _), T, (K, I, O) = dy.shape, valid.shape[1], p.W.shape
    rows = hide(dy, strided(valid, K, stride, pad)).reshape(B * T2, O)  # (4)
    dwindows = (rows @ p.W.reshape(K * I, O).T).reshape(B, T2, K, I)  # (2)
    dpadded = array_module(dy).zeros((B, T + 2 * pad, I), dy.dtype)
    for k in range(K):
        dpadded[:, k : k + stride * T2 : stride] += dwindows[:, :, k]  # (2)
    dx = hide(dpadded[:, pad : pad + T], valid)  # (1)
    if padded is None:
        return dx, None
    dW = (windows(padded, K, stride, T2).T @ rows).reshape(K, I, O)  # (2)
    return dx, Conv1dParams(dW, None if p.b is None else rows.sum(0))  # (2) (3)
