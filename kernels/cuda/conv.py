"""Twins of the depthwise convolution of minihra/layers/conv.py for the GPU: a thread makes several frames at once."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import LANES, Grid, Source, contiguous, per_element, per_warp
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.conv import DepthwiseConvCache, DepthwiseConvParams

KERNELS = Source("conv.cu")
AT_ONCE = 8  # frames that a thread makes, as in conv.cu
SLICE = 64  # frames that a thread adds up for the gradient of the kernel


def convolved(x: Array, valid: Array, p: DepthwiseConvParams, left: int, *, turned: bool) -> Array:
    """Return x (B, T, C) convolved with the kernel; or, for a backward, with the turned kernel and without bias."""
    (B, T, C), K = x.shape, len(p.W)
    W, b, y = contiguous(p.W), None if turned else p.b, array_module(x).empty_like(x)
    arrays, sizes = {"x": x, "valid": valid, "W": W, "b": b, "y": y}, {"B": B, "T": T, "C": C, "K": K}
    KERNELS.run("depthwise_conv", per_frames(B, T, C), **arrays, **sizes, left=left, turned=turned)
    return y


def per_frames(B: int, T: int, C: int) -> Grid:
    """Return a warp for every AT_ONCE frames of LANES channels."""
    return per_warp(B * -(-T // AT_ONCE) * -(-C // LANES))


def depthwise_conv_forward(
    x: Array, valid: Array, p: DepthwiseConvParams, *, causal: bool = False, params: bool = True
) -> tuple[Array, DepthwiseConvCache]:
    """Convolve each channel of x (B, T, C) over time; y (B, T, C) is 0 on padded frames."""
    x, valid, (B, T, C), K = contiguous(x), contiguous(valid), x.shape, len(p.W)
    left, padded = K - 1 if causal else (K - 1) // 2, None
    y = convolved(x, valid, p, left, turned=False)
    if params:
        padded = array_module(x).empty((B, T + K - 1, C), x.dtype)
        sizes = {"B": B, "T": T, "C": C, "K": K, "left": left}
        KERNELS.run("pad_frames", per_element(padded.size), x=x, valid=valid, padded=padded, **sizes)
    return y, DepthwiseConvCache(padded, valid, left, p)


def depthwise_conv_backward(dy: Array, cache: DepthwiseConvCache) -> tuple[Array, DepthwiseConvParams | None]:
    """Return dx (B, T, C), 0 on padded frames, and dp for dy (B, T, C): dx is dy convolved with the turned kernel."""
    padded, valid, left, p = cache
    dy, valid, (B, T, C), K = contiguous(dy), contiguous(valid), dy.shape, len(p.W)
    dx = convolved(dy, valid, p, K - 1 - left, turned=True)
    if padded is None:
        return dx, None
    P = -(-T // SLICE)
    slices = array_module(dy).empty((B, P, K + 1, C), dy.dtype)
    arrays = {"padded": padded, "valid": valid, "dy": dy, "slices": slices}
    KERNELS.run("depthwise_conv_slices", per_frames(B * P, K, C), **arrays, B=B, T=T, C=C, K=K, P=P)
    sums = column_sums(slices.reshape(B * P, (K + 1) * C)).reshape(K + 1, C)
    return dx, DepthwiseConvParams(sums[:K], None if p.b is None else sums[K])
