"""Twin of the forward of log-mel features: LANES frames at a time, all that is theirs in the cache.

The n = n_fft samples of a frame are taken as M = n/2 complex numbers z_k = x_2k + i x_{2k+1}, whose transform Z gives
that of the real ones (Cooley, Lewis and Welch 1970):

    X_k = (Z_k + conj Z_{M-k}) / 2 - i w^k (Z_k - conj Z_{M-k}) / 2     w = exp(-2 pi i / n), k = 0 ... M, Z_M = Z_0

Z is made in place, from transforms of length 1 to those of 2, 4, ... M (Cooley and Tukey 1965), for which z is laid
down in the order of the reversed bits of k. Those of the even and of the odd terms, A and B of length h, give

    Z_j = A_j + w^{jM/h} B_j,  Z_{j+h} = A_j - w^{jM/h} B_j     j = 0 ... h-1, w^{M/h} = exp(-pi i / h)
"""

from functools import cache, partial
from itertools import pairwise
from math import prod

import numpy as np

from minihra.arrays import Array
from minihra.kernels.cpu.compiled import HALF, ZERO, bounds_for, compiled, log
from minihra.layers.log_mel import FLOOR, LogMelCache
from minihra.threads import share

LANES = 64
"""Frames that are transformed together. LLVM looks before each loop over them whether rows overlap: fewer would not pay
for that.
"""


@cache
def tables_of(n_fft: int, dtype: np.dtype) -> tuple[Array, Array]:
    """Return the numbers 0 ... M - 1 with their bits reversed, and the powers w^0 ... w^M (M + 1, 2)."""
    order, M = np.zeros(1, np.int64), n_fft // 2
    while len(order) < M:
        order = np.concatenate([2 * order, 2 * order + 1])
    angle = np.pi * np.arange(M + 1) / M
    return order, np.stack([np.cos(angle), -np.sin(angle)], axis=1).astype(dtype)


@compiled
def _log_mel(
    samples: Array,
    window: Array,
    filters: Array,
    bands: Array,
    order: Array,
    powers: Array,
    starts: Array,
    lowest: float,
    mel: Array,
    y: Array,
    z: Array,
    power: Array,
) -> None:
    """Let mel and y (N, F) be those of the frames that begin at `starts` (N,) in samples (n,). `bands` (F, 2) are the
    first bin of each filter and the one behind its last: triangles are 0 nearly everywhere.

    Room: z (M, 2, LANES), real parts and imaginary ones, and power (M + 2, LANES), whose last row is a sum of others.
    """
    N, F, W, M = len(starts), len(bands), len(window), len(order)
    for first in range(0, N, LANES):
        last = min(first + LANES, N) - 1  # is taken again in place of those that are missing
        for x in range(2 * M):
            k = order[x // 2]
            for lane in range(LANES):
                z[k, x % 2, lane] = samples[starts[min(first + lane, last)] + x] * window[x] if x < W else ZERO
        half = 1
        while half < M:
            for begin in range(0, M, 2 * half):
                for j in range(half):
                    a, b, c, s = begin + j, begin + j + half, powers[j * (M // half), 0], powers[j * (M // half), 1]
                    for lane in range(LANES):
                        re, im = z[b, 0, lane] * c - z[b, 1, lane] * s, z[b, 0, lane] * s + z[b, 1, lane] * c
                        z[b, 0, lane], z[b, 1, lane] = z[a, 0, lane] - re, z[a, 1, lane] - im
                        z[a, 0, lane] += re
                        z[a, 1, lane] += im
            half *= 2
        for k in range(M + 1):
            a, b, c, s = k % M, (M - k) % M, powers[k, 0], powers[k, 1]
            for lane in range(LANES):
                re, im = z[a, 1, lane] + z[b, 1, lane], z[b, 0, lane] - z[a, 0, lane]  # of -i (Z_k - conj Z_{M-k})
                re, im = re * c - im * s, re * s + im * c
                re, im = (z[a, 0, lane] + z[b, 0, lane] + re) * HALF, (z[a, 1, lane] - z[b, 1, lane] + im) * HALF
                power[k, lane] = re * re + im * im
        for f in range(F):
            for lane in range(LANES):
                power[M + 1, lane] = ZERO
            for k in range(bands[f, 0], bands[f, 1]):
                for lane in range(LANES):
                    power[M + 1, lane] += power[k, lane] * filters[k, f]
            for n in range(first, last + 1):
                mel[n, f] = power[M + 1, n - first]
        for n in range(first, last + 1):
            for f in range(F):
                y[n, f] = log(lowest if mel[n, f] < lowest else mel[n, f])  # NaN stays


def log_mel_forward(
    samples: Array, window: Array, filters: Array, *, hop: int, n_fft: int, floor: float = FLOOR
) -> tuple[Array, LogMelCache]:
    """Map contiguous samples (..., n) to log-mel features (..., T, F); a frame never reads beyond its own window."""
    (*outer, n), W, (bins, F), real = samples.shape, len(window), filters.shape, samples.dtype
    is_power, least = n_fft & (n_fft - 1) == 0 and n_fft >= 2, np.finfo(real).tiny  # for our logarithm
    if not is_power or n_fft < W or bins != n_fft // 2 + 1 or floor < least:
        return NotImplemented
    if not window.dtype == filters.dtype == real:
        return NotImplemented
    B, T = prod(outer), max(0, 1 + (n - W) // hop)
    mel, y = np.empty((B * T, F), real), np.empty((B * T, F), real)
    there = filters != 0
    bands = np.stack([there.argmax(0), bins - there[::-1].argmax(0)], axis=1)
    starts = (n * np.arange(B)[:, None] + hop * np.arange(T)).ravel()
    tables = np.ascontiguousarray(window), np.ascontiguousarray(filters), bands, *tables_of(n_fft, real)
    samples, M = np.ascontiguousarray(samples), n_fft // 2

    def portion(low: int, high: int) -> None:
        its = starts[low:high], real.type(floor), mel[low:high], y[low:high]
        _log_mel(samples.ravel(), *tables, *its, np.empty((M, 2, LANES), real), np.empty((M + 2, LANES), real))

    share([partial(portion, *bound) for bound in pairwise(bounds_for(B * T, mel.size))])
    mel, y = (one.reshape(*outer, T, F) for one in (mel, y))
    return y, LogMelCache(samples, mel, window, filters, hop, n_fft, floor)
