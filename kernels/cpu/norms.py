"""Twins of the layer norm, the batch norm and the running norm."""

import math

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import ONE, ZERO, compiled, launch, must_have
from minihra.layers.norms import (
    EPS,
    MOMENTUM,
    WHOLE,
    BatchNormCache,
    BatchNormParams,
    BatchStatistics,
    LayerNormCache,
    LayerNormParams,
    RunningNormCache,
    Total,
)


@compiled
def _layer_norm(x: Array, y: Array, normal: Array, scale: Array, g: Array, b: Array, eps: float) -> None:
    N, C = x.shape
    for n in range(N):
        total = ZERO
        for c in range(C):
            total += x[n, c]
        mean = total / np.float32(C)
        squares = ZERO
        for c in range(C):
            centred = x[n, c] - mean
            squares += centred * centred
        s = ONE / math.sqrt(squares / np.float32(C) + eps)
        scale[n] = s
        for c in range(C):
            value = (x[n, c] - mean) * s
            normal[n, c] = value
            y[n, c] = value * g[c] + b[c]


def layer_norm_forward(
    x: Array, p: LayerNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, LayerNormCache]:
    """Normalise each frame of x (..., C)."""
    xp = array_module(x)
    C = x.shape[-1]
    y, normal, scale = (xp.empty(shape, x.dtype) for shape in (x.shape, x.shape, (*x.shape[:-1], 1)))
    b = xp.zeros((C,), x.dtype) if p.b is None else p.b
    must_have((C,), p.g, b)
    rows = [array.reshape(-1, C) for array in (x, y, normal)]
    launch(_layer_norm, *rows, scale.reshape(-1), p.g, b, x.dtype.type(eps))
    return y, LayerNormCache(normal, scale, p, params)


@compiled
def _layer_norm_backward(dy: Array, normal: Array, scale: Array, g: Array, dx: Array) -> None:
    N, C = dy.shape
    for n in range(N):
        total, along = ZERO, ZERO
        for c in range(C):
            dnormal = dy[n, c] * g[c]
            total += dnormal
            along += dnormal * normal[n, c]
        mean, along = total / np.float32(C), along / np.float32(C)
        for c in range(C):
            dx[n, c] = (dy[n, c] * g[c] - mean - normal[n, c] * along) * scale[n]


@compiled
def _gain_and_bias(dy: Array, normal: Array, dg: Array, db: Array) -> None:
    for n in range(len(dy)):
        for c in range(dy.shape[1]):
            dg[c] += dy[n, c] * normal[n, c]
            db[c] += dy[n, c]


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, LayerNormParams | None]:
    """Return dx (..., C) and dp for dy (..., C)."""
    xp = array_module(dy)
    normal, scale, p, params = cache
    C, dx = dy.shape[-1], xp.empty(dy.shape, dy.dtype)
    dy, normal = dy.reshape(-1, C), normal.reshape(-1, C)
    launch(_layer_norm_backward, dy, normal, scale.reshape(-1), p.g, dx.reshape(-1, C))
    if not params:
        return dx, None
    dg, db = xp.zeros((C,), dy.dtype), xp.zeros((C,), dy.dtype)
    launch(_gain_and_bias, dy, normal, dg, db)
    return dx, LayerNormParams(dg, None if p.b is None else db)


@compiled
def _sums(x: Array, valid: Array, sums: Array) -> None:
    for n in range(len(x)):
        if valid[n]:
            for c in range(x.shape[1]):
                sums[c] += x[n, c]


@compiled
def _squares(x: Array, valid: Array, mean: Array, squares: Array) -> None:
    for n in range(len(x)):
        if valid[n]:
            for c in range(x.shape[1]):
                centred = x[n, c] - mean[c]
                squares[c] += centred * centred


@compiled
def _batch_norm(x: Array, valid: Array, mean: Array, scale: Array, g: Array, b: Array, normal: Array, y: Array) -> None:
    for n in range(len(x)):
        if valid[n]:
            for c in range(x.shape[1]):
                value = (x[n, c] - mean[c]) * scale[c]
                normal[n, c] = value
                y[n, c] = value * g[c] + b[c]
        else:
            normal[n] = 0
            y[n] = 0


def batch_norm_forward(
    x: Array,
    valid: Array,
    statistics: BatchStatistics,
    p: BatchNormParams,
    *,
    eps: float = EPS,
    momentum: float = MOMENTUM,
    total: Total = WHOLE,
) -> tuple[Array, BatchStatistics, BatchNormCache]:
    """Normalise x (B, T, C) over the valid frames of the batch; padded frames become 0."""
    xp, (B, T, C), dtype = array_module(x), x.shape, x.dtype.type
    must_have((B, T), valid)
    must_have((C,), p.g, p.b, *statistics)
    rows, real = xp.ascontiguousarray(x).reshape(-1, C), xp.ascontiguousarray(valid).reshape(-1)
    sums, squares = xp.zeros((C,), x.dtype), xp.zeros((C,), x.dtype)
    launch(_sums, rows, real, sums)
    n = int(valid.sum())
    its_mean = sums / dtype(max(n, 1))
    launch(_squares, rows, real, its_mean, squares)
    # What all parts add up is in float64, where the square of a mean loses nothing, so that they meet but once.
    sums = n * its_mean.astype(np.float64)
    n, sums, squares = total((n, sums, squares + its_mean * sums))
    mean = sums / max(n, 1)
    mean, var = mean.astype(x.dtype), xp.maximum(squares / max(n, 1) - mean * mean, 0).astype(x.dtype)
    scale, normal, y = 1 / xp.sqrt(var + dtype(eps)), xp.empty(x.shape, x.dtype), xp.empty(x.shape, x.dtype)
    launch(_batch_norm, rows, real, mean, scale, p.g, p.b, normal.reshape(-1, C), y.reshape(-1, C))
    frames, weight, unbiased = dtype(max(n, 1)), dtype(momentum if n else 0), var * dtype(max(n, 1) / max(n - 1, 1))
    running = BatchStatistics(
        statistics.mean + weight * (mean - statistics.mean), statistics.var + weight * (unbiased - statistics.var)
    )
    return y, running, BatchNormCache(normal, scale, valid, frames, p, total)


@compiled
def _valid_gain_and_bias(dy: Array, valid: Array, normal: Array, dg: Array, db: Array) -> None:
    for n in range(len(dy)):
        if valid[n]:
            for c in range(dy.shape[1]):
                dg[c] += dy[n, c] * normal[n, c]
                db[c] += dy[n, c]


@compiled
def _batch_norm_backward(
    dy: Array, valid: Array, normal: Array, gain: Array, mean_dg: Array, mean_db: Array, dx: Array
) -> None:
    for n in range(len(dy)):
        if valid[n]:
            for c in range(dy.shape[1]):
                dx[n, c] = gain[c] * (dy[n, c] - mean_db[c] - normal[n, c] * mean_dg[c])
        else:
            dx[n] = 0


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, BatchNormParams]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C)."""
    xp, C = array_module(dy), dy.shape[-1]
    normal, scale, valid, frames, p, total = cache
    must_have(normal.shape, dy)
    rows, real = xp.ascontiguousarray(dy).reshape(-1, C), xp.ascontiguousarray(valid).reshape(-1)
    dp, dx = BatchNormParams(xp.zeros((C,), dy.dtype), xp.zeros((C,), dy.dtype)), xp.empty(dy.shape, dy.dtype)
    normal_rows = normal.reshape(-1, C)
    launch(_valid_gain_and_bias, rows, real, normal_rows, *dp)
    dg, db = total(dp)
    launch(_batch_norm_backward, rows, real, normal_rows, p.g * scale, dg / frames, db / frames, dx.reshape(-1, C))
    return dx, dp


@compiled
def _running_norm(x: Array, mean: Array, gain: Array, b: Array, y: Array) -> None:
    for n in range(len(x)):
        for c in range(x.shape[1]):
            y[n, c] = (x[n, c] - mean[c]) * gain[c] + b[c]


def running_norm_forward(
    x: Array, statistics: BatchStatistics, p: BatchNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, RunningNormCache]:
    """Normalise x (..., C) with running statistics, the inference form of batch norm."""
    xp = array_module(x)
    C, scale = x.shape[-1], 1 / xp.sqrt(statistics.var + eps)
    y = xp.empty(x.shape, x.dtype)
    must_have((C,), p.g, p.b, scale, statistics.mean)
    launch(_running_norm, x.reshape(-1, C), statistics.mean, p.g * scale, p.b, y.reshape(-1, C))
    return y, RunningNormCache((x - statistics.mean) * scale if params else None, scale, p)


@compiled
def _scale_rows(x: Array, scale: Array, y: Array) -> None:
    for n in range(len(x)):
        for c in range(x.shape[1]):
            y[n, c] = x[n, c] * scale[c]


def running_norm_backward(dy: Array, cache: RunningNormCache) -> tuple[Array, BatchNormParams | None]:
    """Return dx (..., C) and dp for dy (..., C)."""
    xp = array_module(dy)
    normal, scale, p = cache
    C, dx = dy.shape[-1], xp.empty(dy.shape, dy.dtype)
    launch(_scale_rows, dy.reshape(-1, C), p.g * scale, dx.reshape(-1, C))
    if normal is None:
        return dx, None
    dg, db = xp.zeros((C,), dy.dtype), xp.zeros((C,), dy.dtype)
    launch(_gain_and_bias, dy.reshape(-1, C), normal.reshape(-1, C), dg, db)
    return dx, BatchNormParams(dg, db)
