"""From recordings to features, and from outputs to words and their error rate."""

import numpy as np
import pytest
import soundfile

from minihra.speech.alphabet import Alphabet
from minihra.speech.audio import read_audio
from minihra.speech.decoding import greedy_decode
from minihra.speech.error_rate import edit_distance, word_error_rate
from minihra.speech.features import LogMel, pad

RATE = 8000
RNG = np.random.default_rng(0)


def tone(seconds=0.5, frequency=440.0, rate=RATE):
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def test_audio_is_mixed_to_mono(tmp_path):
    left, right = 0.5 * tone(), 0.25 * tone(frequency=1000.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), RATE, subtype="FLOAT")
    samples = read_audio(tmp_path / "a.wav", RATE)
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, (left + right) / 2)


def test_audio_is_resampled(tmp_path):
    soundfile.write(tmp_path / "a.flac", 0.5 * tone(rate=22050), 22050)
    samples = read_audio(tmp_path / "a.flac", RATE)
    inside = slice(200, -200)  # the filter of the resampler sees the ends of the recording
    assert len(samples) == RATE // 2
    np.testing.assert_allclose(samples[inside], 0.5 * tone()[inside], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.wav", None, FileNotFoundError, "no such file"),
        ("empty.wav", b"", ValueError, "not a recording"),
        ("text.wav", b"once upon a time", ValueError, "not a recording"),
        ("silent.wav", np.zeros(0, np.float32), ValueError, "is empty"),
        ("nan.wav", np.array([0.0, np.nan], np.float32), ValueError, "NaN or an infinity"),
    ],
)
def test_bad_audio_is_named(tmp_path, name, content, error, message):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        soundfile.write(tmp_path / name, content, RATE, subtype="FLOAT")
    with pytest.raises(error, match=message) as caught:
        read_audio(tmp_path / name, RATE)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_do_not_depend_on_loudness():
    samples = tone() + 0.01 * RNG.standard_normal(RATE // 2).astype(np.float32)
    features = LogMel(RATE)(samples)
    np.testing.assert_allclose(LogMel(RATE)(1e-3 * samples), features, atol=2e-3)
    assert features.dtype == np.float32
    assert abs(features.mean()) < 1e-4
    assert abs(features.std() - 1) < 1e-2


def test_a_tone_stands_in_its_mel_bin():
    log_mel = LogMel(RATE)
    mel = 2595 * np.log10(1 + np.array([20, 1000, RATE / 2]) / 700)
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * (log_mel.mels + 1) - 1  # bin F has its peak at corner F + 1
    loudest = log_mel(tone(frequency=1000.0)).mean(0).argmax()
    assert abs(loudest - expected) <= 1


def test_silence_at_both_ends_adds_frames():
    samples = tone() + 0.1 * RNG.standard_normal(RATE // 2).astype(np.float32)
    plain, padded = LogMel(RATE)(samples), LogMel(RATE, silence=0.05)(samples)
    assert len(padded) == len(plain) + 10
    assert padded[:2].max() < padded[10:-10].min()
    assert padded[-2:].max() < padded[10:-10].min()


def test_digital_silence_gives_almost_zeros():
    assert np.abs(LogMel(RATE)(np.zeros(RATE, np.float32))).max() < 1e-2


def test_features_of_less_than_a_window_are_refused():
    with pytest.raises(ValueError, match="199 samples, but one window of features takes 200"):
        LogMel(RATE)(np.zeros(199, np.float32))


def test_pad():
    batch, lengths = pad([np.ones((2, 3)), np.full((4, 3), 2.0)])
    assert lengths.tolist() == [2, 4]
    assert batch.sum(axis=(1, 2)).tolist() == [6, 24]
    assert not batch[0, 2:].any()


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


def test_word_error_rate_needs_words():
    with pytest.raises(ValueError, match="no word"):
        word_error_rate(["", " "], ["a", ""])
