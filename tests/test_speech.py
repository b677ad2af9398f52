"""From recordings to features, and from outputs to words and their error rate."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import soundfile

from minihra.layers.log_mel import mel_corners, mel_filters
from minihra.speech.alphabet import Alphabet
from minihra.speech.audio import read_audio
from minihra.speech.augment import SpecAugment, span
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


def test_the_corners_of_slaney_are_those_of_librosa():
    corners = mel_corners(38, 0.0, 11025.0, "slaney")  # the example of librosa.mel_frequencies(40)
    assert corners.shape == (40,)
    np.testing.assert_allclose(
        corners[[1, 10, 11, 12, 13, 20]], [85.317, 853.173, 938.49, 1024.856, 1119.114, 2071.84], atol=6e-4
    )
    np.testing.assert_allclose(corners[[0, -2, -1]], [0, 10096.408, 11025], atol=6e-4)


def test_the_knee_of_slaney_is_at_1000_hz():
    below, above = mel_corners(2, 700.0, 1000.0, "slaney"), mel_corners(1, 1000.0, 6400.0, "slaney")
    np.testing.assert_allclose(below, [700, 800, 900, 1000], rtol=1e-12)
    np.testing.assert_allclose(above, [1000, 1000 * 6.4**0.5, 6400], rtol=1e-12)


def test_filters_have_peak_or_area_1():
    n_fft, low, high = 1 << 16, 20.0, 4000.0  # bins so fine that sums are integrals
    np.testing.assert_allclose(mel_filters(RATE, n_fft, 40, low, high).max(0), 1, atol=1e-2)
    area = mel_filters(RATE, n_fft, 40, low, high, "slaney").sum(0) * RATE / n_fft
    np.testing.assert_allclose(area, 1, atol=1e-4)


def test_features_of_slaney():
    samples = tone(frequency=1000.0) + 0.01 * RNG.standard_normal(RATE // 2).astype(np.float32)
    features = LogMel(RATE, scale="slaney", floor=1e-5)(samples)
    expected = np.abs(mel_corners(40, 20.0, RATE / 2, "slaney")[1:-1] - 1000).argmin()
    assert (features.shape, features.dtype) == (LogMel(RATE)(samples).shape, np.float32)
    assert abs(features.mean(0).argmax() - expected) <= 1


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="unknown mel scale 'bark'; known: htk, slaney"):
        mel_filters(RATE, 256, 40, 20.0, 4000.0, "bark")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("sample_rate", 0),
        ("sample_rate", 8000.0),
        ("mels", 0),
        ("mels", 2.5),
        ("window", 0.0),
        ("window", -0.025),
        ("window", 1e-4),
        ("window", np.nan),
        ("window", np.inf),
        ("hop", 0.0),
        ("hop", 1e-5),
        ("low", -1.0),
        ("low", 4000.0),
        ("low", np.nan),
        ("high", 0.0),
        ("high", 4000.5),
        ("silence", -0.01),
        ("silence", np.inf),
        ("floor", 0.0),
        ("floor", np.nan),
        ("scale", "bark"),
    ],
)
def test_impossible_features_are_named(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} must .*, got {value!r}"):
        LogMel(**{"sample_rate": RATE, setting: value})


def test_low_must_be_below_high():
    with pytest.raises(ValueError, match=r"low must be at least 0 and below 300\.0 Hz, got 300\.0"):
        LogMel(RATE, low=300.0, high=300.0)


def test_features_go_through_json():
    log_mel = LogMel(RATE, low=0.0, high=4000.0, scale="slaney")
    assert LogMel(**json.loads(json.dumps(asdict(log_mel)))) == log_mel
    assert LogMel(RATE).scale == "htk"


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


LENGTHS = np.array([50, 20, 9, 1, 0])


def ones(lengths=LENGTHS, dtype=np.float32):
    """Features (B, T, F) of which every element shows whether it was masked; the padding is 1 as well."""
    return np.ones((len(lengths), 50, 40), dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_masks_are_zeros_in_new_features(dtype):
    features = RNG.standard_normal((5, 50, 40)).astype(dtype)
    before = features.copy()
    masked = SpecAugment()(features, LENGTHS, np.random.default_rng(1))
    np.testing.assert_array_equal(features, before)
    assert masked.dtype == dtype
    assert not np.shares_memory(masked, features)
    np.testing.assert_array_equal(masked[masked != 0], features[masked != 0])
    assert (masked[0] == 0).any()


@pytest.mark.parametrize("augment", [SpecAugment(), SpecAugment(5, 99, 5, 1.0)])
def test_padding_is_not_masked(augment):
    for seed in range(20):
        masked = augment(ones(), LENGTHS, np.random.default_rng(seed))
        for row, frames in zip(masked, LENGTHS, strict=True):
            assert (row[frames:] == 1).all()


@pytest.mark.parametrize(
    "augment", [SpecAugment(0, 6, 0, 0.1), SpecAugment(3, 0, 3, 0.0), SpecAugment(0, 6, 2, 0.01)], ids=repr
)
def test_no_masks_change_nothing(augment):
    np.testing.assert_array_equal(augment(ones(), LENGTHS, np.random.default_rng(0)), ones())


def test_masks_of_an_utterance_depend_on_its_own_length_and_draws_alone():
    features = RNG.standard_normal((5, 50, 40))
    masked = SpecAugment()(features, LENGTHS, np.random.default_rng(3))
    for kept in range(5):
        mates, lengths = np.full_like(features, 7.0), np.full(5, 31)
        mates[kept], lengths[kept] = features[kept], LENGTHS[kept]
        np.testing.assert_array_equal(SpecAugment()(mates, lengths, np.random.default_rng(3))[kept], masked[kept])
    longer = np.pad(features, ((0, 0), (0, 9), (0, 0)), constant_values=np.nan)
    np.testing.assert_array_equal(SpecAugment()(longer, LENGTHS, np.random.default_rng(3))[:, :50], masked)
    np.testing.assert_array_equal(SpecAugment()(features, LENGTHS, np.random.default_rng(3)), masked)
    assert (SpecAugment()(features, LENGTHS, np.random.default_rng(4)) != masked).any()


def test_masks_are_stretches_of_all_widths_up_to_the_widest():
    lengths = np.full(400, 50)
    bands = SpecAugment(1, 6, 0, 0.0)(ones(lengths), lengths, np.random.default_rng(0)) == 0
    stretches = SpecAugment(0, 0, 1, 0.1)(ones(lengths), lengths, np.random.default_rng(0)) == 0
    for masked, axis, widest in ((bands, 1, 6), (stretches, 2, 5)):
        line = masked.any(axis)  # (B, F) or (B, T)
        np.testing.assert_array_equal(masked, np.broadcast_to(np.expand_dims(line, axis), masked.shape))
        assert set(line.sum(1)) == set(range(widest + 1))
        assert (np.diff(line, axis=1, prepend=False, append=False).sum(1) <= 2).all()  # one stretch, in one piece
        assert line.any(0).all()  # every place is masked at some time, the first and the last too


def test_widths_and_positions_are_uniform():
    rng = np.random.default_rng(0)
    spans = [span(10, 3, rng.random(2)) for _ in range(8000)]
    for width in range(4):
        starts = [start for start, stop in spans if stop - start == width]
        assert abs(len(starts) - 2000) < 200  # 5 standard deviations
        assert set(starts) == set(range(10 - width + 1))
        assert np.ptp(np.bincount(starts)) < 0.5 * len(starts) / (11 - width)
    almost_1 = np.nextafter(1, 0)
    assert span(10, 3, np.array([almost_1, almost_1])) == (7, 10)
    assert span(10, 3, np.zeros(2)) == (0, 0)
    assert span(0, 0, np.array([almost_1, almost_1])) == (0, 0)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("frequency_masks", -1, "a whole number of at least 0, got -1"),
        ("frequency_width", 2.5, "a whole number of at least 0, got 2.5"),
        ("time_masks", "2", "a whole number of at least 0, got '2'"),
        ("time_share", -0.1, "at least 0, got -0.1"),
        ("time_share", 1.5, "at most 1, got 1.5"),
        ("time_share", np.nan, "at least 0, got nan"),
    ],
)
def test_impossible_masks_are_named(setting, value, message):
    with pytest.raises(ValueError, match=f"{setting} must be {message}"):
        SpecAugment(**{setting: value})
