"""What open Conformers see: against transformers' extractors, hama's own kernels, and numbers kept from them."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.special import log_softmax

from minihra.evaluate import logits_of
from minihra.layers.log_mel import hann_window, mel_filters
from minihra.loaders.backbone import load_backbone
from minihra.speech.mel_frames import BLOCK
from minihra.speech.open_features import LasrFeatures, ParakeetFeatures, Wav2Vec2BertFeatures
from minihra.speech.sound_features import HamaFeatures, WaveformFeatures

SHARED = Path(__file__).resolve().parents[2] / "shared/data/speechocean762"
FAMILIES = {
    "ParakeetFeatureExtractor": ParakeetFeatures(),
    "SeamlessM4TFeatureExtractor": Wav2Vec2BertFeatures(),
    "LasrFeatureExtractor": LasrFeatures(),
    "Wav2Vec2FeatureExtractor": WaveformFeatures(),
}
ANGLE = 2 * np.pi * np.outer(np.arange(400), np.arange(201)) / 400
KERNELS = [(hann_window(400)[:, None] * f(ANGLE)).astype(np.float32) for f in (np.cos, np.sin)]
BANK = mel_filters(16000, 400, 80, 0.0, 8000.0, "slaney").astype(np.float32)
HAMA = HamaFeatures(*KERNELS, BANK)
"""Close to what hama's file holds."""


def voice(n):
    """A sung vowel with noise 50 dB below it, (n,) at 16 kHz, from numbers alone."""
    t = np.arange(n) / 16000
    tones = (
        np.exp(-(((120 * k - 700) / 500) ** 2)) / k * np.sin(2 * np.pi * 120 * k * t + k * k + 0.3 * np.sin(20 * t))
        for k in range(1, 40)
    )
    noise = np.modf(np.sin(np.arange(1, n + 1) * 12.9898) * 43758.5453)[0]
    return (0.3 * sum(tones) * (0.6 + 0.4 * np.sin(6 * np.pi * t)) + 2e-3 * noise).astype(np.float32)


SIGNALS = {
    "a second": voice(16000),
    "an odd length": voice(15321),
    "short": voice(643),
    "8 bits, loud": (np.round(3 * voice(12345) * 128).clip(-128, 127) / 128).astype(np.float32),
    "clipped": (8 * voice(9001)).clip(-1, 1),
    "half silence": np.concatenate([voice(6000), np.zeros(6000, np.float32)]),
}


def theirs(name, samples):
    """The features of transformers, only the frames that count, and the extractor's own settings."""
    transformers = pytest.importorskip("transformers", reason="needs minihra[parity]")
    extractor = getattr(transformers, name)()
    if name == "ParakeetFeatureExtractor":
        extractor._torch_extract_fbank_features = lambda waveform, device: in_float64(extractor, waveform)
    out = extractor(samples, sampling_rate=16000, return_tensors="np", return_attention_mask=True)
    features = next(iter(out.values()))[0]
    valid = out["attention_mask"][0].astype(bool)[: len(features)]
    features = features[valid] if name != "LasrFeatureExtractor" else features
    return features.reshape(len(features), -1), extractor.to_dict()


def in_float64(extractor, waveform):
    """Parakeet's log-mel energies as transformers has them, in float64: its float32 is off by 2e-3 in real recordings,
    whose lowest bins are 90 dB below the loudest."""
    import torch

    window = torch.hann_window(400, periodic=False, dtype=torch.float64)
    options = {"hop_length": 160, "win_length": 400, "window": window, "return_complex": True, "pad_mode": "constant"}
    power = torch.stft(waveform.double(), 512, **options).abs() ** 2
    return torch.log(extractor.mel_filters.double() @ power + 2**-24).permute(0, 2, 1)


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", FAMILIES)
def test_features_equal_those_of_transformers(name, signal):
    expected, settings = theirs(name, SIGNALS[signal])
    features = type(FAMILIES[name]).from_settings(settings)
    assert features == FAMILIES[name]
    got = features(SIGNALS[signal])
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_features_of_real_recordings_equal_those_of_transformers(name):
    files = sorted((SHARED / "audio").rglob("*.flac"))[::700]
    if not files:
        pytest.skip("needs ../shared/data/speechocean762")
    for file in files:
        samples, _ = soundfile.read(file, dtype="float32")
        np.testing.assert_allclose(FAMILIES[name](samples), theirs(name, samples)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("features", [*FAMILIES.values(), HAMA], ids=lambda f: type(f).__name__)
def test_silence_is_even_and_finite(features):
    # transformers' own differ here: the rounding of a mean is divided by a deviation of 1e-5.
    got = features(np.zeros(8000, np.float32))
    assert got.shape[1] == features.mels
    assert (got == got[0]).all()
    assert np.isfinite(got).all()


def test_log_probabilities_of_hama_are_those_of_its_engine():
    """Its features are in float16, and so one sum in another order would show: see sound_features.py."""
    hama = pytest.importorskip("hama", reason="needs minihra[hama]")
    recogniser, engine = load_backbone("hama"), hama.ASRModel().session
    for n in (16000, 23117, 40001):
        samples = voice(n)
        feeds = {"waveform": samples[None], "waveform_lengths": np.array([n])}
        theirs, frames = engine.run(["log_probs", "out_lengths"], feeds)
        (ours,) = logits_of(recogniser, [recogniser.features(samples)])
        assert len(ours) == int(frames[0])
        assert (ours.argmax(-1) == theirs[0].argmax(-1)).all()
        assert np.abs(log_softmax(ours, axis=-1) - theirs[0]).max() < 0.01


def test_frames_of_hama_are_those_of_its_engine():
    pytest.importorskip("hama", reason="needs minihra[hama]")
    from hama import ASRModel

    model = ASRModel()
    for n in (201, 319, 320, 480, 639, 640, 641, 16000, 16159, 16160):
        frames = len(HAMA(voice(n)))
        assert model(voice(n), 16000).num_frames == (frames - 1) // 2 + 1  # a convolution of stride 2 comes first


KEPT = {  # by `python -m tests.test_open_features`: frames, and columns 0, 1/3, 2/3 of the first and the middle frame
    "ParakeetFeatures": [50, 0.0659, -0.3991, 4.2254, -2.1646, -2.1431, 1.1393],
    "Wav2Vec2BertFeatures": [24, -0.0521, 0.0576, 0.402, -2.0763, 0.4864, -2.0538],
    "LasrFeatures": [48, -11.5129, 0.4354, -8.6466, -11.5129, -2.0002, -8.5005],
    "WaveformFeatures": [8017, -0.3787, -0.3787, -0.3787, 0.0508, 0.0508, 0.0508],
    "HamaFeatures": [51, -5.5, -4.0547, -11.4844, -12.3672, -6.1523, -12.5469],
}


def sample_of(features):
    """A few numbers of the features of a voice."""
    y = features(voice(8017))
    return [len(y), *(round(float(y[t, f * y.shape[1] // 3]), 4) for t in (0, len(y) // 2) for f in range(3))]


@pytest.mark.parametrize("features", [*FAMILIES.values(), HAMA], ids=lambda f: type(f).__name__)
def test_features_are_what_they_were(features):
    np.testing.assert_allclose(sample_of(features), KEPT[type(features).__name__], rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("features", "least", "frames"),
    [
        (ParakeetFeatures(), 320, 2),
        (Wav2Vec2BertFeatures(), 560, 1),
        (LasrFeatures(), 400, 1),
        (HAMA, 201, 2),
        (WaveformFeatures(), 1, 1),
    ],
)
def test_too_short_recordings_are_refused(features, least, frames):
    got = features(voice(least))
    assert got.shape == (frames, features.mels)
    assert np.isfinite(got).all()
    with pytest.raises(ValueError, match=f"the recording has {least - 1} samples, but .* takes {least}"):
        features(voice(least - 1))


@pytest.mark.parametrize(
    ("features", "hop", "words"),
    [
        (ParakeetFeatures(), 0.01, "80 log-mel (Slaney), 25 ms every 10 ms, each bin normalised"),
        (
            Wav2Vec2BertFeatures(),
            0.02,
            "80 log-mel (Kaldi), 25 ms every 10 ms, each bin normalised, two frames side by",
        ),
        (LasrFeatures(), 0.01, "128 log-mel (Kaldi), 25 ms every 10 ms, not normalised"),
        (HAMA, 0.01, "80 log-mel (hama), 25 ms every 10 ms, not normalised"),
        (WaveformFeatures(normalise=False), 1 / 16000, "the waveform at 16000 Hz, as it is"),
    ],
)
def test_features_describe_themselves(features, hop, words):
    assert (features.sample_rate, features.hop) == (16000, hop)
    assert features.describe().startswith(words)


@pytest.mark.parametrize("features", [ParakeetFeatures(), LasrFeatures(), HAMA], ids=lambda f: f.mels)
def test_blocks_do_not_show(features, monkeypatch):
    samples = voice(16000)
    whole = features(samples)
    monkeypatch.setattr("minihra.speech.mel_frames.BLOCK", 7)
    np.testing.assert_allclose(features(samples), whole, rtol=0, atol=1e-5)


def test_an_hour_takes_little_memory():
    samples = np.zeros(16000 * 600, np.float32)  # ten minutes are enough to see it
    frames = len(samples) // 160
    assert frames > 10 * BLOCK
    for features in (ParakeetFeatures(), Wav2Vec2BertFeatures()):
        tracemalloc.start()
        features(samples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < frames * 257 * 8 * 2  # two spectra in float64; at once they would be more than six


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (ParakeetFeatures, {"sampling_rate": 0}, "sample_rate must be a whole number of at least 1, got 0"),
        (ParakeetFeatures, {"feature_size": "80"}, "mels must be a whole number of at least 1, got '80'"),
        (ParakeetFeatures, {"hop_length": None}, "hop_length must be a whole number"),
        (ParakeetFeatures, {"hop_length": 10**30}, f"hop_length must be at most 65536, got {10**30}"),
        (ParakeetFeatures, {"n_fft": 10**12}, "n_fft must be at most 65536, got 1000000000000"),
        (WaveformFeatures, {"sampling_rate": 10**400}, "sample_rate must be at most 1048576, got 1000"),
        (ParakeetFeatures, {"n_fft": 256}, "n_fft must be even and at least the window, 400, got 256"),
        (ParakeetFeatures, {"n_fft": 511}, "n_fft must be even"),
        (ParakeetFeatures, {"preemphasis": 2}, "preemphasis must be between 0 and 1, got 2"),
        (ParakeetFeatures, {"feature_extractor_type": "X"}, "feature_extractor_type must be 'Parakeet.*', got 'X'"),
        (Wav2Vec2BertFeatures, {"stride": 1}, "stride must be 2, got 1"),
        (Wav2Vec2BertFeatures, {"num_mel_bins": True}, "bins must be a whole number"),
        (LasrFeatures, {"sampling_rate": 8000}, "sample_rate must be a whole number of at least 15000, got 8000"),
        (LasrFeatures, {"win_length": 600}, "n_fft must be even and at least the window, 600, got 512"),
        (WaveformFeatures, {"feature_size": 2}, "feature_size must be 1, got 2"),
        (WaveformFeatures, {"do_normalize": 1}, "normalise must be true or false, got 1"),
    ],
)
def test_impossible_settings_are_named(family, settings, message):
    with pytest.raises(ValueError, match=message):
        family.from_settings(settings)


def test_settings_are_taken():
    assert ParakeetFeatures.from_settings({"preemphasis": None, "feature_size": 128, "do_normalize": True}) == (
        ParakeetFeatures(mels=128, preemphasis=0.0)
    )
    assert Wav2Vec2BertFeatures.from_settings({"num_mel_bins": 40}).mels == 80
    assert WaveformFeatures.from_settings({"do_normalize": False}) == WaveformFeatures(normalise=False)
    for features in FAMILIES.values():
        assert type(features).from_settings({}) == features


def test_kernels_and_filters_of_hama_have_shapes():
    with pytest.raises(ValueError, match=r"filters must have the shape \(201, mels\), got \(257, 80\)"):
        HamaFeatures(*KERNELS, np.zeros((257, 80)))
    with pytest.raises(ValueError, match=r"sine must have the shape \(400, 201\), got \(201, 400\)"):
        HamaFeatures(KERNELS[0], KERNELS[1].T, BANK)


if __name__ == "__main__":
    for each in (*FAMILIES.values(), HAMA):
        print(f'    "{type(each).__name__}": {sample_of(each)},')
