"""From outputs to text, and to its error rates."""

import numpy as np
import pytest

from minihra.speech.alphabet import Alphabet
from minihra.speech.decoding import greedy_decode
from minihra.speech.error_rate import (
    ErrorCount,
    character_error_rate,
    character_errors,
    edit_distance,
    sum_errors,
    word_error_rate,
    word_errors,
)

RNG = np.random.default_rng(0)


def test_alphabet():
    alphabet = Alphabet.of(["two", "one"])
    assert (alphabet.characters, len(alphabet)) == ("enotw", 6)
    assert alphabet.encode("tone") == [4, 3, 2, 1]
    assert alphabet.decode(alphabet.encode("tone")) == "tone"
    with pytest.raises(ValueError, match="character 3 of 'tox', 'x', is not in 'enotw'"):
        alphabet.encode("tox")


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_decoding(blank):
    a, b = (1, 2) if blank == 0 else (0, 1)
    best = np.array([[a, a, blank, a, b, b, a], [blank, b, b, blank, blank, a, a]])
    valid = np.arange(7) < np.array([[7], [5]])
    labels = greedy_decode(np.eye(3)[best], valid, blank=blank)
    assert labels == [[a, a, b, a], [b]]
    assert blank != 0 or greedy_decode(np.eye(3)[best], valid) == labels  # 0 is the blank unless another is named


@pytest.mark.parametrize(
    ("reference", "hypothesis", "distance"),
    [("", "", 0), ("abc", "", 3), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2), ("abc", "abc", 0)],
)
def test_edit_distance(reference, hypothesis, distance):
    assert edit_distance(reference, hypothesis) == distance


def test_word_error_rate_is_that_of_jiwer():
    jiwer = pytest.importorskip("jiwer", reason="needs jiwer: pip install 'minihra[parity]'")
    words = ["zero", "one", "two", "three"]
    references = [" ".join(RNG.choice(words, RNG.integers(1, 6))) for _ in range(100)]
    hypotheses = [" ".join(RNG.choice(words, RNG.integers(0, 6))) for _ in range(100)]
    assert word_error_rate(references, hypotheses) == pytest.approx(jiwer.wer(references, hypotheses), abs=1e-15)


def test_character_error_rate_is_that_of_jiwer():
    jiwer = pytest.importorskip("jiwer", reason="needs jiwer: pip install 'minihra[parity]'")
    references = ["x" + "".join(RNG.choice(list("ab c"), RNG.integers(0, 12))) for _ in range(100)]
    hypotheses = ["".join(RNG.choice(list("ab c"), RNG.integers(0, 12))) for _ in range(100)]
    assert any("  " in text for text in references)
    assert any(text != text.strip() for text in hypotheses)
    expected = jiwer.cer(references, hypotheses)
    assert character_error_rate(references, hypotheses) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("rate", [word_error_rate, character_error_rate])
def test_error_rates_need_something_to_count(rate):
    with pytest.raises(ValueError, match="no word or character"):
        rate(["", " "], ["a", ""])
    with pytest.raises(ValueError, match="no word or character"):
        rate([], [])
    with pytest.raises(ValueError, match="shorter"):
        rate(["a", "b"], ["a"])


def test_error_counts():
    assert word_errors("go to bed", "go bed now") == ErrorCount(errors=2, units=3)
    assert character_errors("one two", " onetwo ") == ErrorCount(errors=1, units=7)
    assert word_errors("", "a b") == character_errors(" ", "ab") == ErrorCount(2, 0)
    assert ErrorCount(3, 4).rate == 0.75
    with pytest.raises(ValueError, match="no word or character"):
        _ = ErrorCount(2, 0).rate


def test_error_counts_of_tasks_add_up_to_the_corpus():
    references, hypotheses = ["go on", "", "stop here now", "left"], ["go", "a", "stop here now", "lift"]
    for count, rate in ((word_errors, word_error_rate), (character_errors, character_error_rate)):
        counts = [count(*pair) for pair in zip(references, hypotheses, strict=True)]
        tasks = sum_errors(counts[:2]), sum_errors(counts[2:])
        assert sum_errors(tasks) == sum_errors(iter(counts))
        assert sum_errors(tasks).rate == rate(references, hypotheses)
    assert sum_errors([]) == ErrorCount(0, 0)
