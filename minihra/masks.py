"""The one padding mask: `valid`, bool of shape (B, T), True = real frame. Frames are padded at the end."""

from types import ModuleType

import numpy as np

from minihra.arrays import Array, array_module


def valid_from_lengths(lengths: Array, frames: int, xp: ModuleType = np) -> Array:
    """Return the mask (B, frames) of utterances with `lengths` (B,) real frames each.

    Lengths that are arrays of `xp` already are not looked at, as that would wait for a GPU.

    Raises:
        ValueError: a length is negative or larger than `frames`.
    """
    if xp is not np and isinstance(lengths, xp.ndarray):
        return xp.arange(frames)[None, :] < lengths[:, None]
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths < 0).any() or (lengths > frames).any():
        raise ValueError(f"lengths must be one number from 0 to {frames} for each utterance, got {lengths.tolist()}")
    return xp.arange(frames)[None, :] < xp.asarray(lengths)[:, None]


def hide(x: Array, valid: Array) -> Array:
    """Return `x` (B, T, ...) with padded frames replaced by 0, whatever they hold, NaN too."""
    return array_module(x).where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, 0)


def halve(valid: Array) -> Array:
    """Return the mask (B, ceil(T/2)) after a stride of 2: n frames become ceil(n/2)."""
    return valid[:, ::2]


def strided(valid: Array, kernel: int, stride: int, pad: int) -> Array:
    """Return the mask (B, T2) after a strided convolution: an utterance of n frames, `pad` zeros on both sides of it,
    keeps the outputs whose `kernel` inputs lie inside, (n + 2 pad - kernel)//stride + 1. One without frames keeps none.
    """
    xp, frames = array_module(valid), valid.sum(1)[:, None]
    outputs = max(0, (valid.shape[1] + 2 * pad - kernel) // stride + 1)
    last = xp.arange(outputs) * stride + (kernel - 2 * pad)  # how many frames each output reaches into, counted from 1
    return (frames > 0) & (last[None, :] <= frames)
