"""Twins of minihra/layers/norms.py for the GPU: layer norm, a warp a frame, also of what a residual step adds up, and
the norm of running statistics.
"""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_element, per_warp
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.norms import (
    EPS,
    BatchNormParams,
    BatchStatistics,
    LayerNormCache,
    LayerNormParams,
    RunningNormCache,
)

KERNELS = Source("norms.cu")


def layer_norm_forward(
    x: Array, p: LayerNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, LayerNormCache]:
    """Normalise each frame of x (..., C)."""
    return normalised(x, None, p, (1.0, 0.0), eps, params)


def add_and_norm(
    x: Array, u: Array, p: LayerNormParams, *, weights: tuple[float, float], eps: float, params: bool
) -> tuple[Array, LayerNormCache]:
    """Return the norm of a x + w u (B, T, C) and its cache."""
    return normalised(x, contiguous(u), p, weights, eps, params)


def normalised(
    x: Array, u: Array | None, p: LayerNormParams, weights: tuple[float, float], eps: float, params: bool
) -> tuple[Array, LayerNormCache]:
    """Return the norm of x (..., C), or of a x + w u, and its cache."""
    xp, x, C, (a, w) = array_module(x), contiguous(x), x.shape[-1], weights
    N, y, normal = x.size // C, xp.empty_like(x), xp.empty_like(x)
    scale = xp.empty((*x.shape[:-1], 1), x.dtype)
    arrays, sizes = {"x": x, "u": u, **p._asdict(), "y": y, "normal": normal, "scale": scale}, {"N": N, "C": C}
    KERNELS.run("layer_norm_forward", per_warp(N), **arrays, **sizes, a=a, w=w, eps=eps)
    return y, LayerNormCache(normal, scale, p, params)


def layer_norm_backward(dy: Array, cache: LayerNormCache) -> tuple[Array, LayerNormParams | None]:
    """Return dx (..., C) and dp for dy (..., C)."""
    normal, scale, p, params = cache
    xp, dy, C = array_module(dy), contiguous(dy), dy.shape[-1]
    N, dx = dy.size // C, xp.empty_like(dy)
    KERNELS.run("layer_norm_backward", per_warp(N), dy=dy, normal=normal, scale=scale, g=p.g, dx=dx, N=N, C=C)
    if not params:
        return dx, None
    return dx, LayerNormParams(column_sums(dy, normal), None if p.b is None else column_sums(dy))


def running_norm_forward(
    x: Array, statistics: BatchStatistics, p: BatchNormParams, *, eps: float = EPS, params: bool = True
) -> tuple[Array, RunningNormCache]:
    """Normalise x (..., C) with running statistics, the inference form of batch norm."""
    xp, x, C = array_module(x), contiguous(x), x.shape[-1]
    y, normal = xp.empty_like(x), xp.empty_like(x) if params else None
    N, (mean, var) = x.size // C, statistics
    KERNELS.run(
        "running_norm_forward",
        per_element(x.size),
        **{"x": x, "mean": mean, "var": var, "g": p.g, "b": p.b, "y": y, "normal": normal, "N": N, "C": C, "eps": eps},
    )
    return y, RunningNormCache(normal, 1 / xp.sqrt(var + eps), p)


def running_norm_backward(dy: Array, cache: RunningNormCache) -> tuple[Array, BatchNormParams | None]:
    """Return dx (..., C) and dp for dy (..., C)."""
    normal, scale, p = cache
    xp, dy, C = array_module(dy), contiguous(dy), dy.shape[-1]
    dx = xp.empty_like(dy)
    KERNELS.run("running_norm_backward", per_element(dy.size), dy=dy, g=p.g, scale=scale, dx=dx, N=dy.size // C, C=C)
    if normal is None:
        return dx, None
    return dx, BatchNormParams(column_sums(dy, normal), column_sums(dy))
