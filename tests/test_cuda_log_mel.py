"""The twin of log-mel for the GPU: transforms of all lengths that it takes, filters of all kinds, what it refuses."""

from unittest.mock import patch

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.kernels.cuda import log_mel
from minihra.layers.log_mel import hann_window, log_mel_backward, log_mel_forward, mel_filters
from minihra.speech.features import LogMel
from tests.cuda_twins import emulated
from tests.test_twins import TOLERANCE, assert_same


def assert_equal(samples: Array, window: Array, filters: Array, dtype: type = np.float64, **settings: float) -> Array:
    """The twin's features, that equal the reference's, as does all in its cache."""
    inputs = [array.astype(dtype) for array in (samples, window, filters)]
    wanted, wanted_cache = log_mel_forward(*inputs, **settings)
    y, cache = log_mel.log_mel_forward(*inputs, **settings)
    assert_same((y, cache), (wanted, wanted_cache), dtype)
    assert cache.samples == wanted_cache.samples and cache[-3:] == wanted_cache[-3:]
    dy = np.ones_like(y)
    assert_same(log_mel_backward(dy, cache), log_mel_backward(dy, wanted_cache), dtype)
    return y


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("n_fft", [2, 4, 8, 64, 512, 2048])
def test_transforms(n_fft: int, dtype: type) -> None:
    """With a window that fills the transform, that leaves it half empty, and that ends within a pair of samples."""
    rng = np.random.default_rng(n_fft)
    for W in {n_fft, max(1, n_fft // 2), n_fft - 1}:
        with emulated():
            filters = rng.random((n_fft // 2 + 1, 3)) + 0.1
            y = assert_equal(rng.standard_normal(3 * n_fft), hann_window(W) + 0.1, filters, dtype, hop=W, n_fft=n_fft)
        assert np.ptp(y) > 0


@pytest.mark.parametrize("shape", [(200,), (3, 150), (2, 2, 70), (0, 70), (2, 63), (64,)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    """Recordings that are shorter than a window have no frames; 5 frames of 3 blocks have their turn in a loop."""
    samples = np.random.default_rng(0).standard_normal(shape)
    filters = mel_filters(8000, 64, 40, 20, 4000)
    assert (filters.max(0) == 0).any(), "the narrowest filters lie between two bins"
    for blocks in (3, 100):
        with emulated(), patch.object(log_mel, "MOST_BLOCKS", blocks):
            y = assert_equal(samples, hann_window(64), filters, hop=20, n_fft=64, floor=1e-3)
    assert y.size == 0 or y.min() == np.log(1e-3)


def test_filters_with_gaps_and_negative_ones() -> None:
    filters = np.zeros((33, 5))
    filters[[3, 9], 0], filters[0, 1], filters[32, 2], filters[10:12, 3] = (1, 2), 1, 1, (5, -0.1)
    with emulated():
        assert_equal(np.random.default_rng(1).standard_normal(100), hann_window(50), filters, hop=9, n_fft=64)


def test_nan_shows_where_it_is() -> None:
    samples = np.random.default_rng(2).standard_normal(200)
    samples[100] = np.nan
    inputs, settings = (samples, hann_window(32) + 0.1, np.ones((17, 2))), {"hop": 32, "n_fft": 32}
    with emulated():
        y, _ = log_mel.log_mel_forward(*inputs, **settings)
    assert np.isnan(y).tolist() == np.isnan(log_mel_forward(*inputs, **settings)[0]).tolist()
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, 0)).all()


def test_checked_and_in_any_order() -> None:
    results, rng = [], np.random.default_rng(3)
    inputs = [rng.standard_normal(n).astype(np.float32) for n in ((2, 150), 50, (33, 7))]
    for order in (0, 1, 2):
        with emulated(order=order, seed=1, checked=True), patch.object(log_mel, "MOST_BLOCKS", 3):
            y, cache = log_mel.log_mel_forward(*inputs, hop=16, n_fft=64)
            results.append([a.tobytes() for a in (y, cache.spectrum, cache.mel)])
    assert results[0] == results[1] == results[2]


def test_features_of_a_recording() -> None:
    """As the library calls it: a quiet and a loud tone, in float32, of which a reference in float64 tells the error."""
    features, samples = LogMel(16000, 80), np.sin(np.arange(4000) ** 2 / 9000)
    window, filters, n_fft = features._constants
    inputs, settings = (samples, window, filters), {"hop": 160, "n_fft": n_fft, "floor": 1e-3}
    wanted, _ = log_mel_forward(*(a.astype(float) for a in inputs), **settings)
    with emulated(threads=64):
        y, _ = log_mel.log_mel_forward(samples.astype(np.float32), window, filters, **settings)
    assert np.abs(y - wanted).max() < 1e-4


@pytest.mark.parametrize(("n_fft", "W"), [(1, 1), (12, 12), (400, 400), (4096, 400), (64, 65)])
def test_other_transforms_are_left_to_the_reference(n_fft: int, W: int) -> None:
    inputs = np.zeros(9000), np.ones(W), np.ones((n_fft // 2 + 1, 3))
    assert log_mel.log_mel_forward(*inputs, hop=5, n_fft=n_fft) is NotImplemented


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_mixed_types_are_left_to_the_reference(wide: int) -> None:
    inputs = [np.ones(shape, np.float32) for shape in (100, 16, (9, 3))]
    inputs[wide] = inputs[wide].astype(float)
    assert log_mel.log_mel_forward(*inputs, hop=5, n_fft=16) is NotImplemented
    assert log_mel.log_mel_forward(*inputs[:2], inputs[2][:8], hop=5, n_fft=16) is NotImplemented
