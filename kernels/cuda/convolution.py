"""Twins for the GPU of the convolution module of a frozen model, minihra/blocks/convolution.py: between the gate and
the last map, depthwise convolution, norm and swish are one kernel forward and one backward.
"""

from minihra.arrays import Array, array_module
from minihra.blocks.convolution import ConvolutionCache, ConvolutionParams
from minihra.kernels.cuda.activations import glu_backward, glu_forward
from minihra.kernels.cuda.conv import KERNELS, per_frames
from minihra.kernels.cuda.launch import contiguous
from minihra.kernels.cuda.linear import linear_backward, linear_forward
from minihra.kernels.cuda.norms import layer_norm_backward, layer_norm_forward
from minihra.layers.activations import SwishCache
from minihra.layers.conv import DepthwiseConvCache, DepthwiseConvParams
from minihra.layers.norms import EPS, BatchNormParams, BatchStatistics, RunningNormCache, Total

Middle = tuple[DepthwiseConvCache, RunningNormCache, SwishCache]


def middle_forward(
    x: Array, valid: Array, statistics: BatchStatistics, p: DepthwiseConvParams, norm: BatchNormParams, causal: bool
) -> tuple[Array, Middle]:
    """Return swish(norm(depthwise(x))) for x (B, T, C), and the caches of the three."""
    xp, valid, (B, T, C), K = array_module(x), contiguous(valid), x.shape, len(p.W)
    left = K - 1 if causal else (K - 1) // 2
    y, slope, scale = xp.empty_like(x), xp.empty_like(x), xp.empty(C, x.dtype)
    arrays = {"x": x, "valid": valid, "W": contiguous(p.W), "bias": p.b, "scale": scale, "y": y, "slope": slope}
    sizes = {"B": B, "T": T, "C": C, "K": K, "left": left, "eps": EPS}
    grid = per_frames(B, T, C)
    KERNELS.run("conv_norm_swish_forward", grid, **arrays, **statistics._asdict(), **norm._asdict(), **sizes)
    caches = DepthwiseConvCache(None, valid, left, p), RunningNormCache(None, scale, norm), SwishCache(slope)
    return y, caches


def middle_backward(dy: Array, caches: Middle) -> Array:
    """Return dx (B, T, C), 0 on padded frames, for dy (B, T, C)."""
    (_, valid, left, p), (_, scale, norm), (slope,) = caches
    dy, (B, T, C) = contiguous(dy), dy.shape
    W, dx = contiguous(p.W), array_module(dy).empty_like(dy)
    arrays = {"dy": dy, "slope": slope, "valid": contiguous(valid), "W": W, "g": norm.g, "scale": scale, "dx": dx}
    KERNELS.run("conv_norm_swish_backward", per_frames(B, T, C), **arrays, B=B, T=T, C=C, K=len(W), left=left)
    return dx


def convolution_forward(
    x: Array,
    valid: Array,
    statistics: BatchStatistics | None,
    p: ConvolutionParams,
    *,
    causal: bool = False,
    activation: str = "swish",
    eps: float = EPS,
    total: Total | None = None,
    params: bool = True,
) -> tuple[Array, BatchStatistics | None, ConvolutionCache]:
    """Map x (B, T, C) to the branch u (B, T, C), where it is frozen and has a running norm and swish."""
    if params or total is not None or activation != "swish" or not isinstance(p.inner_norm, BatchNormParams):
        return NotImplemented
    a, norm = layer_norm_forward(x, p.norm, eps=eps, params=False)
    a, pointwise1 = linear_forward(a, p.pointwise1, params=False)
    a, glu = glu_forward(a)
    a, middle = middle_forward(a, valid, statistics, p.depthwise, p.inner_norm, causal)
    u, pointwise2 = linear_forward(a, p.pointwise2, params=False)
    return u, statistics, ConvolutionCache(norm, pointwise1, glu, *middle, pointwise2)


def convolution_backward(du: Array, cache: ConvolutionCache) -> tuple[Array, ConvolutionParams | None]:
    """Return dx (B, T, C), through the branch alone, and dp, None, for du (B, T, C)."""
    middle = depthwise, inner_norm, bend = cache.depthwise, cache.inner_norm, cache.activation
    if depthwise.padded is not None or not isinstance(inner_norm, RunningNormCache) or not isinstance(bend, SwishCache):
        return NotImplemented
    da, _ = linear_backward(du, cache.pointwise2)
    da = middle_backward(da, middle)
    da = glu_backward(da, cache.glu)
    da, _ = linear_backward(da, cache.pointwise1)
    dx, _ = layer_norm_backward(da, cache.norm)
    return dx, None
