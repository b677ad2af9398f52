"""From recordings to features."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import soundfile

from minihra.layers.log_mel import log_mel_forward, mel_corners, mel_filters
from minihra.speech.audio import missing_bytes, read_audio
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
    features = LogMel(RATE, scale="slaney")(samples)
    expected = np.abs(mel_corners(40, 20.0, RATE / 2, "slaney")[1:-1] - 1000).argmin()
    assert (features.shape, features.dtype) == (LogMel(RATE)(samples).shape, np.float32)
    assert abs(features.mean(0).argmax() - expected) <= 1
    assert (features == features.min()).mean() < 0.01  # noise at -40 dB is above the floor, as it is for "htk"


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="unknown mel scale 'bark'; known: htk, slaney, kaldi"):
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


def test_a_window_must_fit_into_the_transform():
    with pytest.raises(ValueError, match="a window of 12 samples does not fit into a transform of 8"):
        log_mel_forward(tone(), np.ones(12), np.ones((5, 3)), hop=4, n_fft=8)


@pytest.mark.parametrize(("suffix", "sound"), [("wav", b"data"), ("aiff", b"SSND")])
def test_sound_that_is_missing_is_counted(tmp_path, suffix, sound):
    path = tmp_path / f"cut.{suffix}"
    soundfile.write(path, tone(), RATE)
    data = path.read_bytes()
    assert missing_bytes(path) == 0
    path.write_bytes(data[:4] + b"\x7f" * 4 + data[8:])  # a wrong length of the whole loses no sound
    assert missing_bytes(path) == 0
    path.write_bytes(data[:-10])
    assert missing_bytes(path) == 10
    odd = b"more" + (3).to_bytes(4, "little" if suffix == "wav" else "big") + b"odd\0"  # padded to an even length
    path.write_bytes(data[:12] + odd + data[12:-10])
    assert missing_bytes(path) == 10
    at = data.index(sound) + 4
    for unknown in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xf0\x00" if suffix == "aiff" else b"\x00\xf0\xff\x7f"):
        path.write_bytes(data[:at] + unknown + data[at + 4 :])
        assert missing_bytes(path) == 0
