"""Word error rate: the edits that turn the reference into the hypothesis, as a share of the reference's words."""

from collections.abc import Iterable, Sequence


def edit_distance(reference: Sequence, hypothesis: Sequence) -> int:
    """Return the smallest number of substitutions, insertions and deletions (Levenshtein 1966)."""
    row = list(range(len(hypothesis) + 1))  # row[j]: from the reference so far to hypothesis[:j]
    for i, unit in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(hypothesis, start=1):
            diagonal, row[j] = row[j], min(diagonal + (unit != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_error_rate(references: Iterable[str], hypotheses: Iterable[str]) -> float:
    """Return the error rate of a corpus: errors over reference words, in all texts together.

    Raises:
        ValueError: the references have no word, or their number is not that of the hypotheses.
    """
    pairs = [(r.split(), h.split()) for r, h in zip(references, hypotheses, strict=True)]
    words = sum(len(reference) for reference, _ in pairs)
    if not words:
        raise ValueError("the references have no word, so that there is no error rate")
    return sum(edit_distance(reference, hypothesis) for reference, hypothesis in pairs) / words
