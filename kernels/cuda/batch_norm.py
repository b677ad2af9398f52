"""Twin of the batch norm of minihra/layers/norms.py for the GPU, with the statistics of the batch."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_element, per_warp
from minihra.kernels.cuda.sums import ROWS, column_sums
from minihra.layers.norms import EPS, MOMENTUM, WHOLE, BatchNormCache, BatchNormParams, BatchStatistics, Total

KERNELS = Source("batch_norm.cu")


def summed(kernel: str, N: int, C: int, rows: int = 1, **arrays: Array) -> Array:
    """Return the sums (rows C,) over N frames that a kernel makes in slices."""
    x, P = next(iter(arrays.values())), max(1, -(-N // ROWS))
    sums = array_module(x).empty((P, rows * C), x.dtype)
    KERNELS.run(kernel, per_element(P * C), **arrays, sums=sums, N=N, C=C, P=P)
    return column_sums(sums)


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
    xp, x, valid, N, C = array_module(x), contiguous(x), contiguous(valid), valid.size, x.shape[2]
    n, sums = total((valid.sum(dtype=x.dtype), summed("frame_sums", N, C, x=x, valid=valid)))
    frames = xp.maximum(n, 1)
    mean = sums / frames
    squares = total(summed("square_sums", N, C, x=x, valid=valid, mean=mean))
    scale, new_mean, new_var = (xp.empty(C, x.dtype) for _ in range(3))
    before = {"n": xp.asarray(n), "mean": mean, "squares": squares}
    before |= {"old_mean": statistics.mean, "old_var": statistics.var}
    after = {"scale": scale, "new_mean": new_mean, "new_var": new_var}
    KERNELS.run("batch_statistics", per_element(C), **before, **after, C=C, eps=eps, momentum=momentum)
    arrays = {"x": x, "valid": valid, "mean": mean, "scale": scale, **p._asdict()}
    y, normal = xp.empty_like(x), xp.empty_like(x)
    KERNELS.run("batch_norm_forward", per_warp(N), **arrays, y=y, normal=normal, N=N, C=C)
    return y, BatchStatistics(new_mean, new_var), BatchNormCache(normal, scale, valid, frames, p, total)


def batch_norm_backward(dy: Array, cache: BatchNormCache) -> tuple[Array, BatchNormParams]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C)."""
    normal, scale, valid, frames, p, total = cache
    xp, dy, valid, N, C = array_module(dy), contiguous(dy), contiguous(valid), valid.size, dy.shape[2]
    arrays = {"dy": dy, "normal": normal, "valid": valid}
    sums, dx = summed("batch_norm_gradient_sums", N, C, rows=2, **arrays), xp.empty_like(dy)
    dp = BatchNormParams(sums[:C], sums[C:])
    dg, db = total(dp)
    arrays |= {"frames": xp.asarray(frames), "scale": scale, "g": p.g, "dg": dg, "db": db, "dx": dx}
    KERNELS.run("batch_norm_backward", per_warp(N), **arrays, N=N, C=C)
    return dx, dp
