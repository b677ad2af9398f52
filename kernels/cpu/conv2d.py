"""Twin of the depthwise convolution over time and frequency: no padded copy is made where no kernel trains."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch
from minihra.layers.conv2d import DepthwiseConv2dCache, DepthwiseConv2dParams


@compiled
def _convolve(x: Array, valid: Array, W: Array, b: Array, y: Array) -> None:
    B, T, F, C = x.shape
    for row in range(B):
        for t in range(y.shape[1]):
            for f in range(y.shape[2]):
                y[row, t, f] = 0
                if valid[row, 2 * t]:
                    y[row, t, f] = b
                    for i in range(max(0, 1 - 2 * t), min(3, T + 1 - 2 * t)):
                        for j in range(max(0, 1 - 2 * f), min(3, F + 1 - 2 * f)):
                            if valid[row, 2 * t + i - 1]:
                                for c in range(C):
                                    y[row, t, f, c] += W[i, j, c] * x[row, 2 * t + i - 1, 2 * f + j - 1, c]


def depthwise_conv2d_forward(
    x: Array, valid: Array, p: DepthwiseConv2dParams, *, params: bool = True
) -> tuple[Array, DepthwiseConv2dCache]:
    """Convolve each channel of x (B, T, F, C) to y (B, ceil(T/2), ceil(F/2), C), which is 0 on padded frames."""
    xp = array_module(x)
    B, T, F, C = x.shape
    y, padded = xp.empty((B, (T + 1) // 2, (F + 1) // 2, C), x.dtype), None
    launch(_convolve, xp.ascontiguousarray(x), valid, xp.ascontiguousarray(p.W), p.b, y)
    if params:
        padded = xp.zeros((B, T + 2, F + 2, C), x.dtype)
        padded[:, 1 : T + 1, 1 : F + 1] = xp.where(valid[:, :, None, None], x, 0)
    return y, DepthwiseConv2dCache(padded, F, valid, p)
