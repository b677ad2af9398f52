"""The built-in voices: the same bits always, words that sound, and seen and unseen voices that do not overlap."""

import numpy as np
import pytest

from minihra.data.voices import RANGES, RATE, SEEN, UNSEEN, WORDS, corpus, say, voice


def test_the_same_arguments_give_the_same_bits() -> None:
    one = say("seven", voice(3, UNSEEN, seed=2), 1)
    assert one.tobytes() == say("seven", voice(3, UNSEEN, seed=2), 1).tobytes()
    for other in (
        say("seven", voice(3, UNSEEN, seed=2), 2),
        say("seven", voice(4, UNSEEN, seed=2), 1),
        say("seven", voice(3, SEEN, seed=2), 1),
        say("seven", voice(3, UNSEEN, seed=3), 1),
    ):
        assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("kind", [SEEN, UNSEEN])
def test_every_word_says_something(kind: str) -> None:
    """At the ends of the ranges too: 20 voices draw near them."""
    for number in range(20):
        for word in WORDS:
            samples = say(word, voice(number, kind), 0)
            assert samples.dtype == np.float32
            assert np.isfinite(samples).all()
            assert 0.25 < np.abs(samples).max() < 1
            assert 0.08 < len(samples) / RATE < 0.8


def test_voices_stay_in_their_ranges_and_these_do_not_meet() -> None:
    for kind, limits in RANGES.items():
        for number in range(50):
            speaker = voice(number, kind)
            assert any(low <= speaker.tract <= high for low, high in limits.tract)
            assert any(low <= speaker.pitch <= high for low, high in limits.pitch)
            low, high = limits.shift
            assert all(low <= abs(share) <= high for pair in speaker.shifts for share in pair)
    ((low, high),) = RANGES[SEEN].tract
    assert all(right < low or left > high for left, right in RANGES[UNSEEN].tract)
    assert RANGES[SEEN].shift[1] < RANGES[UNSEEN].shift[0]


def test_a_longer_tract_has_lower_formants() -> None:
    """The spectrum's centre falls with the length of the tract."""

    def centre(number: int) -> tuple[float, float]:
        speaker = voice(number, UNSEEN)
        power = np.abs(np.fft.rfft(say("eight", speaker, 0), 8192)) ** 2
        hertz = np.arange(len(power)) * RATE / 8192
        band = (hertz > 300) & (hertz < 3000)
        return speaker.tract, float((power[band] * hertz[band]).sum() / power[band].sum())

    tracts, centres = zip(*(centre(number) for number in range(16)), strict=True)
    assert np.corrcoef(tracts, centres)[0, 1] < -0.5


def test_a_corpus_is_every_voice_word_and_take() -> None:
    made = [(text, name) for _, text, name in corpus([voice(0), voice(1)], ["go", "no"], range(3))]
    assert len(made) == 12
    assert len(set(made)) == 4


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="unknown word 'ten'; known: zero, one"):
        say("ten", voice(0), 0)
    with pytest.raises(ValueError, match="a voice is 'seen' or 'unseen', got 'old'"):
        voice(0, "old")
