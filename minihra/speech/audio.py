"""Recordings from disk."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from minihra.arrays import Array

UNKNOWN_LENGTH = 0x7FFFF000  # bytes; what SoX writes to a pipe, and FFmpeg more


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


def at_speed(samples: Array, speed: float) -> Array:
    """Return samples (n,) played `speed` times as fast, and so higher: about n / speed of them, float32.

    Ko et al. 2015, Audio augmentation for speech recognition (Interspeech).

    Raises:
        ValueError: the speed is not between 0.5 and 2.
    """
    if not 0.5 <= speed <= 2:
        raise ValueError(f"a speed must be between 0.5 and 2, got {speed}")
    ratio = Fraction(speed).limit_denominator(100)
    if ratio == 1:
        return samples
    return resample_poly(samples, ratio.denominator, ratio.numerator).astype(np.float32)


def missing_bytes(path: Path) -> int:
    """Return how many bytes of sound a WAV or AIFF file promises and lacks.

    libsndfile reads such a file to its end without a word; of other formats it tells. Both are chunks, each a name and
    a length in 4 bytes and then its content, padded to an even length. Programs that write to a pipe cannot know the
    length of the sound, and leave 0 or almost 2^31 or 2^32 in its place.
    """
    with path.open("rb") as file:
        order = {b"RIFF": "little", b"FORM": "big"}.get(file.read(4))
        end, start = path.stat().st_size, 12
        while order and start + 8 <= end:
            file.seek(start)
            name, length = file.read(4), int.from_bytes(file.read(4), order)
            if name in (b"data", b"SSND"):
                return max(0, start + 8 + length - end) if length < UNKNOWN_LENGTH else 0
            start += 8 + length + length % 2
    return 0
