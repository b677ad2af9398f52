"""Layer norm, batch norm and instance norm. The last axis holds the C channels.

layer norm     y = g * (x - mean) / sqrt(var + eps) + b      mean, var of each frame; Ba et al. 2016, 1607.06450
batch norm     the same with mean, var of each channel over the VALID frames of the batch; Ioffe and Szegedy 2015,
               1502.03167. It normalises by the biased variance and keeps running statistics with the unbiased one:
               running = (1 - momentum) * running + momentum * batch
running norm   what batch norm does at inference: mean, var are the running statistics, constants
instance norm  the same with mean, var of each channel over the VALID frames of its own utterance; Ulyanov et al. 2016,
               1607.08022; the group norm of Wu and He 2018, 1803.08494, with as many groups as channels
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.masks import hide
from minihra.tree import Total, whole

EPS = 1e-5
MOMENTUM = 0.1
WHOLE: Total = whole
"""The total of a batch in one part, as a constant, which twins may import."""


class LayerNormParams(NamedTuple):
    """Gain and bias of a layer norm; `b` is None for a norm without bias."""

    g: Array  # (C,)
    b: Array | None  # (C,)


class LayerNormCache(NamedTuple):
    """What `layer_norm_backward` reads."""

    normal: Array  # (..., C)  (x - mean) / sqrt(var + eps)
    scale: Array  # (..., 1)  1 / sqrt(var + eps)
    p: LayerNormParams
    params: bool


def layer_norm_forward(
    x: Array, p: LayerNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, LayerNormCache]:
    """Normalise each frame of x (..., C)."""
    centred = x - x.mean(-1, keepdims=True)  # (1)
    scale = 1 / array_module(x).sqrt((centred * centred).mean(-1, keepdims=True) + eps)  # (2)
    normal = centred * scale  # (3)
    y = normal * p.g if p.b is None else normal * p.g + p.b  # (4)
    return y, LayerNormCache(normal, scale, p, params)


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, LayerNormParams | None]:
    """Return dx (..., C) and dp for dy (..., C)."""
    normal, scale, p, params = cache
    dnormal = dy * p.g  # (4)
    through_scale = normal * (dnormal * normal).mean(-1, keepdims=True)  # (3) (2)
    dx = (dnormal - dnormal.mean(-1, keepdims=True) - through_scale) * scale  # (3) (2) (1)
    if not params:
        return dx, None
    frames = tuple(range(dy.ndim - 1))
    return dx, LayerNormParams((dy * normal).sum(frames), None if p.b is None else dy.sum(frames))  # (4)


class BatchNormParams(NamedTuple):
    """Gain and bias of a batch norm."""

    g: Array  # (C,)
    b: Array  # (C,)


class BatchStatistics(NamedTuple):
    """Running statistics of a batch norm."""

    mean: Array  # (C,)
    var: Array  # (C,)


class BatchNormCache(NamedTuple):
    """What `batch_norm_backward` reads."""

    normal: Array  # (B, T, C)  0 on padded frames
    scale: Array  # (C,)  1 / sqrt(var + eps)
    valid: Array  # (B, T)
    frames: Array  # 0-d, how many of the whole batch are real; 1 where none is
    p: BatchNormParams
    total: Total


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
    """Normalise x (B, T, C) over the valid frames of the batch; padded frames become 0.

    Where x is a part of a batch, `total` adds up what all parts have. Returns y (B, T, C), the new running statistics
    and the cache. A batch without a valid frame leaves them as they are.
    """
    xp = array_module(x)
    n, sums = total((valid.sum().astype(x.dtype), hide(x, valid).sum((0, 1))))
    frames = xp.maximum(n, 1)
    mean = sums / frames  # (1)
    centred = hide(x - mean, valid)  # (2)
    var = total((centred * centred).sum((0, 1))) / frames  # (3)
    scale = 1 / xp.sqrt(var + eps)  # (4)
    normal = centred * scale  # (5)
    y = hide(normal * p.g + p.b, valid)  # (6)
    weight = xp.where(n > 0, momentum, 0.0).astype(x.dtype)
    unbiased = var * frames / xp.maximum(n - 1, 1)
    running = BatchStatistics(
        statistics.mean + weight * (mean - statistics.mean), statistics.var + weight * (unbiased - statistics.var)
    )
    return y, running, BatchNormCache(normal, scale, valid, frames, p, total)


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, BatchNormParams]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C)."""
    normal, scale, valid, frames, p, total = cache
    dy = hide(dy, valid)  # (6)
    dp = BatchNormParams((dy * normal).sum((0, 1)), dy.sum((0, 1)))  # (6)
    dg, db = total(dp)
    dnormal = dy * p.g  # (6)
    dx = (dnormal - p.g * (db + normal * dg) / frames) * scale  # (5) (4) (3) (2) (1)
    return hide(dx, valid), dp


class RunningNormCache(NamedTuple):
    """What `running_norm_backward` reads."""

    normal: Array | None  # (..., C)  None when the parameters are frozen
    scale: Array  # (C,)  1 / sqrt(var + eps)
    p: BatchNormParams


def running_norm_forward(
    x: Array, statistics: BatchStatistics, p: BatchNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, RunningNormCache]:
    """Normalise x (..., C) with running statistics, the inference form of batch norm."""
    scale = 1 / array_module(x).sqrt(statistics.var + eps)
    normal = (x - statistics.mean) * scale  # (1)
    return normal * p.g + p.b, RunningNormCache(normal if params else None, scale, p)  # (2)


def running_norm_backward(dy: Array, cache: RunningNormCache) -> tuple[Array, BatchNormParams | None]:
    """Return dx (..., C) and dp for dy (..., C)."""
    normal, scale, p = cache
    dx = dy * (p.g * scale)  # (2) (1)
    if normal is None:
        return dx, None
    frames = tuple(range(dy.ndim - 1))
    return dx, BatchNormParams((dy * normal).sum(frames), dy.sum(frames))  # (2)


class InstanceNormParams(NamedTuple):
    """Gain and bias of an instance norm; `b` is None for a norm without bias."""

    g: Array  # (C,)
    b: Array | None  # (C,)


class InstanceNormCache(NamedTuple):
    """What `instance_norm_backward` reads."""

    normal: Array  # (B, T, C)  0 on padded frames
    scale: Array  # (B, 1, C)  1 / sqrt(var + eps)
    valid: Array  # (B, T)
    p: InstanceNormParams
    params: bool


def instance_norm_forward(
    x: Array, valid: Array, p: InstanceNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, InstanceNormCache]:
    """Normalise each channel of x (B, T, C) over the valid frames of its utterance; padded frames become 0."""
    xp = array_module(x)
    frames = xp.maximum(valid.sum(1).astype(x.dtype), 1)[:, None, None]
    mean = hide(x, valid).sum(1, keepdims=True) / frames  # (1)
    centred = hide(x - mean, valid)  # (2)
    scale = 1 / xp.sqrt((centred * centred).sum(1, keepdims=True) / frames + eps)  # (3)
    normal = centred * scale  # (4)
    y = normal * p.g if p.b is None else normal * p.g + p.b  # (5)
    return hide(y, valid), InstanceNormCache(normal, scale, valid, p, params)  # (6)


def instance_norm_backward(dy: Array, cache: InstanceNormCache) -> tuple[Array, InstanceNormParams | None]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C)."""
    normal, scale, valid, p, params = cache
    frames = array_module(dy).maximum(valid.sum(1).astype(dy.dtype), 1)[:, None, None]
    dy = hide(dy, valid)  # (6)
    dnormal = dy * p.g  # (5)
    through_scale = normal * ((dnormal * normal).sum(1, keepdims=True) / frames)  # (4) (3)
    dx = hide((dnormal - dnormal.sum(1, keepdims=True) / frames - through_scale) * scale, valid)  # (4) (3) (2) (1)
    if not params:
        return dx, None
    return dx, InstanceNormParams((dy * normal).sum((0, 1)), None if p.b is None else dy.sum((0, 1)))  # (5)
