"""SpecAugment: bands of frequency and stretches of time are masked while training. Park et al. 2019, arXiv 1904.08779.

Without time warping, which gave the paper little. Masks hold 0, the mean of normalised features.
"""

from dataclasses import dataclass

import numpy as np

from minihra.arrays import Array


@dataclass(frozen=True)
class SpecAugment:
    """How much to mask.

    Raises:
        ValueError: a setting is negative, or a share above 1.
    """

    frequency_masks: int = 2
    frequency_width: int = 6  # mel bins, the widest mask
    time_masks: int = 2
    time_share: float = 0.1  # of the utterance's frames, the longest mask; the paper's p

    def __post_init__(self) -> None:
        for setting in ("frequency_masks", "frequency_width", "time_masks", "time_share"):
            if getattr(self, setting) < 0:
                raise ValueError(f"{setting} must be at least 0, got {getattr(self, setting)}")
        if self.time_share > 1:
            raise ValueError(f"time_share must be at most 1, got {self.time_share}")

    def __call__(self, features: Array, lengths: Array, rng: np.random.Generator) -> Array:
        """Return features (B, T, F) of which `lengths` (B,) frames are real, masked for each utterance on its own."""
        masked, F = features.copy(), features.shape[2]
        for row, frames in zip(masked, lengths, strict=True):
            for _ in range(self.frequency_masks):
                start, stop = span(F, min(self.frequency_width, F), rng)
                row[:frames, start:stop] = 0
            for _ in range(self.time_masks):
                start, stop = span(frames, int(self.time_share * frames), rng)
                row[start:stop] = 0
        return masked


def span(size: int, widest: int, rng: np.random.Generator) -> tuple[int, int]:
    """Return the ends of a random span of 0 ... widest places out of `size`."""
    width = rng.integers(widest + 1)
    start = rng.integers(size - width + 1)
    return start, start + width
