"""The features of models that bring their own front end: hama's, with filters in its file, and the waveform itself.

    HamaFeatures       y = ln(max(|STFT(x)|^2 filters, 1e-10)),   x clipped to [-1, 1], mirrored at both ends
    WaveformFeatures   y = (x - mean x) / sqrt(var x + 1e-7),   F = 1

The STFT has windows of 400 samples, centred at t 160. hama's file brings its kernels, whose sines are off by 1e-4, and
its model is given the features in float16. A step of that type is a hundredth of a feature, and moves log probabilities
by as much: so the sums here run in hama's order, one sample after the other in float32.
Sources: the tensors `stft_real_kernel`, `stft_imag_kernel` and `mel_fb` in the file of hama 1.7, and what its engine
gives; Wav2Vec2FeatureExtractor in transformers 5.24, whose names of settings `from_settings` takes.
"""

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from minihra.arrays import Array
from minihra.speech.mel_frames import (
    in_blocks,
    renamed,
    require_samples,
    require_setting,
    require_whole,
    times,
)

HAMA_FLOOR = 1e-10
HAMA_WINDOW = 400
HAMA_HOP = 160


@dataclass(frozen=True, eq=False)
class HamaFeatures:
    """The features of hama's phoneme model, by the kernels (400, 201) and the mel `filters` (201, F) of its file.

    Raises:
        ValueError: kernels or filters of another shape.
    """

    cosine: Array
    sine: Array
    filters: Array
    sample_rate: int = field(default=16000, init=False)

    def __post_init__(self) -> None:
        bins = HAMA_WINDOW // 2 + 1
        for name, shape in (("cosine", (HAMA_WINDOW, bins)), ("sine", (HAMA_WINDOW, bins))):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, got {getattr(self, name).shape}")
        if self.filters.ndim != 2 or len(self.filters) != bins:
            raise ValueError(f"filters must have the shape ({bins}, mels), got {self.filters.shape}")

    @property
    def mels(self) -> int:
        """The width F."""
        return self.filters.shape[1]

    @property
    def hop(self) -> float:
        """Seconds from one frame to the next."""
        return HAMA_HOP / self.sample_rate

    def describe(self) -> str:
        """Return a line for people."""
        return f"{self.mels} log-mel (hama), {times(HAMA_WINDOW, self.hop, self.sample_rate)}, not normalised"

    def _log_mel(self, frames: Array) -> Array:
        frames = frames.astype(np.float32)
        power = in_order(frames, self.cosine) ** 2 + in_order(frames, self.sine) ** 2
        features = np.log(np.maximum(in_order(power, self.filters), np.float32(HAMA_FLOOR)))
        return features.astype(np.float16)

    def __call__(self, samples: Array) -> Array:
        """Return features (1 + n // 160, mels).

        Raises:
            ValueError: the recording is too short to be mirrored by half a window.
        """
        half = HAMA_WINDOW // 2
        require_samples(samples, half + 1, "half a window, mirrored at the ends,")
        mirrored = np.pad(np.clip(samples, -1, 1).astype(np.float32), half, "reflect")
        return in_blocks(mirrored, HAMA_WINDOW, HAMA_HOP, self._log_mel)


def in_order(x: Array, W: Array) -> Array:
    """Return x W (T, O) for x (T, I) and W (I, O), summed over i = 0, 1, ... in float32, as no BLAS does."""
    total = np.zeros((len(x), W.shape[1]), np.float32)
    for i, row in enumerate(W):
        total += x[:, i : i + 1] * row
    return total


@dataclass(frozen=True)
class WaveformFeatures:
    """The samples of a recording, for models with convolutions over the waveform (Wav2Vec2-Conformer).

    Raises:
        ValueError: a setting is impossible.
    """

    sample_rate: int = 16000
    normalise: bool = True  # to mean 0 and variance 1

    def __post_init__(self) -> None:
        require_whole(self, sample_rate=1)
        if not isinstance(self.normalise, bool):
            raise ValueError(f"normalise must be true or false, got {self.normalise!r}")

    @classmethod
    def from_settings(cls, settings: dict) -> Self:
        """Return the features that a preprocessor_config.json describes.

        Raises:
            ValueError: a setting is impossible, or a sample is more than one number.
        """
        require_setting(settings, "feature_extractor_type", "Wav2Vec2FeatureExtractor")
        require_setting(settings, "feature_size", 1)
        return cls(**renamed(settings, {"sampling_rate": "sample_rate", "do_normalize": "normalise"}))

    @property
    def mels(self) -> int:
        """The width F, one sample."""
        return 1

    @property
    def hop(self) -> float:
        """Seconds from one sample to the next."""
        return 1 / self.sample_rate

    def describe(self) -> str:
        """Return a line for people."""
        return f"the waveform at {self.sample_rate} Hz, {'normalised' if self.normalise else 'as it is'}"

    def __call__(self, samples: Array) -> Array:
        """Return features (n, 1).

        Raises:
            ValueError: the recording is empty.
        """
        require_samples(samples, 1, "a waveform")
        features = samples.astype(np.float32)[:, None]
        if self.normalise:
            mean, variance = features.mean(dtype=np.float64), features.var(dtype=np.float64)
            features = ((features - mean) / np.sqrt(variance + 1e-7)).astype(np.float32)
        return features
