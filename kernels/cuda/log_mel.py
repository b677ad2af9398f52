"""Twin of the forward of minihra/layers/log_mel.py for the GPU: a block for each frame."""

from math import prod

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cuda import launch
from minihra.kernels.cuda.launch import LANES, Grid, Source, contiguous, per_warp
from minihra.layers.log_mel import FLOOR, LogMelCache

KERNELS = Source("log_mel.cu")
MOST_POINTS = 2048  # of a transform, in shared memory
MOST_BLOCKS = 2048  # which share the frames


def log_mel_forward(
    samples: Array, window: Array, filters: Array, *, hop: int, n_fft: int, floor: float = FLOOR
) -> tuple[Array, LogMelCache]:
    """Map contiguous samples (..., n) to log-mel features (..., T, F); a frame never reads beyond its own window."""
    xp, real, W, (bins, F), n = array_module(samples), samples.dtype, len(window), filters.shape, samples.shape[-1]
    is_power = n_fft & (n_fft - 1) == 0 and 2 <= n_fft <= MOST_POINTS
    if not is_power or n_fft < W or bins != n_fft // 2 + 1 or not window.dtype == filters.dtype == real:
        return NotImplemented
    T, M, B = max(0, 1 + (n - W) // hop), n_fft // 2, prod(samples.shape[:-1])
    mel, y = xp.empty((*samples.shape[:-1], T, F), real), xp.empty((*samples.shape[:-1], T, F), real)
    threads = min(launch.THREADS, max(LANES, M // 2))  # a stage of the transform has M/2 pairs
    powers, bands = xp.empty((bins, 2), real), xp.empty((F, 2), np.int32)
    tables = {"filters": contiguous(filters), "powers": powers, "bands": bands, "M": M, "F": F}
    KERNELS.run("log_mel_tables", per_warp(max(F, bins // LANES)), **tables)
    KERNELS.run(
        "log_mel_forward",
        Grid((min(max(1, B * T), MOST_BLOCKS),), (threads,), shared=4 * M * real.itemsize),
        **{"samples": contiguous(samples), "window": contiguous(window), **tables},
        **{"mel": mel, "y": y, "B": B, "T": T, "n": n, "W": W, "hop": hop, "lowest": floor},
    )
    return y, LogMelCache(samples, mel, window, filters, hop, n_fft, floor)
