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
        ValueError: it is no recording, is cut short, holds no sample, or holds a NaN or an infinity.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a recording' if Path(path).is_dir() else 'no such file'}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path}: not a recording that can be read ({error.error_string})") from None
    if missing := missing_bytes(Path(path)):
        raise ValueError(f"{path}: the recording is truncated, {missing} bytes of it are missing")
    if not len(samples):
        raise ValueError(f"{path}: the recording is empty")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: the recording holds a NaN or an infinity")
    mono = samples.mean(axis=1)
    if rate == sample_rate:
        return mono
    common = math.gcd(rate, sample_rate)
    return resample_poly(mono, sample_rate // common, rate // common).astype(np.float32)


def missing_bytes(path: Path) -> int:
    """Return how many bytes of a WAV or AIFF file its header promises and the file lacks.

    libsndfile reads such a file to its end without a word; of other formats it tells. Programs that write to a pipe
    cannot know the size, and leave 0 or the largest number in its place.
    """
    with path.open("rb") as file:
        kind, size = file.read(4), file.read(4)
    order = {b"RIFF": "little", b"FORM": "big"}.get(kind)
    promised = int.from_bytes(size, order) if order else 0
    return 0 if promised in (0, 2**32 - 1) else max(0, promised + 8 - path.stat().st_size)
