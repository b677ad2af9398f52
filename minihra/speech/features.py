"""Log-mel features of recordings: what the model sees."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Protocol

import numpy as np

from minihra.arrays import Array
from minihra.device import filled
from minihra.layers.log_mel import SCALES, hann_window, mel_filters
from minihra.ops import log_mel_forward

FLOORS = {"htk": 1e-3, "slaney": 1e-5, "kaldi": 1e-3}
"""The least mel energy that counts, for samples of power 1."""


class Features(Protocol):
    """What turns a recording into what a model sees."""

    sample_rate: int  # Hz, of the samples that it takes
    mels: int  # F, numbers in a frame
    hop: float  # seconds from frame to frame

    def __call__(self, samples: Array) -> Array:
        """Return features (T, F), float32, of samples (n,).

        Raises:
            ValueError: the recording is too short.
        """
        ...

    def describe(self) -> str:
        """Return a line for people."""
        ...


@dataclass(frozen=True)
class LogMel:
    """Log-mel features, normalised to mean 0 and variance 1 over all frames and mel bins of the recording together.

    A mean for each bin would take the vowel out of a recording that is hardly longer than one. The samples are first
    brought to a power of 1, so that `floor`, the least mel energy that counts, means the same for loud and for quiet
    voices. Times are in seconds, frequencies in Hz; `high=None` is half the sample rate. Slaney's filters have area 1
    instead of peak 1, so that mel energies are some hundred times smaller, and so is the floor unless one is given.

    Raises:
        ValueError: a setting is impossible.
    """

    sample_rate: int
    mels: int = 40
    window: float = 0.025
    hop: float = 0.010
    low: float = 20.0
    high: float | None = None
    silence: float = 0.0  # seconds of silence added at both ends
    floor: float | None = None  # FLOORS[scale]
    scale: str = "htk"  # or "slaney" or "kaldi"

    def __post_init__(self) -> None:
        for setting in ("sample_rate", "mels"):
            value = getattr(self, setting)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{setting} must be a whole number of at least 1, got {value!r}")
        for setting, least in (("window", 2), ("hop", 1)):  # a Hann window of one sample is 0
            value = getattr(self, setting)
            if not (0 < value < math.inf and round(value * self.sample_rate) >= least):
                raise ValueError(
                    f"{setting} must last at least {least} samples of {self.sample_rate} Hz, got {value} s"
                )
        half = self.sample_rate / 2
        if self.high is not None and not 0 < self.high <= half:
            raise ValueError(f"high must be above 0 and at most half the sample rate, {half} Hz, got {self.high}")
        top = half if self.high is None else self.high
        if not 0 <= self.low < top:
            raise ValueError(f"low must be at least 0 and below {top} Hz, got {self.low}")
        if not 0 <= self.silence < math.inf:
            raise ValueError(f"silence must be at least 0 and finite, got {self.silence}")
        if self.floor is not None and not 0 < self.floor < math.inf:
            raise ValueError(f"floor must be positive and finite, got {self.floor}")
        if self.scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {self.scale!r}")

    @cached_property
    def _constants(self) -> tuple[Array, Array, int]:
        """The window (W,), the filters (n_fft//2+1, F) and n_fft."""
        window = hann_window(round(self.window * self.sample_rate))
        n_fft = 1 << (len(window) - 1).bit_length()
        high = self.sample_rate / 2 if self.high is None else self.high
        filters = mel_filters(self.sample_rate, n_fft, self.mels, self.low, high, self.scale)
        return window.astype(np.float32), filters.astype(np.float32), n_fft

    def describe(self) -> str:
        """Return a line for people."""
        window, hop = round(1000 * self.window, 1), round(1000 * self.hop, 1)
        return f"{self.mels} log-mel ({self.scale}), {window:g} ms every {hop:g} ms, normalised over the recording"

    def __call__(self, samples: Array) -> Array:
        """Return features (T, mels), float32, of samples (n,).

        Raises:
            ValueError: the recording is shorter than one window.
        """
        window, filters, n_fft = self._constants
        if len(samples) < len(window):
            raise ValueError(
                f"the recording has {len(samples)} samples, but one window of features takes {len(window)}"
            )
        samples = samples / (np.sqrt(np.mean(samples * samples)) + 1e-8)
        samples = np.pad(samples, round(self.silence * self.sample_rate)).astype(np.float32)
        hop = round(self.hop * self.sample_rate)
        floor = FLOORS[self.scale] if self.floor is None else self.floor
        features, _ = log_mel_forward(samples, window, filters, hop=hop, n_fft=n_fft, floor=floor)
        return (features - features.mean()) / (features.std() + 1e-3)


def pad(features: Sequence[Array], xp: ModuleType = np) -> tuple[Array, Array]:
    """Return a batch (B, T, F) in `xp` of features (T_b, F), padded with 0 to the longest, and the lengths (B,)."""
    lengths = np.array([len(one) for one in features])

    def fill(batch: Array) -> None:
        for row, one in zip(batch, features, strict=True):
            row[: len(one)] = one
            row[len(one) :] = 0

    shape = len(features), int(lengths.max()), features[0].shape[1]
    return filled(xp, shape, features[0].dtype, fill), lengths
