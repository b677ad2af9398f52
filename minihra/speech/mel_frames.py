"""Log-mel energies of long recordings, block by block, and the checks of settings that all open features share.

Frames are given in float64: where a mel bin is 80 dB below the loudest, float32 loses its third digit. Blocks keep the
spectrum of an hour out of memory.
"""

from collections.abc import Callable

import numpy as np

from minihra.arrays import Array
from minihra.blocks.limits import must_be_whole
from minihra.layers.log_mel import frame_view

BLOCK = 4096  # frames, 41 s and some 30 MB at the usual 10 ms and 512 points
MOST, MOST_RATE = 2**16, 2**20
"""The largest settings: of windows, hops and bins (4 s of samples at 16 kHz), and of sample rates."""


def in_blocks(samples: Array, window: int, hop: int, log_mel: Callable[[Array], Array]) -> Array:
    """Return features (T, F), float32, of samples (n,), T = 1 + (n - window) // hop > 0.

    `log_mel` maps frames (t, window), float64, to features (t, F) of any float type.
    """
    frames = frame_view(np.ascontiguousarray(samples, np.float32), window, hop)
    starts = range(0, len(frames), BLOCK)
    return np.concatenate([log_mel(frames[t : t + BLOCK].astype(np.float64)).astype(np.float32) for t in starts])


def power(frames: Array, n_fft: int) -> Array:
    """Return |X|^2 (t, n_fft//2+1) of frames (t, W), zeros behind them: where zeros stand turns only phases."""
    spectrum = np.fft.rfft(frames, n_fft)
    return spectrum.real**2 + spectrum.imag**2


def normalise_bins(features: Array, *, before: float = 0.0, after: float = 0.0) -> Array:
    """Return features (T, F), T > 1, with mean 0 and variance 1 over the frames, each bin on its own, float32.

    The variance divides by T - 1; `before` is added to it, and `after` to its root.
    """
    centred = features - features.mean(0, dtype=np.float64)
    deviation = np.sqrt(np.square(centred).sum(0) / (len(features) - 1) + before) + after
    return (centred / deviation).astype(np.float32)


def require_samples(samples: Array, least: int, what: str) -> None:
    """Raise ValueError if a recording has fewer than the `least` samples that `what` takes."""
    if len(samples) < least:
        raise ValueError(f"the recording has {len(samples)} samples, but {what} takes {least}")


def require_whole(settings: object, **least: int) -> None:
    """Raise ValueError if an attribute of `settings` is no whole number of at least the one given, or is absurd."""
    for name, smallest in least.items():
        must_be_whole(name, getattr(settings, name), smallest, MOST_RATE if name == "sample_rate" else MOST)


def require_transform(window: int, n_fft: int) -> None:
    """Raise ValueError if a window does not fit into an even transform."""
    if n_fft % 2 or n_fft < window:
        raise ValueError(f"n_fft must be even and at least the window, {window}, got {n_fft}")


def require_setting(settings: dict, name: str, *known: object) -> None:
    """Raise ValueError if `settings` has a `name` that is none of the `known` values: it would change the features."""
    if name in settings and settings[name] not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {settings[name]!r}")


def renamed(settings: dict, names: dict[str, str]) -> dict:
    """Return the settings that are present, under their names here; names: there -> here."""
    return {here: settings[there] for there, here in names.items() if there in settings}


def times(window: int, hop: float, sample_rate: int) -> str:
    """Return a window in samples and a hop in seconds in words."""
    return f"{1000 * window / sample_rate:g} ms every {1000 * hop:g} ms"
