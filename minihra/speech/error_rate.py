"""Word and character error rates: the edits that turn the reference into the hypothesis, over the reference's units.

Rates are of a corpus: errors and units are added up over all texts before they are divided, as in jiwer.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class ErrorCount(NamedTuple):
    """Errors in a text or a corpus, and the units of its reference."""

    errors: int
    units: int

    @property
    def rate(self) -> float:
        """The error rate.

        Raises:
            ValueError: the reference has no unit.
        """
        if not self.units:
            raise ValueError("the references have no word or character, so that there is no error rate")
        return self.errors / self.units


def edit_distance(reference: Sequence, hypothesis: Sequence) -> int:
    """Return the smallest number of substitutions, insertions and deletions (Levenshtein 1966)."""
    row = list(range(len(hypothesis) + 1))  # row[j]: from the reference so far to hypothesis[:j]
    for i, unit in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(diagonal + (unit != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def unit_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> ErrorCount:
    """Return the errors of one text in its units: words, phonemes, ..."""
    return ErrorCount(edit_distance(reference, hypothesis), len(reference))


def word_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Return the errors of one text in words."""
    return unit_errors(reference.split(), hypothesis.split())


def character_errors(reference: str, hypothesis: str) -> ErrorCount:
    """Return the errors of one text in characters, the spaces between words among them, those at its ends not."""
    reference, hypothesis = reference.strip(), hypothesis.strip()
    return ErrorCount(edit_distance(reference, hypothesis), len(reference))


def sum_errors(counts: Iterable[ErrorCount]) -> ErrorCount:
    """Return the errors of several texts together."""
    counts = list(counts)
    return ErrorCount(sum(count.errors for count in counts), sum(count.units for count in counts))


def word_error_rate(references: Iterable[str], hypotheses: Iterable[str]) -> float:
    """Return the word error rate of a corpus.

    Raises:
        ValueError: the references have no word, or their number is not that of the hypotheses.
    """
    return sum_errors(word_errors(r, h) for r, h in zip(references, hypotheses, strict=True)).rate


def character_error_rate(references: Iterable[str], hypotheses: Iterable[str]) -> float:
    """Return the character error rate of a corpus.

    Raises:
        ValueError: the references have no character, or their number is not that of the hypotheses.
    """
    return sum_errors(character_errors(r, h) for r, h in zip(references, hypotheses, strict=True)).rate
