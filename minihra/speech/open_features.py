"""What open Conformers see of a recording, one class a family: samples (n,) become features (T, F), float32.

    ParakeetFeatures       y = ln(|STFT(p)|^2 slaney + 2^-24),   p_t = x_t - 0.97 x_{t-1}, p_0 = x_0;   normalised
    Wav2Vec2BertFeatures   y = ln(max(|rfft(povey d)|^2 kaldi, 2^-23)),   c = 2^15 frame, less its mean,
                           d_t = c_t - 0.97 c_{t-1}, d_0 = 0.03 c_0;   normalised, then two frames side by side
    LasrFeatures           y = ln(max(|rfft(hann frame)|^2 kaldi, 1e-5))

Frames last 25 ms and come every 10 ms; the STFT is centred at t hop, with zeros before and behind the recording.
Windows are symmetric Hann; Povey's is Hann^0.85. "Normalised": each bin on its own, over the recording, with T - 1 in
the variance. Sources: the feature extractors of Parakeet, SeamlessM4T and LASR in transformers 5.24. `from_settings`
takes the names of its preprocessor_config.json.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from minihra.arrays import Array
from minihra.layers.log_mel import mel_filters
from minihra.speech.mel_frames import (
    in_blocks,
    normalise_bins,
    power,
    renamed,
    require_samples,
    require_setting,
    require_transform,
    require_whole,
    times,
)

PARAKEET_GUARD = 2.0**-24  # added to energies
KALDI_FLOOR = 2.0**-23  # of energies, for samples of 16 bits; float32's epsilon
LASR_FLOOR = 1e-5
KALDI_PREEMPHASIS = 0.97
STFT_SETTINGS = {
    "sampling_rate": "sample_rate",
    "feature_size": "mels",
    "n_fft": "n_fft",
    "win_length": "window",
    "hop_length": "hop_length",
}
"""The names of settings in preprocessor_config.json, and here."""


@dataclass(frozen=True)
class StftFeatures:
    """What features of an STFT have in common: its settings. Window and hop are in samples.

    Raises:
        ValueError: a setting is impossible.
    """

    sample_rate: int = 16000
    mels: int = 80
    n_fft: int = 512
    window: int = 400
    hop_length: int = 160

    least_rate: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_whole(self, sample_rate=self.least_rate, mels=1, n_fft=2, window=3, hop_length=1)
        require_transform(self.window, self.n_fft)

    @property
    def hop(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_length / self.sample_rate


@dataclass(frozen=True)
class ParakeetFeatures(StftFeatures):
    """The features of Parakeet and of other FastConformers of NeMo.

    Raises:
        ValueError: a setting is impossible.
    """

    preemphasis: float = 0.97

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.preemphasis, int | float) and 0 <= self.preemphasis <= 1):
            raise ValueError(f"preemphasis must be between 0 and 1, got {self.preemphasis!r}")

    @classmethod
    def from_settings(cls, settings: dict) -> Self:
        """Return the features that a preprocessor_config.json describes. Without pre-emphasis it is null there."""
        require_setting(settings, "feature_extractor_type", "ParakeetFeatureExtractor")
        preemphasis = settings.get("preemphasis", cls.preemphasis) or 0.0
        return cls(**renamed(settings, STFT_SETTINGS), preemphasis=preemphasis)

    def describe(self) -> str:
        """Return a line for people."""
        return f"{self.mels} log-mel (Slaney), {times(self.window, self.hop, self.sample_rate)}, each bin normalised"

    @cached_property
    def _filters(self) -> Array:
        return mel_filters(self.sample_rate, self.n_fft, self.mels, 0.0, self.sample_rate / 2, "slaney")

    def _log_mel(self, frames: Array) -> Array:
        energy = power(frames * np.hanning(self.window), self.n_fft) @ self._filters
        return np.log(energy + PARAKEET_GUARD)

    def __call__(self, samples: Array) -> Array:
        """Return features (n // hop_length, mels).

        Raises:
            ValueError: the recording has not the two frames that a variance takes.
        """
        require_samples(samples, 2 * self.hop_length, "the variance of features")
        lead = self.n_fft // 2 - (self.n_fft - self.window) // 2  # from the start of a window to its frame's centre
        n = len(samples)
        padded = np.zeros(lead + n + self.n_fft, np.float32)
        padded[lead : lead + n] = samples
        padded[lead + 1 : lead + n] -= np.float32(self.preemphasis) * samples[:-1]
        T = n // self.hop_length  # the STFT has one more, which is half behind the end
        padded = padded[: (T - 1) * self.hop_length + self.window]
        features = in_blocks(padded, self.window, self.hop_length, self._log_mel)
        return normalise_bins(features, after=1e-5)


@dataclass(frozen=True)
class Wav2Vec2BertFeatures:
    """The features of Wav2Vec2-BERT and SeamlessM4T: Kaldi's, of frames of 400 samples every 160, two side by side.

    Raises:
        ValueError: a setting is impossible.
    """

    sample_rate: int = 16000
    bins: int = 80

    def __post_init__(self) -> None:
        require_whole(self, sample_rate=100, bins=1)

    @classmethod
    def from_settings(cls, settings: dict) -> Self:
        """Return the features that a preprocessor_config.json describes.

        Raises:
            ValueError: a setting is impossible, or other than two frames are put together.
        """
        require_setting(settings, "feature_extractor_type", "SeamlessM4TFeatureExtractor")
        require_setting(settings, "stride", 2)
        return cls(**renamed(settings, {"sampling_rate": "sample_rate", "num_mel_bins": "bins"}))

    @property
    def mels(self) -> int:
        """The width F, two frames of mel bins."""
        return 2 * self.bins

    @property
    def hop(self) -> float:
        """Seconds from one pair of frames to the next."""
        return 2 * 160 / self.sample_rate

    def describe(self) -> str:
        """Return a line for people."""
        frames = times(400, self.hop / 2, self.sample_rate)
        return f"{self.bins} log-mel (Kaldi), {frames}, each bin normalised, two frames side by side"

    @cached_property
    def _filters(self) -> Array:
        return mel_filters(self.sample_rate, 512, self.bins, 20.0, self.sample_rate // 2, "kaldi")

    def _log_mel(self, frames: Array) -> Array:
        frames *= 2.0**15  # as of 16-bit samples
        frames -= frames.mean(1, keepdims=True)
        before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)  # the first sample stands before itself
        energy = power((frames - KALDI_PREEMPHASIS * before) * np.hanning(400) ** 0.85, 512) @ self._filters
        return np.log(np.maximum(energy, KALDI_FLOOR))

    def __call__(self, samples: Array) -> Array:
        """Return features (T, 2 bins); an odd last frame counts for mean and variance only.

        Raises:
            ValueError: the recording is shorter than two frames.
        """
        require_samples(samples, 560, "a pair of frames of features")
        features = in_blocks(samples, 400, 160, self._log_mel)
        features = normalise_bins(features, before=1e-7)
        return features[: len(features) // 2 * 2].reshape(-1, self.mels)


@dataclass(frozen=True)
class LasrFeatures(StftFeatures):
    """The features of LASR (MedASR), 125 to 7500 Hz.

    Raises:
        ValueError: a setting is impossible.
    """

    mels: int = 128

    least_rate: ClassVar[int] = 15000  # twice the highest frequency

    @classmethod
    def from_settings(cls, settings: dict) -> Self:
        """Return the features that a preprocessor_config.json describes."""
        require_setting(settings, "feature_extractor_type", "LasrFeatureExtractor")
        return cls(**renamed(settings, STFT_SETTINGS))

    def describe(self) -> str:
        """Return a line for people."""
        return f"{self.mels} log-mel (Kaldi), {times(self.window, self.hop, self.sample_rate)}, not normalised"

    @cached_property
    def _filters(self) -> Array:
        return mel_filters(self.sample_rate, self.n_fft, self.mels, 125.0, 7500.0, "kaldi")

    def _log_mel(self, frames: Array) -> Array:
        energy = power(frames * np.hanning(self.window), self.n_fft) @ self._filters
        return np.log(np.maximum(energy, LASR_FLOOR))

    def __call__(self, samples: Array) -> Array:
        """Return features (1 + (n - window) // hop_length, mels).

        Raises:
            ValueError: the recording is shorter than one window.
        """
        require_samples(samples, self.window, "one window of features")
        return in_blocks(samples, self.window, self.hop_length, self._log_mel)
