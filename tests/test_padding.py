"""Rung 4: padding and batch-mates change nothing, and the gradient of a padded frame is exactly 0."""

from typing import Any

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.blocks.protocol import Context, Training
from minihra.cases import Case, layer_cases, numbers, pair_case
from minihra.layers.relative_attention import relative_positions
from minihra.layers.rotary import RotaryTable, rotary_table
from minihra.masks import halve, hide, strided, valid_from_lengths
from minihra.model import ctc_loss, forward, pack_labels
from minihra.model_cases import CONFIG, FRAMES, LENGTHS, TASKS, block_cases, tiny_conformer
from minihra.tree import leaves
from tests.tiny import batch, frozen_backbone, gradients_of, logits_of, trained_hra

MORE = 3  # frames that are appended
TOLERANCE = 1e-12  # of the largest element: another size may take another kernel of the BLAS

PAIRS = [case for case in layer_cases() if case.timed]
BLOCKS = block_cases()
MASKED = [case for case in [*PAIRS, *BLOCKS] if "valid" in case.constants or "context" in case.constants]


def assert_close(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= TOLERANCE * np.abs(expected).max(initial=1)


def longer(x: Array, value: Any, axis: int = 1) -> Array:
    """x with MORE frames of `value` behind its last one."""
    shape = list(x.shape)
    shape[axis] = MORE
    return np.concatenate([x, np.full(shape, value, x.dtype)], axis=axis)


def longer_constant(name: str, value: Any) -> Any:
    match name, value:
        case "valid", _:
            return longer(value, False)
        case "keep", _:
            return longer(value, True)
        case "positions" | "table", RotaryTable(cos, _):
            base = 100.0 if name == "table" else 10000.0  # of the cases
            return rotary_table(len(cos) + MORE, cos.shape[1], cos.dtype, base=base)
        case "positions", np.ndarray():
            return relative_positions((len(value) + 1) // 2 + MORE, value.shape[1], value.dtype)
        case "context", Context(valid, positions, training):
            if training is not None:
                training = Training(longer(training.keep, True, axis=3), training.rate)
            return Context(longer(valid, False), longer_constant("positions", positions), training)
    return value


def padded(case: Case) -> Case:
    """The case with MORE frames of 1e3 in every argument that has frames."""
    return case._replace(
        arguments={name: longer(x, 1e3) if name in case.timed else x for name, x in case.arguments.items()},
        constants={name: longer_constant(name, x) for name, x in case.constants.items()},
    )


def mask_of(case: Case) -> Array | None:
    return case.constants["context"].valid if "context" in case.constants else case.constants.get("valid")


def is_block(case: Case) -> bool:
    return case in BLOCKS


def first_output(case: Case) -> tuple[Array, Array | None]:
    """The case's output and the mask of its frames, None where it does not care which are real."""
    y, *_ = case.pair.forward(**case.arguments, **case.constants)
    valid = mask_of(case)
    match case.name.partition(",")[0]:
        case "conv2d" | "depthwise_conv2d":
            valid = halve(valid)
        case "subsampling":
            for _ in case.arguments["p"].convs:
                valid = halve(valid)
        case "stages":
            for stage in case.constants["stages"]:
                if not stage.linear:
                    valid = strided(valid, stage.kernel, stage.stride, stage.pad)
        case "conv1d":
            valid = strided(valid, len(case.arguments["p"].W), case.constants["stride"], case.constants.get("pad", 0))
    return y, valid


def gradients_for(case: Case, dy: Array) -> dict[str, Any]:
    *_, cache = case.pair.forward(**case.arguments, **case.constants)
    gradients = case.pair.backward(dy, cache)
    return dict(zip(case.arguments, gradients if type(gradients) is tuple else (gradients,), strict=True))


@pytest.mark.parametrize("case", [case for case in [*PAIRS, *BLOCKS] if case.outputs == 1], ids=lambda case: case.name)
def test_padded_frames_change_nothing(case: Case) -> None:
    more = padded(case)
    (y, valid), (long_y, long_valid) = first_output(case), first_output(more)
    dy, frames = numbers(*y.shape, k=40), slice(None)
    if y.ndim == 1:  # the losses of CTC
        long_dy = dy
    else:
        frames = (slice(None), slice(y.shape[1]))
        # A pair with a mask must ignore what comes down on padded frames; a block, and a pair without, is given 0.
        long_dy = np.full(long_y.shape, 1e3 if valid is not None and not is_block(case) else 0.0)
        long_dy[frames] = dy if valid is None or not is_block(case) else hide(dy, valid)
        dy = long_dy[frames]
    gradients, long_gradients = gradients_for(case, dy), gradients_for(more, long_dy)
    if valid is None or y.ndim == 1:
        assert_close(long_y[frames], y)
    else:
        assert (long_valid[frames] == valid).all()
        assert_close(long_y[frames][valid], y[valid])
    for name, dx in gradients.items():
        if name in case.timed:
            assert_same_frames(long_gradients[name], dx, mask_of(case))
        else:
            assert_same_leaves(long_gradients[name], dx)


def assert_same_frames(long_dx: Array, dx: Array, valid: Array | None) -> None:
    """The gradients of frames agree, and are exactly 0 where the frames are not real."""
    T = dx.shape[1]
    assert_close(long_dx[:, :T], dx)
    assert (long_dx[:, T:] == 0).all()
    if valid is not None:
        assert (dx[~valid] == 0).all()
        assert (long_dx[:, :T][~valid] == 0).all()


def assert_same_leaves(got: Any, expected: Any) -> None:
    named = dict(leaves(expected))
    assert named.keys() == dict(leaves(got)).keys()
    for name, leaf in leaves(got):
        assert_close(leaf, named[name])


@pytest.mark.parametrize("case", [case for case in BLOCKS if case.outputs == 2], ids=lambda case: case.name)
def test_padded_frames_change_nothing_over_depth(case: Case) -> None:
    """depth_step takes and gives a state by rows, (M T, H): frames are appended inside."""
    more, (x, h) = padded(case), (case.arguments[name] for name in "xh")
    T, H = x.shape[1], h.shape[1]
    more.arguments["h"] = longer(h.reshape(-1, T, H), 1e3).reshape(-1, H)
    (u, h_next, cache), (long_u, long_h_next, long_cache) = (
        c.pair.forward(**c.arguments, **c.constants) for c in (case, more)
    )
    du, dh_next = numbers(*u.shape, k=40), numbers(*h_next.shape, k=41)
    long_dh_next = longer(dh_next.reshape(-1, T, H), 0.0).reshape(-1, H)
    dx, dh, dp = case.pair.backward(du, dh_next, cache)
    long_dx, long_dh, long_dp = more.pair.backward(longer(du, 0.0), long_dh_next, long_cache)

    assert_close(long_u[:, :T], u)
    assert_close(long_h_next.reshape(-1, T + MORE, H)[:, :T], h_next.reshape(-1, T, H))
    assert_same_frames(long_dx, dx, None)
    if "none" in case.name:
        assert dh is None and long_dh is None
    else:
        assert_same_frames(long_dh.reshape(-1, T + MORE, H), dh.reshape(-1, T, H), None)
    assert_same_leaves(long_dp, dp)


@pytest.mark.parametrize("case", MASKED, ids=lambda case: case.name)
def test_no_utterance_has_a_frame(case: Case) -> None:
    """A batch of nothing but padding gives zeros (a block, which leaves them to its readers: finite numbers), and
    gradients of exactly 0."""
    constants = dict(case.constants)
    if "context" in constants:
        context = constants["context"]
        constants["context"] = context._replace(valid=np.zeros_like(context.valid))
    else:
        constants["valid"] = np.zeros_like(constants["valid"])
    empty = case._replace(constants=constants)
    y, _ = first_output(empty)
    assert np.isfinite(y).all() if is_block(case) else (y == 0).all()
    dy = np.zeros_like(y) if is_block(case) else numbers(*y.shape, k=40)
    assert all((leaf == 0).all() for _, leaf in leaves(gradients_for(empty, dy)))


def test_softmax_of_an_empty_row_is_zero() -> None:
    s, mask = np.array([[1e300, -1e300], [3.0, 4.0]]), np.array([[False, False], [True, False]])
    case = pair_case("masked_softmax", "", {"s": s}, constants={"mask": mask})
    assert first_output(case)[0].tolist() == [[0, 0], [1, 0]]
    assert gradients_for(case, np.ones((2, 2)))["s"].tolist() == [[0, 0], [0, 0]]


# Alone. Every utterance of the batch, without its batch-mates and without padding.

ALONE = [
    case for case in MASKED if "training" not in case.name and not case.name.startswith("batch_norm")
]  # batch norm knows its batch-mates while a backbone trains


def alone(case: Case, b: int, n: int) -> Case:
    """Row b, cut to its n frames."""

    def cut(name: str, value: Any) -> Any:
        match name, value:
            case "context", Context(valid, positions, training):
                return Context(valid[b : b + 1, :n], cut("positions", positions), training)
            case "positions", RotaryTable(cos, sin):
                return RotaryTable(cos[:n], sin[:n])
            case "positions", np.ndarray():
                return relative_positions(n, value.shape[1], value.dtype)
            case "valid", _:
                return value[b : b + 1, :n]
            case (("labels" | "label_lengths"), _):
                return value[b : b + 1]
        return value

    return case._replace(
        arguments={name: x[b : b + 1, :n] if name in case.timed else x for name, x in case.arguments.items()},
        constants={name: cut(name, value) for name, value in case.constants.items()},
    )


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_batch_mates_change_nothing(case: Case) -> None:
    valid = mask_of(case)
    together, *_ = case.pair.forward(**case.arguments, **case.constants)
    for b, n in enumerate(valid.sum(1)):
        if n:
            single = alone(case, b, n)
            y, *_ = single.pair.forward(**single.arguments, **single.constants)
            assert_close(together[b : b + 1] if y.ndim == 1 else together[b : b + 1, : y.shape[1]], y)


@pytest.mark.parametrize("task", ["ann", "base"])
def test_whole_model_alone(task: str) -> None:
    backbone, hra, given = frozen_backbone(np.float64), trained_hra(dtype=np.float64), batch(np.float64)
    together = logits_of(backbone, given, hra, [task, *TASKS[1:]])
    n = LENGTHS[0] - 4
    shorter = given._replace(lengths=np.array([n, *LENGTHS[1:]]))
    shortened = logits_of(backbone, shorter, hra, [task, *TASKS[1:]])
    logits, _ = forward(backbone, given.features[:1], np.array([FRAMES]), hra.edit([task]))
    assert_close(together[:1], logits)
    logits, _ = forward(backbone, given.features[:1, :n], np.array([n]), hra.edit([task]))
    assert_close(shortened[:1, : logits.shape[1]], logits)


# The entrance clears padding, whatever it holds.


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e3])
def test_entrance_clears_padding(junk: float) -> None:
    backbone, hra, given = frozen_backbone(np.float64), trained_hra(dtype=np.float64), batch(np.float64)
    valid = valid_from_lengths(LENGTHS, FRAMES)
    clean = given._replace(features=hide(given.features, valid))
    dirty = given._replace(features=np.where(valid[:, :, None], given.features, junk))
    assert logits_of(backbone, dirty, hra).tobytes() == logits_of(backbone, clean, hra).tobytes()
    loss, gradients = gradients_of(backbone, dirty, hra)
    clean_loss, clean_gradients = gradients_of(backbone, clean, hra)
    assert loss.utterances.tobytes() == clean_loss.utterances.tobytes()
    expected = dict(leaves(clean_gradients))
    assert {name: leaf.tobytes() for name, leaf in leaves(gradients)} == {
        name: leaf.tobytes() for name, leaf in expected.items()
    }


# 0 * NaN is NaN: attention, which multiplies its weights of 0 with the values, relies on the entrance.
@pytest.mark.parametrize(
    "case",
    [case for case in PAIRS if "valid" in case.constants and "attention" not in case.name],
    ids=lambda case: case.name,
)
def test_masked_pairs_let_no_nan_through(case: Case) -> None:
    valid = mask_of(case)
    arguments = {
        name: np.where(valid.reshape(*valid.shape, *[1] * (x.ndim - 2)), x, np.nan) if name in case.timed else x
        for name, x in case.arguments.items()
    }
    clean, *_ = case.pair.forward(**case.arguments, **case.constants)
    dirty, *_ = case.pair.forward(**arguments, **case.constants)
    assert dirty.tobytes() == clean.tobytes()


def test_more_padding_to_the_whole_model() -> None:
    """Features that are padded further, so that every layer is longer too."""
    backbone, hra, given = frozen_backbone(np.float64), trained_hra(dtype=np.float64), batch(np.float64)
    more = given._replace(features=np.concatenate([given.features, np.full((len(TASKS), 9, CONFIG.mels), np.nan)], 1))
    frames = valid_from_lengths([6, 4, 2, 0, 3], 6)
    assert_close(logits_of(backbone, more, hra)[:, :6][frames], logits_of(backbone, given, hra)[frames])
    loss, gradients = gradients_of(backbone, given, hra)
    more_loss, more_gradients = gradients_of(backbone, more, hra)
    assert_close(more_loss.utterances, loss.utterances)
    expected = dict(leaves(gradients.adapter))
    for name, leaf in leaves(more_gradients.adapter):
        assert_close(leaf, expected[name])


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 5, CONFIG.mels + 1), [5, 5], r"\(B, T, 9\)"),
        ((2, 0, CONFIG.mels), [0, 0], "T at least 1"),
        ((5, CONFIG.mels), [5], r"\(B, T, 9\)"),
        ((2, 5, CONFIG.mels), [5, 6], "from 0 to 5"),
        ((2, 5, CONFIG.mels), [5, -1], "from 0 to 5"),
        ((2, 5, CONFIG.mels), [5], "1 lengths were given for a batch of 2"),
        ((0, 5, CONFIG.mels), [], "0 lengths were given for a batch of 0"),
    ],
)
def test_impossible_features_are_refused(shape: tuple[int, ...], lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_conformer().embed(np.zeros(shape), np.array(lengths))


def test_labels_of_another_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="labels of 1 utterances were given for a batch of 2"):
        ctc_loss(np.zeros((2, 3, 4)), np.ones((2, 3), bool), pack_labels([[1]], 4))


def test_a_frozen_model_takes_no_training_step() -> None:
    training = tiny_conformer().draw_dropout(0.1, 1, 5, np.random.default_rng(0))
    with pytest.raises(ValueError, match="a frozen model runs as at inference"):
        tiny_conformer().embed(np.zeros((1, 5, CONFIG.mels)), np.array([5]), training)
