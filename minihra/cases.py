"""The tiny inputs of every pair: with model_cases.py the source of `minihra check`, the tests and the golden vectors.

Every number comes from one closed formula of whole numbers, so that a port in any language makes the same bits: see
`numbers`. Shapes are small, all different, and ragged: one utterance as long as the batch, one shorter, one of a single
frame, one without any.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.parts import CELLS
from minihra.arrays import Array
from minihra.blocks.stages import StageCache
from minihra.blocks.subsampling import SeparableConv2dCache, SubsamplingCache
from minihra.layers.activations import ReluCache
from minihra.layers.attention import Reach
from minihra.layers.conv import Conv1dCache, Conv1dParams, DepthwiseConvParams
from minihra.layers.conv2d import Conv2dCache, Conv2dParams, DepthwiseConv2dParams
from minihra.layers.heads import FFNHeadCache, FFNHeadParams
from minihra.layers.indrnn import IndRNNCache
from minihra.layers.li_gru import LiGRUCache
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.log_mel import hann_window, mel_filters
from minihra.layers.no_recurrence import NoRecurrenceCache
from minihra.layers.norms import BatchNormParams, BatchStatistics, InstanceNormParams, LayerNormParams
from minihra.layers.relative_attention import RelativePositionParams, relative_positions
from minihra.layers.rotary import rotary_table
from minihra.layers.shaw_attention import ShawPositionParams
from minihra.masks import valid_from_lengths
from minihra.ops import PAIRS, Pair
from minihra.tree import Tree, children, from_leaves, leaves

B, T, C, A, K, H, R, F, V = 4, 7, 6, 3, 5, 8, 10, 9, 11
WIDE = 16  # of heads that have a twin: it leaves narrower ones to the reference
LENGTHS = (7, 4, 1, 0)
LABELS = np.array([[3, 3, 1], [5, 10, 0], [2, 0, 0], [0, 0, 0]])
LABEL_LENGTHS = np.array([3, 2, 1, 0])
SEGMENTS = (("ann", 0, 1), ("bob", 1, 4))


class Case(NamedTuple):
    """A pair and its inputs: `pair.forward(**arguments, **constants)`; its backward gives the arguments' gradients."""

    name: str
    pair: Pair
    arguments: dict[str, Tree]
    constants: Mapping[str, Any] = MappingProxyType({})
    outputs: int = 1  # how many of the forward's outputs are differentiated
    timed: tuple[str, ...] = ()  # the arguments of shape (B, T, ...)


def numbers(*shape: int, k: int = 0) -> Array:
    """Return an array in (-1, 1), float64: element i, counted row by row, is (2 m - 1009) / 1009 with
    m = (271 i^2 + 89 i + 331 k + 57) mod 1009. No element is 0.
    """
    i = np.arange(np.prod(shape, dtype=int))
    return ((2 * ((271 * i * i + 89 * i + 331 * k + 57) % 1009) - 1009) / 1009).reshape(shape)


def filled(shapes: Tree, k: int = 0) -> Tree:
    """Return a tree like `shapes` whose n-th leaf holds numbers(k + n) / 2, and 1 more where it is a gain (g)."""
    values = {}
    for n, (name, leaf) in enumerate(leaves(shapes)):
        gain = 1 if name.rpartition(".")[2] == "g" else 0
        values[name] = gain + numbers(*leaf.shape, k=k + n) / 2
    return from_leaves(shapes, values)


def filled_statistics(C: int, k: int) -> BatchStatistics:
    """Return running statistics of C channels."""
    return BatchStatistics(numbers(C, k=k) / 2, 1 + numbers(C, k=k + 1) / 2)


def linear(I: int, O: int, k: int) -> LinearParams:
    """Return a linear map."""
    return filled(LinearParams(np.empty((I, O)), np.empty(O)), k)


def filled_cell(cell: str, C: int, H: int) -> Tree:
    """Return the parameters of a cell."""
    shapes = CELLS[cell].shapes(C, H)
    return filled(type(shapes)(*(np.empty(shape.shape) for shape in shapes)))


def filled_head(head: str, C: int, H: int, R: int, k: int) -> LinearParams | FFNHeadParams:
    """Return the parameters of a head."""
    return linear(H, C, k) if head == "linear" else FFNHeadParams(linear(H, R, k), linear(R, C, k + 2))


def distance_to_kink(cache: Tree) -> float:
    """Return the smallest |a| that a relu of this cache was given on a real frame; inf where there is no trained relu.

    Central differences mean something only when it is well above their step.
    """
    match cache:
        case IndRNNCache(x, h, _, p):
            a = x @ p.W + p.u * h + p.b
        case LiGRUCache(x, h, z, _, p):
            a = (x @ p.W + h @ p.U + p.b)[:, z.shape[1] :]
        case NoRecurrenceCache(x, _, p):
            a = x @ p.W + p.b
        case FFNHeadCache(up, _, _):
            a = up.x @ up.p.W + up.p.b
        case SubsamplingCache(convs, _, out) if out.x is not None:
            a = np.concatenate([map_outputs(conv) for conv in convs])
        case StageCache(mapped, None, ReluCache()):
            a = map_outputs(mapped)
        case _:
            return min((distance_to_kink(child) for _, child in children(cache)), default=np.inf)
    return float(np.abs(a).min())


def map_outputs(cache: Tree) -> Array:
    """Return what a front end's map gave a relu, flat, without the exact zeros of frames that are not real."""
    match cache:
        case LinearCache(x, p) | SeparableConv2dCache(_, LinearCache(x, p)):
            a = PAIRS["linear"].forward(x, p)[0]
        case Conv1dCache(padded, valid, stride, pad, p):
            a = PAIRS["conv1d"].forward(padded[:, pad : pad + valid.shape[1]], valid, p, stride=stride, pad=pad)[0]
        case Conv2dCache(x, _, valid, p):
            a = PAIRS["conv2d"].forward(x, valid, p)[0]
    return a[a != 0]


def layer_cases() -> list[Case]:
    """Return a case for every pair of the switchboard; some have several."""
    return [*pointwise_cases(), *time_cases(), *adapter_cases(), *head_cases(WIDE, WIDE, WIDE, ", wide")]


def pair_case(pair: str, variant: str, arguments: dict[str, Tree], **more: Any) -> Case:
    """Return a case of a pair of the switchboard, named "pair" or "pair, variant"."""
    return Case(f"{pair}, {variant}" if variant else pair, PAIRS[pair], arguments, **more)


def pointwise_cases() -> list[Case]:
    """Return the cases of the pairs that treat every frame on its own."""
    x = numbers(B, T, C)
    away_from_zero = x + 0.2 * np.sign(x)  # relu has a kink at 0
    norm = filled(LayerNormParams(np.empty(C), np.empty(C)), 1)
    more: dict[str, Any] = {"timed": ("x",)}
    return [
        pair_case("linear", "", {"x": x, "p": linear(C, H, 1)}, **more),
        pair_case("linear", "without bias", {"x": x, "p": LinearParams(numbers(C, H, k=1), None)}, **more),
        pair_case("sigmoid", "", {"x": 3 * x}, **more),
        pair_case("swish", "", {"x": 3 * x}, **more),
        pair_case("glu", "", {"x": 3 * numbers(B, T, 2 * C)}, **more),
        pair_case("relu", "", {"x": away_from_zero}, **more),
        pair_case("gelu", "", {"x": 3 * x}, **more),
        pair_case("layer_norm", "", {"x": x, "p": norm}, **more),
        pair_case("layer_norm", "without bias", {"x": x, "p": norm._replace(b=None)}, **more),
        pair_case(
            "running_norm",
            "",
            {"x": x, "p": BatchNormParams(*norm)},
            constants={"statistics": filled_statistics(C, 4)},
            **more,
        ),
        pair_case(
            "residual", "", {"x": x, "u": numbers(B, T, C, k=3)}, constants={"weights": (1.5, 0.5)}, timed=("x", "u")
        ),
        pair_case("dropout", "", {"x": x}, constants={"keep": numbers(B, T, C, k=1) > -0.6, "rate": 0.25}, **more),
    ]


def time_cases() -> list[Case]:
    """Return the cases of the pairs that mix over time, and so take the mask."""
    x, valid = numbers(B, T, C), valid_from_lengths(LENGTHS, T)
    queries = {name: numbers(B, T, A, 2, k=k) for k, name in enumerate(("q", "k", "value"))}
    positions = relative_positions(T, C, np.dtype(np.float64))
    table = rotary_table(T, 4, np.dtype(np.float64), base=100.0)
    shaw = {**queries, "p": ShawPositionParams(numbers(K, 2, k=6))}
    norm = filled(InstanceNormParams(np.empty(C), np.empty(C)), 1)
    wide, channels = numbers(B, T, F, 2), DepthwiseConv2dParams(numbers(3, 3, 2, k=1), numbers(2, k=2))
    conv1d = {"x": x, "p": Conv1dParams(numbers(3, C, 5, k=1), numbers(5, k=2))}
    relative = filled(RelativePositionParams(np.empty((C, 2 * A)), np.empty((A, 2)), np.empty((A, 2))), 6)
    logits = {"logits": 2 * numbers(B, T, V)}
    ctc = {"valid": valid, "labels": LABELS, "label_lengths": LABEL_LENGTHS}
    last_blank = {"valid": valid, "labels": (LABELS - 1) % V, "label_lengths": LABEL_LENGTHS, "blank": V - 1}
    too_short = {"valid": valid, "labels": LABELS[::-1], "label_lengths": LABEL_LENGTHS[::-1]}
    fbank = {"window": hann_window(12), "filters": mel_filters(8000, 16, F, 20, 4000) + 0.01, "hop": 5, "n_fft": 16}

    def masked(pair: str, variant: str, arguments: dict[str, Tree], **constants: Any) -> Case:
        timed = tuple(name for name in arguments if name != "p")
        return pair_case(pair, variant, arguments, constants={"valid": valid, **constants}, timed=timed)

    def relative_attention(variant: str, reach: Reach) -> Case:
        arguments = {**queries, "p": relative}
        return masked("relative_attention", variant, arguments, positions=positions, reach=reach)

    def depthwise(variant: str, K: int, b: Array | None, **more: Any) -> Case:
        return masked("depthwise_conv", variant, {"x": x, "p": DepthwiseConvParams(numbers(K, C, k=1), b)}, **more)

    return [
        masked(
            "batch_norm",
            "",
            {"x": x, "p": filled(BatchNormParams(np.empty(C), np.empty(C)), 1)},
            statistics=filled_statistics(C, 4),
        ),
        pair_case(
            "masked_softmax", "", {"s": 3 * numbers(B, A, T, T)}, constants={"mask": numbers(B, 1, T, T, k=1) > -0.5}
        ),
        masked("instance_norm", "", {"x": x, "p": norm}),
        masked("instance_norm", "without bias", {"x": x, "p": norm._replace(b=None)}),
        masked("attention", "", queries),
        masked("attention", "reach (2, 1)", queries, reach=(2, 1)),
        relative_attention("", None),
        relative_attention("reach (2, 1)", (2, 1)),
        relative_attention("causal", (None, 0)),
        masked("shaw_attention", "", shaw, left=3),
        masked("shaw_attention", "causal", shaw, left=2, reach=(None, 0)),
        pair_case("rotary", "", {"x": numbers(B, T, A, 4)}, constants={"table": table}, timed=("x",)),
        depthwise("", K, numbers(C, k=2)),
        depthwise("even kernel", K - 1, None),
        depthwise("causal", K, numbers(C, k=2), causal=True),
        masked("conv1d", "", conv1d, stride=2),
        masked("conv1d", "padded", conv1d, stride=1, pad=2),
        masked("conv1d", "without bias", {"x": x, "p": Conv1dParams(numbers(2, C, 5, k=1), None)}, stride=3, pad=1),
        masked("conv2d", "", {"x": wide, "p": Conv2dParams(numbers(3, 3, 2, 5, k=1), numbers(5, k=2))}),
        masked("depthwise_conv2d", "", {"x": wide, "p": channels}),
        pair_case("ctc", "", logits, constants=ctc, timed=("logits",)),
        pair_case("ctc", "last label blank", logits, constants=last_blank, timed=("logits",)),
        pair_case("ctc", "infeasible utterances", logits, constants=too_short, timed=("logits",)),
        pair_case("log_mel", "", {"samples": numbers(2, 40)}, constants=fbank),
    ]


def adapter_cases() -> list[Case]:
    """Return the cases of the cells and heads."""
    cells = {cell: "no_recurrence" if cell == "none" else cell for cell in CELLS}
    return [
        *(
            pair_case(pair, "", {"x": numbers(5, C, k=9), "h": numbers(5, H, k=8), "p": filled_cell(cell, C, H)})
            for cell, pair in cells.items()
        ),
        pair_case("ffn_head", "", {"h": numbers(B, T, H), "p": filled_head("ffn", C, H, R, 20)}, timed=("h",)),
        *head_cases(C, H, R),
    ]


def head_cases(C: int, H: int, R: int, variant: str = "") -> list[Case]:
    """Return the cases of mixed-task heads of these widths."""
    cases = []
    for head in ("linear", "ffn"):
        heads = {task: filled_head(head, C, H, R, k) for task, k in (("ann", 20), ("bob", 24), ("eve", 28))}
        arguments, more = {"h": numbers(B, T, H), "heads": heads}, {"segments": SEGMENTS}
        cases.append(pair_case("grouped_heads", head + variant, arguments, constants=more, timed=("h",)))
    return cases
