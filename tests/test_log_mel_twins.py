"""The twins of log-mel: transforms of all lengths that they take, filters of all kinds, what they refuse."""

import tracemalloc
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from unittest.mock import patch

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.kernels.cpu import log_mel as on_cpu
from minihra.kernels.cpu.compiled import WORTH
from minihra.kernels.cuda import log_mel as on_cuda
from minihra.layers.log_mel import hann_window, log_mel_backward, log_mel_forward, mel_filters
from minihra.speech.features import LogMel
from minihra.threads import set_threads, share, threads
from tests.cuda_twins import emulated
from tests.test_twins import TOLERANCE, assert_same


class Twin:
    """One of the two, and where it runs."""

    def __init__(self, name: str) -> None:
        self.forward = {"cpu": on_cpu, "cuda": on_cuda}[name].log_mel_forward
        self.emulated = name == "cuda"

    def there(self, **how: int) -> AbstractContextManager:
        """In it the twin can run."""
        return emulated(**how) if self.emulated else nullcontext()


@pytest.fixture(params=["cpu", "cuda"])
def twin(request: pytest.FixtureRequest) -> Twin:
    return Twin(request.param)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    before = threads()
    yield
    set_threads(before)


def assert_equal(
    twin: Twin, samples: Array, window: Array, filters: Array, dtype: type = np.float64, **settings: float
) -> Array:
    """The twin's features, that equal the reference's, as does all in its cache."""
    inputs = [array.astype(dtype) for array in (samples, window, filters)]
    wanted, wanted_cache = log_mel_forward(*inputs, **settings)
    y, cache = twin.forward(*inputs, **settings)
    assert_same((y, cache), (wanted, wanted_cache), dtype)
    assert cache[-3:] == wanted_cache[-3:]
    dy = np.ones_like(y)
    assert_same(log_mel_backward(dy, cache), log_mel_backward(dy, wanted_cache), dtype)
    return y


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("n_fft", [2, 4, 8, 64, 512, 2048])
def test_transforms(twin: Twin, n_fft: int, dtype: type) -> None:
    """With a window that fills the transform, that leaves it half empty, and that ends within a pair of samples."""
    rng = np.random.default_rng(n_fft)
    for W in {n_fft, max(1, n_fft // 2), n_fft - 1}:
        with twin.there():
            filters, window = rng.random((n_fft // 2 + 1, 3)) + 0.1, hann_window(W) + 0.1
            y = assert_equal(twin, rng.standard_normal(3 * n_fft), window, filters, dtype, hop=W, n_fft=n_fft)
        assert np.ptp(y) > 0


@pytest.mark.parametrize("shape", [(200,), (3, 150), (2, 2, 70), (0, 70), (2, 63), (64,)], ids=str)
def test_shapes(twin: Twin, shape: tuple[int, ...]) -> None:
    """Recordings that are shorter than a window have no frames; 5 frames of 3 blocks have their turn in a loop."""
    samples = np.random.default_rng(0).standard_normal(shape)
    filters = mel_filters(8000, 64, 40, 20, 4000)
    assert (filters.max(0) == 0).any(), "the narrowest filters lie between two bins"
    for blocks in (3, 100):
        with twin.there(), patch.object(on_cuda, "MOST_BLOCKS", blocks):
            y = assert_equal(twin, samples, hann_window(64), filters, hop=20, n_fft=64, floor=1e-3)
    assert y.size == 0 or y.min() == np.log(1e-3)


def test_filters_with_gaps_and_negative_ones(twin: Twin) -> None:
    filters = np.zeros((33, 5))
    filters[[3, 9], 0], filters[0, 1], filters[32, 2], filters[10:12, 3] = (1, 2), 1, 1, (5, -0.1)
    with twin.there():
        assert_equal(twin, np.random.default_rng(1).standard_normal(100), hann_window(50), filters, hop=9, n_fft=64)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_nan_shows_where_it_is(twin: Twin, dtype: type) -> None:
    samples = np.random.default_rng(2).standard_normal(200)
    samples[100] = np.nan
    inputs = [array.astype(dtype) for array in (samples, hann_window(32) + 0.1, np.ones((17, 2)))]
    settings = {"hop": 32, "n_fft": 32}
    with twin.there():
        y, _ = twin.forward(*inputs, **settings)
    assert np.isnan(y).tolist() == np.isnan(log_mel_forward(*inputs, **settings)[0]).tolist()
    assert np.isnan(y[3]).all() and np.isfinite(np.delete(y, 3, 0)).all()


def test_checked_and_in_any_order() -> None:
    results, rng = [], np.random.default_rng(3)
    inputs = [rng.standard_normal(n).astype(np.float32) for n in ((2, 150), 50, (33, 7))]
    for order in (0, 1, 2):
        with emulated(order=order, seed=1, checked=True), patch.object(on_cuda, "MOST_BLOCKS", 3):
            y, cache = on_cuda.log_mel_forward(*inputs, hop=16, n_fft=64)
            results.append([a.tobytes() for a in (y, cache.mel)])
    assert results[0] == results[1] == results[2]


def test_features_of_a_recording(twin: Twin) -> None:
    """As the library calls it: a quiet and a loud tone, in float32, of which a reference in float64 tells the error."""
    features, samples = LogMel(16000, 80), np.sin(np.arange(4000) ** 2 / 9000)
    window, filters, n_fft = features._constants
    inputs, settings = (samples, window, filters), {"hop": 160, "n_fft": n_fft, "floor": 1e-3}
    wanted, _ = log_mel_forward(*(a.astype(float) for a in inputs), **settings)
    with twin.there(threads=64):
        y, _ = twin.forward(samples.astype(np.float32), window, filters, **settings)
    assert np.abs(y - wanted).max() < 1e-4


@pytest.mark.parametrize(("n_fft", "W"), [(1, 1), (12, 12), (400, 400), (64, 65)])
def test_other_transforms_are_left_to_the_reference(twin: Twin, n_fft: int, W: int) -> None:
    inputs = np.zeros(9000), np.ones(W), np.ones((n_fft // 2 + 1, 3))
    assert twin.forward(*inputs, hop=5, n_fft=n_fft) is NotImplemented


def test_long_transforms_do_not_fit_into_a_block() -> None:
    inputs, settings = (np.ones(9000), np.ones(400), np.ones((2049, 3))), {"hop": 500, "n_fft": 4096}
    assert on_cuda.log_mel_forward(*inputs, **settings) is NotImplemented
    assert_equal(Twin("cpu"), *inputs, **settings)


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_mixed_types_are_left_to_the_reference(twin: Twin, wide: int) -> None:
    inputs = [np.ones(shape, np.float32) for shape in (100, 16, (9, 3))]
    inputs[wide] = inputs[wide].astype(float)
    assert twin.forward(*inputs, hop=5, n_fft=16) is NotImplemented
    assert twin.forward(*inputs[:2], inputs[2][:8], hop=5, n_fft=16) is NotImplemented


def test_a_floor_below_all_normal_numbers_is_left_to_the_reference() -> None:
    inputs = [np.zeros(shape, np.float32) for shape in (100, 16, (9, 3))]
    assert on_cpu.log_mel_forward(*inputs, hop=5, n_fft=16, floor=1e-40) is NotImplemented
    y, _ = on_cpu.log_mel_forward(*inputs, hop=5, n_fft=16, floor=1e-37)
    assert np.abs(y - np.log(1e-37)).max() < 1e-5


def test_threads_share_the_frames(keep_threads: None) -> None:
    """Frames of 3 recordings, where a portion ends within one; a worker, who has but its thread, takes all of them."""
    rng = np.random.default_rng(4)
    inputs = [rng.random(shape, np.float32) for shape in ((3, 10000), 64, (33, 30))]

    def features() -> bytes:
        y, cache = on_cpu.log_mel_forward(*inputs, hop=20, n_fft=64)
        assert y.shape == (3, 497, 30) and y.size > WORTH
        return y.tobytes() + cache.mel.tobytes()

    found = []
    for number in (1, 2, 3):
        set_threads(number)
        found += [features(), *share([features, features])]
    assert len(set(found)) == 1
    assert_equal(Twin("cpu"), *inputs, np.float32, hop=20, n_fft=64)


def test_the_spectrum_of_a_long_recording_is_never_there() -> None:
    """Five minutes of 16 kHz, whose spectrum would take 62 MB: mel energies and features take 5 each."""
    (window, filters, n_fft), samples = LogMel(16000, 40)._constants, np.ones(300 * 16000, np.float32)
    tracemalloc.start()
    y, _ = on_cpu.log_mel_forward(samples, window, filters, hop=160, n_fft=n_fft)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert y.shape == (29998, 40) and peak < 15e6
