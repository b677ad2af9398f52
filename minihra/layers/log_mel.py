"""Log-mel filterbank features of a waveform, and the gradient back to its samples.

    frame_t = window * samples[t hop : t hop + W]          T = 1 + (samples - W) // hop frames, no centring
    X_t     = rfft(frame_t, padded with zeros to n_fft)
    mel_t   = |X_t|^2 filters                              (n_fft/2+1 bins) -> (F mel bins)
    y_t     = log(max(mel_t, floor))

Filters: F triangles whose F+2 corners are equally spaced on a mel scale m(f), f in Hz; their sides are straight in Hz,
but for "kaldi" in mel:

    "htk"     m = 2595 log10(1 + f / 700), peak 1 (O'Shaughnessy 1987; The HTK Book, section 5.4)
    "slaney"  m = f / (200/3) below 1000 Hz, 15 + ln(f / 1000) / (ln(6.4) / 27) from there on; area 1, that is peak
              2 / (f_{i+2} - f_i) (Slaney 1998, Auditory Toolbox, version 2; librosa's default)
    "kaldi"   m = 1127 ln(1 + f / 700), peak 1 (Povey et al. 2011, The Kaldi speech recognition toolkit)
"""

from typing import NamedTuple

import numpy as np

from minihra.arrays import Array, array_module, as_strided

FLOOR = 1e-10
SCALES = ("htk", "slaney", "kaldi")
KNEE = 15  # mel: 1000 Hz, where Slaney's scale turns logarithmic
STEP = np.log(6.4) / 27  # by which ln f grows in one mel above the knee


class LogMelCache(NamedTuple):
    """What `log_mel_backward` reads."""

    samples: Array  # (..., n)
    mel: Array  # (..., T, F)
    window: Array  # (W,)
    filters: Array  # (n_fft//2+1, F)
    hop: int
    n_fft: int
    floor: float


def hann_window(W: int) -> Array:
    """Return the periodic Hann window (W,), float64."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(W) / W)


def hz_to_mel(hz: Array, scale: str) -> Array:
    """Return frequencies in mel on one of SCALES."""
    if scale == "slaney":
        # The maximum keeps the logarithm, which np.where also takes of the frequencies below the knee, away from 0.
        return np.where(hz < 1000, hz * 3 / 200, KNEE + np.log(np.maximum(hz, 1000) / 1000) / STEP)
    return 2595 * np.log10(1 + hz / 700) if scale == "htk" else 1127 * np.log(1 + hz / 700)


def mel_to_hz(mel: Array, scale: str) -> Array:
    """Return the inverse of `hz_to_mel`."""
    if scale == "slaney":
        return np.where(mel < KNEE, mel * 200 / 3, 1000 * np.exp((mel - KNEE) * STEP))
    return 700 * ((10 ** (mel / 2595) if scale == "htk" else np.exp(mel / 1127)) - 1)


def mel_corners(F: int, low: float, high: float, scale: str = "htk") -> Array:
    """Return the corners (F+2,), in Hz, float64, of F filters between `low` and `high` Hz.

    Raises:
        ValueError: an unknown scale; the message lists the known ones.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown mel scale {scale!r}; known: {', '.join(SCALES)}")
    return mel_to_hz(np.linspace(*hz_to_mel(np.array([low, high]), scale), F + 2), scale)


def mel_filters(sample_rate: int, n_fft: int, F: int, low: float, high: float, scale: str = "htk") -> Array:
    """Return triangular filters (n_fft//2+1, F) between `low` and `high` Hz, float64.

    Raises:
        ValueError: an unknown scale; the message lists the known ones.
    """
    corner = mel_corners(F, low, high, scale)
    bins = np.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)
    if scale == "kaldi":
        corner, bins = hz_to_mel(corner, scale), hz_to_mel(bins, scale)
    rising = (bins - corner[:-2]) / (corner[1:-1] - corner[:-2])
    falling = (corner[2:] - bins) / (corner[2:] - corner[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    return filters * (2 / (corner[2:] - corner[:-2])) if scale == "slaney" else filters


def frame_view(samples: Array, W: int, hop: int) -> Array:
    """View contiguous samples (..., n) as overlapping frames (..., T, W)."""
    T = max(0, 1 + (samples.shape[-1] - W) // hop)
    *outer, one = samples.strides
    return as_strided(samples, (*samples.shape[:-1], T, W), (*outer, hop * one, one))


def spectrum_of(samples: Array, window: Array, hop: int, n_fft: int) -> Array:
    """Return the spectrum (..., T, n_fft//2+1), complex, of contiguous samples (..., n)."""
    frames = frame_view(samples, len(window), hop) * window  # (1)
    return array_module(samples).fft.rfft(frames, n_fft)  # (2)


def log_mel_forward(
    samples: Array, window: Array, filters: Array, *, hop: int, n_fft: int, floor: float = FLOOR
) -> tuple[Array, LogMelCache]:
    """Map contiguous samples (..., n) to log-mel features (..., T, F); a frame never reads beyond its own window.

    Raises:
        ValueError: the window is longer than n_fft, so that the transform would lose its end.
    """
    xp = array_module(samples)
    if len(window) > n_fft:
        raise ValueError(f"a window of {len(window)} samples does not fit into a transform of {n_fft}")
    spectrum = spectrum_of(samples, window, hop, n_fft)  # (1) (2)
    power = spectrum.real**2 + spectrum.imag**2  # (3)
    mel = power @ filters  # (4)
    y = xp.log(xp.maximum(mel, floor))  # (5)
    return y, LogMelCache(samples, mel, window, filters, hop, n_fft, floor)


def log_mel_backward(dy: Array, cache: LogMelCache) -> Array:
    """Return dsamples (..., n) for dy (..., T, F). Window and filters are constants.

    The spectrum, a dozen times as large as the features, is computed anew: features are all that most callers want.
    """
    samples, mel, window, filters, hop, n_fft, floor = cache
    xp, spectrum = array_module(dy), spectrum_of(samples, window, hop, n_fft)
    dmel = xp.where(mel > floor, dy / xp.maximum(mel, floor), 0)  # (5)
    dpower = dmel @ filters.T  # (4)
    dspectrum = 2 * dpower * spectrum  # (3)
    # The inverse transform of a real signal counts every bin twice but the first and, for even n_fft, the last, and
    # divides by n_fft; the transpose of rfft counts every bin once.
    dspectrum[..., 1 : (n_fft + 1) // 2] *= 0.5
    dframes = xp.fft.irfft(dspectrum, n_fft)[..., : len(window)] * n_fft * window  # (2) (1)
    dsamples = xp.zeros(samples.shape, dy.dtype)
    for t in range(dy.shape[-2]):
        dsamples[..., t * hop : t * hop + len(window)] += dframes[..., t, :]  # (1)
    return dsamples
