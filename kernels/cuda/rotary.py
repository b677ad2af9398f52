"""Twin of minihra/layers/rotary.py for the GPU: one pass, forth and back."""

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import Source, contiguous, per_warp
from minihra.layers.rotary import RotaryCache, RotaryTable

KERNELS = Source("rotary.cu")


def turn(x: Array, table: RotaryTable, direction: int) -> Array:
    """Turn x (B, T, A, D) forth (1) or back (-1)."""
    x, (B, T, A, D) = contiguous(x), x.shape
    y = array_module(x).empty_like(x)
    sizes = {"B": B, "T": T, "A": A, "D": D, "direction": direction}
    KERNELS.run("turn", per_warp(B * T * A), x=x, cosine=table.cos, sine=table.sin, y=y, **sizes)
    return y


def rotary_forward(x: Array, table: RotaryTable) -> tuple[Array, RotaryCache]:
    """Turn the queries or keys x (B, T, A, D), each head in the same way."""
    return turn(x, table, 1), RotaryCache(table)


def rotary_backward(dy: Array, cache: RotaryCache) -> Array:
    """Return dx (B, T, A, D) for dy (B, T, A, D)."""
    return turn(dy, cache.table, -1)
