"""The twin of CTC for the GPU: blocks with fewer threads than states, labellings of all kinds, and what it refuses."""

from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.kernels.cuda import ctc
from minihra.layers.ctc import CTCCache, ctc_backward, ctc_forward
from minihra.masks import valid_from_lengths
from tests.cuda_twins import emulated
from tests.test_twins import TOLERANCE, assert_same


class Batch(NamedTuple):
    """What the forward takes, beside the blank."""

    logits: Array
    valid: Array
    labels: Array
    label_lengths: Array


def batch(B: int, T: int, V: int, S: int, dtype: type = np.float64, blank: int = 0) -> Batch:
    """Utterances of all lengths, one of them without frames or labels; few labels, so that they repeat."""
    rng = np.random.default_rng([B, T, V, S])
    lengths = np.linspace(T, 0, B).astype(int)
    labels = rng.integers(0, min(V, 5), (B, S))
    labels[labels == blank] = V - 1 - blank
    label_lengths = np.minimum(np.linspace(S, 0, B).astype(int), lengths)
    logits = 3 * rng.standard_normal((B, T, V)).astype(dtype)
    return Batch(logits, valid_from_lengths(lengths, T), labels, label_lengths)


def assert_equal(inputs: Batch, blank: int = 0) -> tuple[Array, CTCCache, Array]:
    """The twin's loss, cache and gradient, that equal the reference's."""
    dtype = inputs.logits.dtype.type
    dloss = np.linspace(1, 2, len(inputs.logits)).astype(dtype)
    wanted, wanted_cache = ctc_forward(*inputs, blank=blank)
    loss, cache = ctc.ctc_forward(*inputs, blank=blank)
    assert_same((loss, cache), (wanted, wanted_cache), dtype)
    wanted, dlogits = ctc_backward(dloss, wanted_cache), ctc.ctc_backward(dloss, cache)
    for found in (dlogits, ctc.ctc_backward(dloss, wanted_cache)):
        assert found.dtype == dtype and found.shape == wanted.shape
        # The exponential of a difference of numbers as large as the loss has their rounding.
        assert np.abs(found - wanted).max(initial=0) <= TOLERANCE[dtype] * max(1, loss.max(initial=0) / 20)
    return loss, cache, dlogits


SIZES = [  # B, T, V, S
    (1, 1, 2, 0), (1, 1, 2, 1), (2, 0, 3, 1), (3, 9, 4, 0), (4, 30, 6, 9), (3, 40, 33, 17), (5, 12, 200, 5),
    (2, 70, 7, 33),
]  # fmt: skip


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(sizes: tuple[int, int, int, int], dtype: type) -> None:
    """With a thread a state, and with threads that have several; with a blank that is the last label."""
    for most in (ctc.MOST_THREADS, 10):
        for blank in (0, sizes[2] - 1):
            with emulated(), patch.object(ctc, "MOST_THREADS", most):
                assert_equal(batch(*sizes, dtype, blank), blank)


@pytest.mark.parametrize("most", [ctc.MOST_THREADS, 10])
def test_checked_and_in_any_order(most: int) -> None:
    results = []
    for order in (0, 1, 2):
        with emulated(order=order, checked=True), patch.object(ctc, "MOST_THREADS", most):
            loss, cache, dlogits = assert_equal(batch(3, 14, 6, 6, np.float32))
            results.append([a.tobytes() for a in (loss, *cache, dlogits)])
    assert results[0] == results[1] == results[2]


def test_repeats_blanks_among_labels_and_too_few_frames() -> None:
    labels = np.array([[1, 1, 1], [1, 2, 1], [2, 0, 2], [1, 1, 2], [1, 2, 9]])
    inputs = batch(5, 5, 10, 3)._replace(labels=labels, label_lengths=np.array([3, 3, 3, 3, 2]))
    valid = valid_from_lengths(np.array([5, 3, 5, 3, 4]), 5)
    with emulated():
        loss, cache, dlogits = assert_equal(inputs._replace(valid=valid))
    assert cache.feasible.tolist() == [True, True, True, False, True]
    assert loss[3] == 0 and not np.signbit(loss[3]) and not dlogits[3].any() and dlogits[0].any()


def test_nothing_to_say() -> None:
    """No utterance at all; no frame and no label, of which the likelihood is 1; labels, but no frame for them."""
    nobody = Batch(np.zeros((0, 4, 3)), np.zeros((0, 4), bool), np.zeros((0, 2), int), np.zeros(0, int))
    silent = Batch(np.full((2, 4, 3), np.nan), np.zeros((2, 4), bool), np.ones((2, 2), int), np.array([0, 1]))
    with emulated():
        assert_equal(nobody)
        loss, cache, dlogits = assert_equal(silent)
    assert loss.tolist() == [0, 0] and not np.signbit(loss).any() and not dlogits.any()
    assert cache.feasible.tolist() == [True, False]


def test_nan_and_infinities() -> None:
    """Those of padded frames are not seen, those of real ones show; a logit of -inf forbids a label."""
    inputs = batch(4, 9, 5, 2)._replace(valid=valid_from_lengths(np.array([5, 9, 9, 9]), 9))
    inputs = inputs._replace(label_lengths=np.array([2, 2, 1, 1]))
    logits = inputs.logits.copy()
    logits[0, 5:] = np.nan
    logits[1, 3, 2] = np.nan
    logits[2, 4] = -np.inf
    logits[3, 2, inputs.labels[3, 0]] = -np.inf
    inputs = inputs._replace(logits=logits)
    with np.errstate(invalid="ignore"), emulated():
        wanted, _ = ctc_forward(*inputs)
        loss, cache = ctc.ctc_forward(*inputs)
        dlogits = ctc.ctc_backward(np.ones(4), cache)
    assert np.isnan(loss).tolist() == np.isnan(wanted).tolist() == [False, True, True, False]
    assert np.allclose(loss, wanted, rtol=1e-12, equal_nan=True) and cache.feasible.all()
    assert np.isfinite(dlogits[[0, 3]]).all() and np.isnan(dlogits[1]).any() and np.isnan(dlogits[2]).any()


def test_frames_in_between_that_do_not_count() -> None:
    inputs = batch(3, 12, 4, 3)
    valid = inputs.valid.copy()
    valid[0, [0, 3, 4, 11]] = False
    with emulated():
        assert_equal(inputs._replace(valid=valid))


def test_arrays_that_are_views() -> None:
    whole = batch(3, 20, 8, 8)
    inputs = Batch(whole.logits[:, ::2], whole.valid[:, ::2], whole.labels[:, ::2], whole.label_lengths // 4)
    with emulated():
        assert_equal(inputs)


@pytest.mark.parametrize("label", [-1, 5, 1 << 32])
def test_what_is_no_label_shows_in_the_loss(label: int) -> None:
    """The reference raises an error, for which a GPU would have to wait."""
    inputs = batch(2, 9, 5, 2)._replace(label_lengths=np.array([2, 1]))
    inputs.labels[0, 1] = label
    inputs.labels[1, 1] = label  # of which nobody reads
    with emulated(checked=True):
        loss, cache = ctc.ctc_forward(*inputs)
        ctc.ctc_backward(np.ones(2), cache)
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


def test_more_states_than_shared_memory_holds_are_left_to_the_reference() -> None:
    S = 1300  # of float64; the same in float32 have room
    inputs = batch(1, 1, 3, S)
    assert ctc.ctc_forward(*inputs) is NotImplemented
    assert ctc.ctc_backward(np.ones(1), ctc_forward(*inputs)[1]) is NotImplemented
    with emulated():
        assert_equal(batch(1, 3, 3, S, np.float32))
