"""SpecAugment: bands of frequency and stretches of time are masked while training. Park et al. 2019, arXiv 1904.08779.

Without time warping, which gave the paper little. Masks hold the mean of each mel bin over the utterance, which is 0
where features are normalised bin by bin, as the paper's are. The paper caps the longest time mask in frames and as a
share of the utterance; here only the share counts, as utterances are short.
"""

from dataclasses import dataclass

import numpy as np

from minihra.arrays import Array


@dataclass(frozen=True)
class SpecAugment:
    """How much to mask.

    The defaults are for command words: in half a second, 50 frames, a mask of time hides at most 50 ms, less than most
    vowels last; a mask of frequency hides at most 6 of 40 mel bins, about one formant.

    Raises:
        ValueError: a number or a width is no whole number of at least 0, or the share is not between 0 and 1.
    """

    frequency_masks: int = 2
    frequency_width: int = 6  # mel bins, the widest mask
    time_masks: int = 2
    time_share: float = 0.1  # of the utterance's frames, the longest mask; the paper's p

    def __post_init__(self) -> None:
        for setting in ("frequency_masks", "frequency_width", "time_masks"):
            value = getattr(self, setting)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{setting} must be a whole number of at least 0, got {value!r}")
        if not self.time_share >= 0:
            raise ValueError(f"time_share must be at least 0, got {self.time_share}")
        if self.time_share > 1:
            raise ValueError(f"time_share must be at most 1, got {self.time_share}")

    def __call__(self, features: Array, lengths: Array, rng: np.random.Generator) -> Array:
        """Return features (B, T, F) of which `lengths` (B,) frames are real, masked for each utterance on its own.

        Every utterance takes the same number of draws, so that its masks do not depend on the lengths of the others.
        """
        masked, F = features.copy(), features.shape[2]
        draws = rng.random((len(features), self.frequency_masks + self.time_masks, 2))
        for row, frames, pairs in zip(masked, lengths, draws, strict=True):
            if not frames:
                continue
            mean = row[:frames].mean(axis=0)
            for draw in pairs[: self.frequency_masks]:
                start, stop = span(F, min(self.frequency_width, F), draw)
                row[:frames, start:stop] = mean[start:stop]
            for draw in pairs[self.frequency_masks :]:
                start, stop = span(int(frames), int(self.time_share * frames), draw)
                row[start:stop] = mean
        return masked


def span(size: int, widest: int, draw: Array) -> tuple[int, int]:
    """Return the ends of a span of 0 ... widest places out of `size`, for two uniform numbers (2,) in [0, 1)."""
    width = int(draw[0] * (widest + 1))
    start = int(draw[1] * (size - width + 1))
    return start, start + width
