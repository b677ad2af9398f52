"""Twin of a frozen front end of two convolutions for the GPU: the first one makes the patches of the second."""

from minihra.arrays import Array, array_module
from minihra.blocks.subsampling import SubsamplingParams
from minihra.kernels.cuda.conv2d import KERNELS, of_patches
from minihra.kernels.cuda.launch import contiguous, per_warp
from minihra.kernels.cuda.linear import linear_forward
from minihra.layers.conv2d import Conv2dParams


def subsample(features: Array, valid: Array, p: SubsamplingParams, *, scale: float = 1.0) -> tuple[Array, Array]:
    """Map features (B, T, F) to x (B, T', C) and its mask (B, T')."""
    if [type(conv) for conv in p.convs] != [Conv2dParams] * 2:
        return NotImplemented
    x, valid, (B, T, F) = contiguous(features), contiguous(valid), features.shape
    first, second = p.convs
    halves, I, T4, F4 = contiguous(valid[:, ::2]), first.W.shape[3], (T + 3) // 4, (F + 3) // 4
    patches = array_module(x).empty((B * T4 * F4, 9 * I), x.dtype)
    arrays = {"x": x, "valid": valid, "W": contiguous(first.W), "b": first.b, "patches": patches}
    KERNELS.run("first_patches", per_warp(B * T4 * F4), **arrays, B=B, T=T, F=F, T4=T4, F4=F4, I=I)
    a = of_patches(patches, halves, (F + 1) // 2, second, bent=True)
    x, _ = linear_forward(a.reshape(B, T4, -1), p.out, params=False)
    return x if scale == 1 else scale * x, halves[:, ::2]
