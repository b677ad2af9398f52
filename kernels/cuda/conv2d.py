"""Twins of minihra/layers/conv2d.py for the GPU. A full convolution is a product of the patches that its outputs read;
that of a single channel, the features, needs no patches: it is like a depthwise one.
"""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_element, per_warp
from minihra.kernels.cuda.products import product
from minihra.kernels.cuda.sums import column_sums
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dCache, DepthwiseConv2dParams

KERNELS = Source("conv2d.cu")
SLICE = 64  # outputs that a thread adds up for the gradient of a depthwise kernel


def sizes_of(valid: Array, F: int) -> dict[str, int]:
    """Return the sizes of the inputs and outputs of a convolution, as the kernels name them."""
    B, T = valid.shape
    return {"B": B, "T": T, "F": F, "T2": (T + 1) // 2, "F2": (F + 1) // 2}


def patches_of(x: Array, valid: Array) -> Array:
    """Return, one a row, the nine elements that each output reads of x (B, T, F, I): (B T2 F2, 9 I)."""
    x, sizes, I = contiguous(x), sizes_of(valid, x.shape[2]), x.shape[3]
    N = sizes["B"] * sizes["T2"] * sizes["F2"]
    patches = array_module(x).empty((N, 9 * I), x.dtype)
    KERNELS.run("conv2d_patches", per_warp(N), x=x, valid=valid, patches=patches, **sizes, I=I)
    return patches


def of_patches(patches: Array, valid: Array, F: int, p: Conv2dParams, *, bent: bool) -> Array:
    """Return y (B, T2, F2, O) of patches (B T2 F2, 9 I) of what has F frequencies; relu follows if it is `bent`."""
    sizes, (*_, I, O) = sizes_of(valid, F), p.W.shape
    rows = product(patches, p.W.reshape(9 * I, O))
    KERNELS.run("conv2d_finish", per_warp(len(rows)), y=rows, b=p.b, valid=valid, **sizes, O=O, bent=bent)
    return rows.reshape(sizes["B"], sizes["T2"], sizes["F2"], O)


def each_channel(x: Array, valid: Array, W: Array, b: Array) -> Array:
    """Return y (B, T2, F2, C): each channel of x (B, T, F, C), or for all the only one of x (B, T, F, 1), convolved."""
    x, W, sizes, C = contiguous(x), contiguous(W), sizes_of(valid, x.shape[2]), W.shape[-1]
    y = array_module(x).empty((sizes["B"], sizes["T2"], sizes["F2"], C), x.dtype)
    arrays = {"x": x, "valid": valid, "W": W, "b": b, "y": y}
    KERNELS.run("depthwise_conv2d_forward", per_warp(y.size // C), **arrays, **sizes, I=x.shape[3], C=C)
    return y


def each_channel_gradients(x: Array, valid: Array, dy: Array) -> tuple[Array, Array]:
    """Return dW (9, C) and db (C,) of `each_channel` for dy (B, T2, F2, C)."""
    x, sizes, C = contiguous(x), sizes_of(valid, x.shape[2]), dy.shape[3]
    P = max(1, -(-(dy.size // C) // SLICE))
    slices = array_module(dy).empty((P, 10 * C), dy.dtype)
    arrays = {"x": x, "valid": valid, "dy": dy, "slices": slices}
    KERNELS.run("depthwise_conv2d_slices", per_element(P * C), **arrays, **sizes, I=x.shape[3], C=C, P=P)
    sums = column_sums(slices).reshape(10, C)
    return sums[:9], sums[9]


def conv2d_forward(
    x: Array, valid: Array, p: Conv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, Conv2dCache]:
    """Convolve x (B, T, F, I) to y (B, ceil(T/2), ceil(F/2), O), which is 0 on padded frames."""
    valid, F, one = contiguous(valid), x.shape[2], p.W.shape[2] == 1
    y = each_channel(x, valid, p.W, p.b) if one else of_patches(patches_of(x, valid), valid, F, p, bent=False)
    return y, Conv2dCache(x if params else None, F, valid, p, below)


def conv2d_backward(dy: Array, cache: Conv2dCache) -> tuple[Array | None, Conv2dParams | None]:
    """Return dx (B, T, F, I), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), O)."""
    x, F, valid, p, below = cache
    xp, valid, (*_, I, O), dx, dp = array_module(dy), contiguous(valid), p.W.shape, None, None
    dy, sizes = contiguous(dy), sizes_of(valid, F)
    rows = xp.empty((dy.size // O, O), dy.dtype)
    KERNELS.run("hide_frames", per_warp(len(rows)), dy=dy, valid=valid, rows=rows, **sizes, O=O)
    if x is not None and I == 1:
        dW, db = each_channel_gradients(x, valid, dy)
        dp = Conv2dParams(dW.reshape(p.W.shape), db)
    elif x is not None:
        dW = product(patches_of(x, valid).T, rows)
        dp = Conv2dParams(dW.reshape(p.W.shape), column_sums(rows))
    if below:
        dpatches = product(rows, p.W.reshape(9 * I, O).T)
        dx = xp.empty((*valid.shape, F, I), dy.dtype)
        KERNELS.run("conv2d_backward", per_warp(dx.size // I), dpatches=dpatches, valid=valid, dx=dx, **sizes, I=I)
    return dx, dp


def depthwise_conv2d_forward(
    x: Array, valid: Array, p: DepthwiseConv2dParams, *, params: bool = True, below: bool = True
) -> tuple[Array, DepthwiseConv2dCache]:
    """Convolve each channel of x (B, T, F, C) to y (B, ceil(T/2), ceil(F/2), C), which is 0 on padded frames."""
    valid = contiguous(valid)
    y = each_channel(x, valid, p.W, p.b)
    return y, DepthwiseConv2dCache(x if params else None, x.shape[2], valid, p, below)


def depthwise_conv2d_backward(
    dy: Array, cache: DepthwiseConv2dCache
) -> tuple[Array | None, DepthwiseConv2dParams | None]:
    """Return dx (B, T, F, C), 0 on padded frames, and dp for dy (B, ceil(T/2), ceil(F/2), C)."""
    x, F, valid, p, below = cache
    dy, valid, C, dx, dp = contiguous(dy), contiguous(valid), dy.shape[3], None, None
    if x is not None:
        dW, db = each_channel_gradients(x, valid, dy)
        dp = DepthwiseConv2dParams(dW.reshape(p.W.shape), db)
    if below:
        dx, W = array_module(dy).empty((*valid.shape, F, C), dy.dtype), contiguous(p.W)
        arrays, sizes = {"dy": dy, "valid": valid, "W": W, "dx": dx}, sizes_of(valid, F)
        KERNELS.run("depthwise_conv2d_backward", per_warp(dx.size // C), **arrays, **sizes, C=C)
    return dx, dp
