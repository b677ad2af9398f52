"""The padding mask."""

import numpy as np
import pytest

from minihra.masks import halve, hide, strided, valid_from_lengths
from minihra.model_cases import CONFIG, tiny_conformer


def test_valid_from_lengths() -> None:
    valid = valid_from_lengths([3, 0, 1], 3)
    assert valid.dtype == bool
    assert valid.tolist() == [[True, True, True], [False, False, False], [True, False, False]]


@pytest.mark.parametrize("lengths", [[4, 1], [-1, 2], [[1, 2]], 2])
def test_impossible_lengths_are_refused(lengths: object) -> None:
    with pytest.raises(ValueError, match="from 0 to 3"):
        valid_from_lengths(lengths, 3)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4), (2, 3, 4, 5)])
def test_hide_clears_whatever_padding_holds(shape: tuple[int, ...]) -> None:
    valid = valid_from_lengths([2, 0], 3)
    x = np.full(shape, np.nan, np.float32)
    x[0, :2] = 7
    before = x.copy()
    hidden = hide(x, valid)
    assert hidden.dtype == np.float32
    assert (hidden[0, :2] == 7).all() and (hidden[0, 2:] == 0).all() and (hidden[1] == 0).all()
    assert np.array_equal(x, before, equal_nan=True), "the argument was changed"


@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_halve_rounds_lengths_up(frames: int) -> None:
    lengths = np.arange(frames + 1)
    halved = halve(valid_from_lengths(lengths, frames))
    assert halved.shape == (frames + 1, (frames + 1) // 2)
    assert halved.sum(1).tolist() == ((lengths + 1) // 2).tolist()


@pytest.mark.parametrize(
    ("kernel", "stride", "pad"), [(10, 5, 0), (3, 2, 0), (3, 2, 1), (1, 1, 0), (2, 4, 0), (4, 1, 2)]
)
@pytest.mark.parametrize("frames", [0, 1, 2, 9, 26])
def test_strided_keeps_what_each_utterance_would_keep_alone(frames: int, kernel: int, stride: int, pad: int) -> None:
    lengths = np.arange(frames + 1)
    mask = strided(valid_from_lengths(lengths, frames), kernel, stride, pad)
    alone = [max(0, (n + 2 * pad - kernel) // stride + 1) for n in lengths.tolist()]
    assert mask.shape == (frames + 1, alone[frames])
    assert mask.sum(1).tolist() == [0, *alone[1:]]  # padding around no frames is no frame
    assert (mask[:, 1:] <= mask[:, :-1]).all()


def test_dropout_masks_have_one_for_each_branch_of_each_layer() -> None:
    training = tiny_conformer().draw_dropout(0.3, 2, 23, np.random.default_rng(0))
    assert training.keep.shape == (CONFIG.layers, 4, 2, 6, CONFIG.width)  # 23 frames are 6 after subsampling
    assert abs(training.keep.mean() - 0.7) < 0.06


def test_no_dropout_draws_nothing() -> None:
    rng = np.random.default_rng(0)
    assert tiny_conformer().draw_dropout(0.0, 2, 23, rng).keep is None
    assert rng.random() == np.random.default_rng(0).random()
