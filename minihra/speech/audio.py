"""Recordings from disk."""

import math
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from minihra.arrays import Array


def read_audio(path: str | Path, sample_rate: int) -> Array:
    """Return a recording, in any format that soundfile reads, as samples (n,), float32: mono, at `sample_rate` Hz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no recording, holds no sample, or holds a NaN or an infinity.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a recording that can be read ({error.error_string})") from None
    if not len(samples):
        raise ValueError(f"{path}: the recording is empty")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: the recording holds a NaN or an infinity")
    mono = samples.mean(axis=1)
    if rate == sample_rate:
        return mono
    common = math.gcd(rate, sample_rate)
    return resample_poly(mono, sample_rate // common, rate // common).astype(np.float32)
