"""Rung 1: every forward equals explicit loops that were written from the papers (tests/naive.py)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.blocks.protocol import Context
from minihra.cases import Case, layer_cases, linear, numbers, pair_case
from minihra.layers.adamw import adamw_update
from minihra.layers.attention import Reach
from minihra.layers.conv import Conv1dParams, DepthwiseConvParams
from minihra.layers.conv2d import Conv2dParams, DepthwiseConv2dParams
from minihra.layers.heads import HeadParams
from minihra.layers.linear import LinearParams
from minihra.layers.log_mel import SCALES, hann_window, mel_filters
from minihra.layers.norms import EPS, MOMENTUM, BatchNormParams, BatchStatistics
from minihra.layers.relative_attention import RelativePositionParams, relative_positions
from minihra.layers.rotary import rotary_table
from minihra.layers.shaw_attention import ShawPositionParams
from minihra.masks import valid_from_lengths
from minihra.model import forward, infer
from minihra.model_cases import CONFIG, block_cases, tiny_conformer, tiny_hra
from minihra.open_cases import OPEN
from minihra.ops import PAIRS
from minihra.tree import Total
from tests import naive
from tests.tiny import TASKS, batch, trained_hra

TOLERANCE = 1e-12  # of the largest element
FLOAT64 = np.dtype(np.float64)


def assert_close(got: Array, expected: Array) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max(initial=0) <= TOLERANCE * np.abs(expected).max(initial=1)


def lengths_of(valid: Array) -> list[int]:
    return valid.sum(1).tolist()


def rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def zeros_for(b: Array | None, like: Array) -> Array:
    return np.zeros(like.shape[-1]) if b is None else b


# For each pair, its result by plain loops. The parameters have the names of the cases' inputs.


def naive_linear(x: Array, p: LinearParams) -> Array:
    return naive.linear(rows(x), p.W, p.b).reshape(*x.shape[:-1], -1)


def naive_batch_norm(
    x: Array, p: BatchNormParams, valid: Array, statistics: BatchStatistics
) -> tuple[Array, BatchStatistics]:
    y, mean, var = naive.batch_norm(x, lengths_of(valid), p.g, p.b, *statistics, EPS, MOMENTUM)
    return y, BatchStatistics(mean, var)


def naive_relative_attention(
    q: Array, k: Array, value: Array, p: RelativePositionParams, positions: Array, valid: Array, reach: Reach
) -> Array:
    T, (A, D) = q.shape[1], p.u.shape
    r = naive.linear(naive.sinusoids(T, p.W.shape[0]), p.W, None).reshape(-1, A, D)
    return naive.relative_attention(q, k, value, r, p.u, p.v, lengths_of(valid), reach)


def naive_ctc(logits: Array, valid: Array, labels: Array, label_lengths: Array, blank: int = 0) -> Array:
    sequences = [row[:n].tolist() for row, n in zip(labels, label_lengths, strict=True)]
    return naive.ctc_loss(logits, lengths_of(valid), sequences, blank)[0]


def naive_head(h: Array, p: HeadParams) -> Array:
    weights = tuple(p) if isinstance(p, LinearParams) else (*p.up, *p.down)
    head = naive.linear_head if isinstance(p, LinearParams) else naive.ffn_head
    return head(rows(h), *weights).reshape(*h.shape[:-1], -1)


def naive_grouped_heads(h: Array, heads: dict[str, HeadParams], segments: tuple) -> Array:
    return np.concatenate([naive_head(h[start:stop], heads[task]) for task, start, stop in segments])


def naive_log_mel(samples: Array, window: Array, filters: Array, hop: int, n_fft: int, floor: float = 1e-10) -> Array:
    return np.stack([naive.log_mel(audio, window, filters, hop, n_fft, floor) for audio in samples])


NAIVE: dict[str, Callable[..., Any]] = {
    "linear": naive_linear,
    "sigmoid": naive.sigmoid,
    "swish": naive.swish,
    "glu": lambda x: naive.glu(rows(x)).reshape(*x.shape[:-1], -1),
    "relu": naive.relu,
    "gelu": naive.gelu,
    "layer_norm": lambda x, p: naive.layer_norm(rows(x), p.g, zeros_for(p.b, x), EPS).reshape(x.shape),
    "batch_norm": naive_batch_norm,
    "running_norm": lambda x, p, statistics: naive.running_norm(rows(x), *p, *statistics, EPS).reshape(x.shape),
    "instance_norm": lambda x, p, valid: naive.instance_norm(x, lengths_of(valid), p.g, zeros_for(p.b, x), EPS),
    "masked_softmax": lambda s, mask: naive.masked_softmax(s, np.broadcast_to(mask, s.shape)),
    "attention": lambda q, k, value, valid, reach=None: naive.attention(q, k, value, lengths_of(valid), reach),
    "relative_attention": naive_relative_attention,
    "shaw_attention": lambda q, k, value, p, valid, left, reach=None: naive.shaw_attention(
        q, k, value, p.E, left, lengths_of(valid), reach
    ),
    "rotary": lambda x, table: naive.rotary(x, 100.0),
    "depthwise_conv": lambda x, p, valid, causal=False: naive.depthwise_conv(
        x, lengths_of(valid), p.W, zeros_for(p.b, x), causal
    ),
    "conv1d": lambda x, p, valid, stride, pad=0: naive.conv1d(
        x, lengths_of(valid), p.W, zeros_for(p.b, p.W), stride, pad
    ),
    "conv2d": lambda x, p, valid: naive.conv2d(x, lengths_of(valid), p.W, p.b),
    "depthwise_conv2d": lambda x, p, valid: naive.depthwise_conv2d(x, lengths_of(valid), p.W, p.b),
    "residual": naive.residual,
    "dropout": naive.dropout,
    "gru": lambda x, h, p: naive.gru(x, h, p.W, p.U, p.b, p.c),
    "indrnn": lambda x, h, p: naive.indrnn(x, h, p.W, p.u, p.b),
    "rnn": lambda x, h, p: naive.rnn(x, h, p.W, p.U, p.b),
    "li_gru": lambda x, h, p: naive.li_gru(x, h, p.W, p.U, p.b),
    "no_recurrence": lambda x, h, p: naive.no_recurrence(x, h, p.W, p.b),
    "ffn_head": naive_head,
    "grouped_heads": naive_grouped_heads,
    "ctc": naive_ctc,
    "log_mel": naive_log_mel,
}


def edge_cases() -> list[Case]:
    """Sizes at which loops and views go wrong first; and CTC over alphabets small enough to list every path."""
    one, few = valid_from_lengths([1], 1), valid_from_lengths([2, 0, 1], 2)

    def attention(name: str, B: int, T: int, A: int, D: int, valid: Array, reach: Reach = None) -> list[Case]:
        C = 4
        p = RelativePositionParams(numbers(C, A * D, k=1), numbers(A, D, k=2), numbers(A, D, k=3))
        inputs = {letter: numbers(B, T, A, D, k=k) for k, letter in enumerate(("q", "k", "value"))}
        positions, constants = relative_positions(T, C, np.dtype(float)), {"valid": valid, "reach": reach}
        return [
            pair_case("attention", name, inputs, constants=constants),
            pair_case("relative_attention", name, {**inputs, "p": p}, constants={"positions": positions, **constants}),
        ]

    def shaw(name: str, T: int, P: int, left: int, valid: Array) -> Case:
        inputs = {letter: numbers(len(valid), T, 2, 3, k=k) for k, letter in enumerate(("q", "k", "value"))}
        inputs["p"] = ShawPositionParams(numbers(P, 3, k=3))
        return pair_case("shaw_attention", name, inputs, constants={"valid": valid, "left": left})

    def depthwise(name: str, T: int, K: int, valid: Array, **more: Any) -> Case:
        x, p = numbers(len(valid), T, 3), DepthwiseConvParams(numbers(K, 3, k=1), numbers(3, k=2))
        return pair_case("depthwise_conv", name, {"x": x, "p": p}, constants={"valid": valid, **more})

    def conv1d(name: str, K: int, stride: int, pad: int, valid: Array) -> Case:
        x, p = numbers(*valid.shape, 2), Conv1dParams(numbers(K, 2, 3, k=1), numbers(3, k=2))
        constants = {"valid": valid, "stride": stride, "pad": pad}
        return pair_case("conv1d", name, {"x": x, "p": p}, constants=constants)

    def conv2d(name: str, T: int, F: int, valid: Array) -> list[Case]:
        kernels = {
            "conv2d": Conv2dParams(numbers(3, 3, 2, 3, k=1), numbers(3, k=2)),
            "depthwise_conv2d": DepthwiseConv2dParams(numbers(3, 3, 2, k=1), numbers(2, k=2)),
        }
        x, constants = numbers(len(valid), T, F, 2), {"valid": valid}
        return [pair_case(pair, name, {"x": x, "p": p}, constants=constants) for pair, p in kernels.items()]

    def ctc(name: str, lengths: list[int], labels: list[list[int]], V: int = 3, blank: int = 0) -> Case:
        T, S = max(lengths), max(map(len, labels))
        padded = np.array([row + [blank] * (S - len(row)) for row in labels], int).reshape(len(labels), S)
        constants = {
            "valid": valid_from_lengths(lengths, T),
            "labels": padded,
            "label_lengths": np.array([len(row) for row in labels]),
            "blank": blank,
        }
        return pair_case("ctc", name, {"logits": 2 * numbers(len(lengths), T, V)}, constants=constants)

    statistics, norm = BatchStatistics(numbers(3), 1 + numbers(3, k=1) / 2), BatchNormParams(numbers(3), numbers(3))

    def batch_norm(name: str, lengths: list[int]) -> Case:
        valid = valid_from_lengths(lengths, 4)
        constants = {"valid": valid, "statistics": statistics}
        return pair_case("batch_norm", name, {"x": numbers(len(lengths), 4, 3), "p": norm}, constants=constants)

    bank = {"window": hann_window(12), "filters": mel_filters(8000, 17, 5, 20, 4000), "hop": 5, "n_fft": 17}
    return [
        *attention("one frame", 1, 1, 2, 3, one),
        *attention("one utterance", 1, 5, 2, 3, valid_from_lengths([5], 5), (1, 0)),
        *attention("reach of nothing", 2, 4, 1, 2, valid_from_lengths([4, 3], 4), (0, 0)),
        *attention("reach beyond the end", 2, 4, 1, 2, valid_from_lengths([4, 3], 4), (9, 9)),
        shaw("one frame", 1, 4, 2, one),
        shaw("one distance", 4, 1, 0, valid_from_lengths([4, 3], 4)),
        shaw("nothing to the right", 4, 3, 2, valid_from_lengths([4, 3], 4)),
        shaw("more distances than frames", 4, 15, 9, valid_from_lengths([4, 3], 4)),
        pair_case("rotary", "one frame", {"x": numbers(2, 1, 2, 2)}, constants={"table": rotary_table(1, 2, FLOAT64)}),
        depthwise("one frame", 1, 5, one),
        depthwise("kernel longer than the sequence", 2, 9, few),
        depthwise("kernel of one", 2, 1, few),
        depthwise("causal, kernel longer than the sequence", 2, 9, few, causal=True),
        depthwise("causal, even kernel", 2, 2, few, causal=True),
        conv1d("one frame", 1, 1, 0, one),
        conv1d("kernel longer than the sequence", 3, 2, 0, few),
        conv1d("kernel as long as a padded utterance", 4, 3, 1, few),
        conv1d("more padding than kernel", 2, 1, 3, few),
        conv1d("stride longer than the kernel", 2, 5, 1, valid_from_lengths([12, 11, 10, 4, 0], 12)),
        *conv2d("one frame", 1, 1, one),
        *conv2d("two frames", 2, 4, few),
        ctc("repeats", [6, 5, 4, 3], [[1, 1, 2], [2, 2], [2, 1], [1]]),
        ctc("blank in the middle", [6, 4, 2], [[0, 0, 2], [2, 0], [0]], blank=1),
        ctc("blank last", [5, 4], [[0, 1], [1, 1]], blank=2),
        ctc("no labels at all", [3, 1, 0], [[], [], []]),
        ctc("too short", [4, 2, 3, 1, 0], [[1, 1, 2], [1, 1], [1, 1, 1], [1, 2], [1]]),
        ctc("no room to spare", [4, 3, 1], [[1, 1, 2], [1, 2, 1], [2]]),
        ctc("only the blank", [3], [[]], V=1),
        batch_norm("one frame in all", [1, 0]),
        batch_norm("no frame at all", [0, 0]),
        pair_case("log_mel", "odd transform, zero filters", {"samples": numbers(2, 31)}, constants=bank),
        pair_case("log_mel", "shorter than a window", {"samples": numbers(2, 11)}, constants=bank),
        pair_case("linear", "one row", {"x": numbers(4), "p": linear(4, 3, 1)}),
    ]


def pair_of(case: Case) -> str:
    return case.name.partition(",")[0]


# The alphabet of the registered CTC cases is too large to list every path; edge_cases has smaller ones.
COMPARED = [case for case in layer_cases() if pair_of(case) != "ctc"] + edge_cases()


@pytest.mark.parametrize("case", COMPARED, ids=lambda case: case.name)
def test_pair_equals_loops(case: Case) -> None:
    expected = NAIVE[pair_of(case)](**case.arguments, **case.constants)
    *outputs, _ = case.pair.forward(**case.arguments, **case.constants)
    for got, wanted in zip(outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
        if isinstance(wanted, tuple):  # running statistics
            for got_leaf, wanted_leaf in zip(got, wanted, strict=True):
                assert_close(got_leaf, wanted_leaf)
        else:
            assert_close(got, wanted)


def test_every_pair_is_compared() -> None:
    assert NAIVE.keys() == PAIRS.keys() == {pair_of(case) for case in COMPARED}


def test_ctc_tells_which_utterances_are_infeasible() -> None:
    case = next(case for case in COMPARED if case.name == "ctc, too short")
    *_, cache = case.pair.forward(**case.arguments, **case.constants)
    inputs = case.arguments | dict(case.constants)
    labels = [row[:n].tolist() for row, n in zip(inputs["labels"], inputs["label_lengths"], strict=True)]
    _, infeasible = naive.ctc_loss(inputs["logits"], lengths_of(inputs["valid"]), labels, 0)
    assert (~cache.feasible).tolist() == infeasible == [False, True, True, True, True]


@pytest.mark.parametrize(("step", "decay"), [(1, 0.0), (7, 0.1)])
def test_adamw_equals_loops(step: int, decay: float) -> None:
    p, g, m, v = numbers(3, 4), numbers(3, 4, k=1), numbers(3, 4, k=2), numbers(3, 4, k=3) ** 2
    wanted_p_m_v = naive.adamw(p, g, m, v, step, 0.02, 0.8, 0.95, 1e-6, decay)
    adamw_update(p, g, m, v, np.array(float(step)), np.array(0.02), beta1=0.8, beta2=0.95, eps=1e-6, decay=decay)
    for mine, wanted in zip((p, m, v), wanted_p_m_v, strict=True):
        assert_close(mine, wanted)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("sample_rate", "n_fft", "F", "low", "high"),
    [(8000, 256, 40, 20, 4000), (16000, 512, 80, 0, 8000), (8000, 256, 5, 0, 900), (8000, 255, 5, 1200, 4000)],
)
def test_mel_filters_equal_loops(sample_rate: int, n_fft: int, F: int, low: float, high: float, scale: str) -> None:
    got = mel_filters(sample_rate, n_fft, F, low, high, scale)
    assert_close(got, naive.mel_filters(sample_rate, n_fft, F, low, high, scale))


@pytest.mark.parametrize(("T", "C"), [(1, 2), (6, 8)])
def test_position_table_equals_loops(T: int, C: int) -> None:
    assert_close(relative_positions(T, C, np.dtype(float)), naive.sinusoids(T, C))


def test_rotary_of_ones_is_the_table() -> None:
    """So the table of the case, which the loops do not read, has the base that they take."""
    T, D = 9, 6
    x = np.concatenate([np.ones((1, T, 1, D // 2)), np.zeros((1, T, 1, D // 2))], axis=3)  # each point at 1 + 0i
    for base in (10000.0, 100.0):
        table, turned = rotary_table(T, D, FLOAT64, base=base), naive.rotary(x, base)[0, :, 0]
        assert_close(np.concatenate([table.cos[:, : D // 2], table.sin[:, : D // 2]], axis=1), turned)
        assert all(np.array_equal(a[:, : D // 2], a[:, D // 2 :]) for a in table)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tables_can_have_the_roundings_of_float32(dtype: type) -> None:
    """Angles of up to 2999 radians, rounded to 24 bits, are off by up to 1e-4."""
    T, C = 3000, 8

    def tables(precision: type) -> list[Array]:
        positions = relative_positions(T, C, np.dtype(dtype), precision=precision)
        return [positions, *rotary_table(T, C, np.dtype(dtype), precision=precision)]

    for rough, exact in zip(tables(np.float32), tables(np.float64), strict=True):
        assert rough.dtype == exact.dtype == dtype
        assert 1e-5 < np.abs(rough - exact).max() < 1e-3
        assert np.array_equal(rough, rough.astype(np.float32))
    assert all(np.array_equal(a, b) for a, b in zip(tables("float64"), tables(np.float64), strict=True))


# Blocks. Only real frames are compared: a block computes something on the others that nobody reads.


def naive_convolution(
    x: Array, p: Any, valid: Array, statistics: BatchStatistics | None, total: Total | None = None, **how: Any
) -> Array:
    """The module; in training the inner norm sees all utterances at once, so its three parts are written out."""
    lengths = lengths_of(valid)
    if total is None:
        return naive.convolution(x, p, lengths, statistics, **how)

    def before(z: Array) -> Array:
        z = naive.glu(naive.linear(naive.norm(z, p.norm, EPS), p.pointwise1.W, p.pointwise1.b))
        return naive.depthwise_conv(z[None], [len(z)], p.depthwise.W, p.depthwise.b)[0]

    z = naive.each_utterance(before, x, lengths, x.shape[2])
    z, _ = naive_batch_norm(z, p.inner_norm, valid, statistics)
    return naive.linear(naive.swish(rows(z)), p.pointwise2.W, p.pointwise2.b).reshape(x.shape)


def naive_block(x: Array, p: Any, context: Context, statistics: BatchStatistics, form: Any) -> Array:
    """The block; in training with dropout on every branch."""
    lengths, training = lengths_of(context.valid), context.training
    if training is None:
        return naive.conformer_block(x, p, form, lengths, statistics)

    def dropped(u: Array, step: int) -> Array:
        return naive.dropout(u.reshape(x.shape), training.keep[0, step], training.rate)

    x = x + 0.5 * dropped(naive.feed_forward(rows(x), p.ffn1), 0)
    x = x + dropped(naive.self_attention(x, p.attention, form.attention, lengths), 1)
    x = x + dropped(naive_convolution(x, p.conv, context.valid, statistics, training.total), 2)
    x = x + 0.5 * dropped(naive.feed_forward(rows(x), p.ffn2), 3)
    return naive.norm(rows(x), p.norm, EPS).reshape(x.shape)


def naive_depth_step(x: Array, h: Array, p: Any, cell: str, groups: Any) -> tuple[Array, Array]:
    """One step of HRA, frame by frame: the controller, and the head of the row's task."""
    step, names, _ = naive.CELLS[cell]
    controller = [getattr(p.controller, name) for name in names]
    u, h_next, T = np.zeros(x.shape), np.zeros(h.shape), x.shape[1]
    for task, start, stop in groups.segments:
        for place in range(start, stop):
            row, frames = groups.rows[place], slice(place * T, (place + 1) * T)
            h_next[frames] = step(x[row], h[frames], *controller)
            u[row] = naive_head(h_next[frames], p.heads[task])
    return u, h_next


BLOCKS: dict[str, Callable[..., Any]] = {
    "feed_forward": lambda x, p, **how: naive.feed_forward(rows(x), p, **how).reshape(x.shape),
    "self_attention": lambda x, p, positions, valid, form: naive.self_attention(x, p, form, lengths_of(valid)),
    "convolution": naive_convolution,
    "subsampling": lambda features, p, valid, scale: naive.subsampling(features, lengths_of(valid), p, scale)[0],
    "stages": lambda features, p, valid, stages: naive.stages(features, lengths_of(valid), p, stages)[0],
    "conformer_block": naive_block,
    "depth_step": naive_depth_step,
}


@pytest.mark.parametrize("case", block_cases(), ids=lambda case: case.name)
def test_block_equals_loops(case: Case) -> None:
    given = case.arguments | dict(case.constants)
    *outputs, _ = case.pair.forward(**given)
    expected = BLOCKS[pair_of(case)](**given)
    if pair_of(case) == "depth_step":
        for got, wanted in zip(outputs, expected, strict=True):
            assert_close(got, wanted)
        return
    valid = outputs[1] if "features" in given else given["context"].valid if "context" in given else given.get("valid")
    if valid is None:
        assert_close(outputs[0], expected)
    else:
        assert_close(outputs[0][valid], expected[valid])


FRONT_ENDS = {"subsampling": naive.subsampling, "stages": naive.stages}


@pytest.mark.parametrize("case", [c for c in block_cases() if pair_of(c) in FRONT_ENDS], ids=lambda case: case.name)
def test_front_end_lengths_equal_loops(case: Case) -> None:
    _, valid, _ = case.pair.forward(**case.arguments, **case.constants)
    given = dict(case.constants)
    lengths = lengths_of(given.pop("valid"))
    _, expected = FRONT_ENDS[pair_of(case)](case.arguments["features"], lengths, case.arguments["p"], *given.values())
    assert lengths_of(valid) == expected


VARIANTS = {"batch norm": {}, "layer norm": {"conv_norm": "layer", "reach": (2, 0)}}


def assert_equals_loops(config: Any, cell: str, head: str) -> None:
    backbone, p = tiny_conformer(config), tiny_hra(cell, head)
    given = batch(np.float64)
    hra = trained_hra(cell, head, dtype=np.float64)
    hra.p = p
    logits, cache = forward(backbone, given.features, given.lengths, hra.edit(TASKS))
    lengths = given.lengths.tolist()
    expected = naive.hra_conformer(given.features, lengths, config, backbone.p, p, cell, TASKS, backbone.statistics)
    valid = cache.context.valid
    assert valid.any()
    assert_close(logits[valid], expected[valid])
    inferred, its_valid = infer(backbone, given.features, given.lengths, hra.edit(TASKS))
    assert inferred.tobytes() == logits.tobytes() and (its_valid == valid).all()


@pytest.mark.parametrize("head", ["linear", "ffn"])
@pytest.mark.parametrize("cell", naive.CELLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_whole_hra_equals_loops(cell: str, head: str, variant: str) -> None:
    assert_equals_loops(replace(CONFIG, **VARIANTS[variant]), cell, head)


@pytest.mark.parametrize("name", OPEN)
def test_whole_open_model_equals_loops(name: str) -> None:
    assert_equals_loops(replace(CONFIG, **OPEN[name]), "gru", "linear")


def test_one_layer_and_one_frame() -> None:
    """The smallest model: what the loop over depth does at its first layer, which is its last."""
    config = replace(CONFIG, layers=1)
    backbone, hra = tiny_conformer(config), trained_hra(dtype=np.float64)
    features = numbers(1, 1, CONFIG.mels)
    logits, _ = forward(backbone, features, np.array([1]), hra.edit(["ann"]))
    expected = naive.hra_conformer(features, [1], config, backbone.p, hra.p, "gru", ["ann"], backbone.statistics)
    assert_close(logits, expected)
