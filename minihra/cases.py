"""The tiny inputs of every pair, every block and the whole model: one source for `minihra check`, the ladder of tests and
the golden vectors.

Every number comes from one closed formula, so that a port in any language can make it again: element i (row-major) of leaf
number k has the value wave(i, k) = sin(1 + k + 1.7 i + 0.3 i^2). Shapes are small, all different, and ragged: one utterance
as long as the batch, one shorter, one of a single frame, one without any.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minihra.adapters.controller import HRAParams, depth_step_backward, depth_step_forward, group_tasks
from minihra.adapters.hra import HRA, HRAEdit
from minihra.adapters.parts import CELLS, HEADS
from minihra.arrays import Array
from minihra.blocks.conformer import Conformer, ConformerConfig
from minihra.blocks.conformer_block import ConformerBlockParams, conformer_block_backward, conformer_block_forward
from minihra.blocks.convolution import convolution_backward, convolution_forward
from minihra.blocks.feed_forward import feed_forward_backward, feed_forward_forward
from minihra.blocks.initial import initial_conformer
from minihra.blocks.protocol import Context, Training
from minihra.blocks.self_attention import self_attention_backward, self_attention_forward
from minihra.blocks.subsampling import subsampling_backward, subsampling_forward
from minihra.layers.attention import RelativePositionParams, relative_positions
from minihra.layers.conv import Conv2dParams, DepthwiseConvParams
from minihra.layers.linear import LinearParams
from minihra.layers.log_mel import hann_window, mel_filters
from minihra.layers.norms import BatchNormParams, BatchStatistics, LayerNormParams
from minihra.masks import valid_from_lengths
from minihra.model import ModelCache, backward, ctc_loss, forward, pack_labels
from minihra.ops import PAIRS, Pair
from minihra.tree import Tree, from_leaves, leaves, map_leaves

B, T, C, A, K, H, F, V = 4, 7, 6, 3, 5, 8, 9, 11
LENGTHS = (7, 4, 1, 0)
SEGMENTS = (("ann", 0, 1), ("bob", 1, 4))
TASKS = ("bob", "base", "ann", "bob")


class Case(NamedTuple):
    """A pair and its inputs: `pair.forward(**arguments, **constants)`; the gradients are those of `arguments`."""

    name: str
    pair: Pair
    arguments: dict[str, Tree]
    constants: dict[str, Any] = {}
    outputs: int = 1  # how many of the forward's outputs are differentiated
    timed: tuple[str, ...] = ()  # arguments of shape (B, T, ...); the output is so, too
    kink: Callable[[Any], float] | None = None  # the distance of a cache's nearest relu to 0

    def forward(self) -> tuple:
        """Run the forward."""
        return self.pair.forward(**self.arguments, **self.constants)


def wave(*shape: int, k: int = 0) -> Array:
    """Return the array of wave(i, k), float64."""
    i = np.arange(np.prod(shape, dtype=int))
    return np.sin(1 + k + 1.7 * i + 0.3 * i * i).reshape(shape)


def filled(tree: Tree) -> Tree:
    """Return a tree of the same shapes whose leaf k holds wave(., k) / 2; gains (g) 1 + that, variances (var) 1 + its square."""
    values = {}
    for k, (name, leaf) in enumerate(leaves(tree)):
        value = wave(*leaf.shape, k=k) / 2
        last = name.rpartition(".")[2]
        values[name] = 1 + value if last == "g" else 1 + value**2 if last == "var" else value
    return from_leaves(tree, values)


def as_type(tree: Tree, dtype: np.dtype) -> Tree:
    """Return a tree with its float leaves in `dtype`."""
    return map_leaves(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree)


def linear(I: int, O: int, k: int) -> LinearParams:
    """Return a filled linear map."""
    return LinearParams(wave(I, O, k=k) / 2, wave(O, k=k + 1) / 2)


def away_from_zero(x: Array) -> Array:
    """Return x moved to at least 0.2 from 0, for functions with a kink there."""
    return x + 0.2 * np.sign(x)


def layer_cases() -> list[Case]:
    """Return a case for every pair of the switchboard; some have several."""
    x, x2, h = wave(B, T, C), wave(B, T, 2 * C), wave(9, H, k=3)
    valid = valid_from_lengths(LENGTHS, T)
    norm = LayerNormParams(1 + wave(C, k=1) / 3, wave(C, k=2))
    batch = BatchNormParams(*norm)
    statistics = BatchStatistics(wave(C, k=4), 1 + wave(C, k=5) ** 2)
    heads = {"ann": linear(H, C, 20), "bob": linear(H, C, 22), "eve": linear(H, C, 24)}
    ffn_heads = {
        name: filled(HEADS["ffn"](C, H, 10)._replace(up=linear(H, 10, k), down=linear(10, C, k + 2)))
        for name, k in (("ann", 30), ("bob", 34))
    }
    qkv = {name: wave(B, T, A, 2, k=k) for k, name in enumerate(("q", "k", "value"))}
    positions = relative_positions(T, C, np.float64)
    relative = RelativePositionParams(wave(C, 2 * A, k=6), wave(A, 2, k=7), wave(A, 2, k=8))
    labels = pack_labels([[3, 3, 1], [5, 10], [], [2]], V)
    window, filters = hann_window(12), mel_filters(8000, 16, F, 20, 4000) + 0.01

    def case(name: str, arguments: dict[str, Tree], pair: str = "", **more: Any) -> Case:
        return Case(name, PAIRS[pair or name], arguments, **more)

    def attention(name: str, reach: tuple[int | None, int | None] | None) -> Case:
        constants = {"positions": positions, "valid": valid, "reach": reach}
        return case(name, {**qkv, "p": relative}, "relative_attention", constants=constants, timed=tuple(qkv))

    return [
        case("linear", {"x": x, "p": linear(C, 8, 1)}, timed=("x",)),
        case("linear without bias", {"x": x, "p": LinearParams(wave(C, 8, k=1), None)}, "linear", timed=("x",)),
        case("sigmoid", {"x": x}, timed=("x",)),
        case("swish", {"x": x}, timed=("x",)),
        case("glu", {"x": x2}, timed=("x",)),
        case("relu", {"x": away_from_zero(x)}, timed=("x",)),
        case("gelu", {"x": x}, timed=("x",)),
        case("layer_norm", {"x": x, "p": norm}, timed=("x",)),
        case("layer_norm without bias", {"x": x, "p": norm._replace(b=None)}, "layer_norm", timed=("x",)),
        case("batch_norm", {"x": x, "p": batch}, constants={"valid": valid, "statistics": statistics}, timed=("x",)),
        case("running_norm", {"x": x, "p": batch}, constants={"statistics": statistics}, timed=("x",)),
        case("masked_softmax", {"s": 3 * wave(B, A, T, T)}, constants={"mask": wave(B, 1, T, T) > -0.5}),
        attention("relative_attention", None),
        attention("relative_attention with reach", (2, 1)),
        attention("relative_attention, causal", (None, 0)),
        case(
            "depthwise_conv",
            {"x": x, "p": DepthwiseConvParams(wave(K, C, k=1), wave(C, k=2))},
            constants={"valid": valid},
            timed=("x",),
        ),
        case(
            "depthwise_conv, even kernel",
            {"x": x, "p": DepthwiseConvParams(wave(K - 1, C, k=1), None)},
            "depthwise_conv",
            constants={"valid": valid},
            timed=("x",),
        ),
        case(
            "conv2d",
            {"x": wave(B, T, F, 2), "p": Conv2dParams(wave(3, 3, 2, 5, k=1), wave(5, k=2))},
            constants={"valid": valid},
            timed=("x",),
        ),
        case("dropout", {"x": x}, constants={"keep": wave(B, T, C, k=1) > -0.6, "rate": 0.25}),
        *(
            case(
                CELLS_TO_PAIRS[cell],
                {"x": wave(9, C), "h": h, "p": filled(zeros_like_shapes(CELLS[cell].shapes(C, H)))},
            )
            for cell in CELLS
        ),
        case("ffn_head", {"h": wave(B, T, H), "p": ffn_heads["ann"]}, timed=("h",)),
        case("grouped_heads", {"h": wave(B, T, H), "heads": heads}, constants={"segments": SEGMENTS}, timed=("h",)),
        case(
            "grouped_heads, ffn",
            {"h": wave(B, T, H), "heads": ffn_heads},
            "grouped_heads",
            constants={"segments": SEGMENTS},
            timed=("h",),
        ),
        case(
            "ctc",
            {"logits": 2 * wave(B, T, V)},
            constants={"valid": valid, "labels": labels.labels, "label_lengths": labels.lengths},
        ),
        case(
            "ctc, last label blank",
            {"logits": 2 * wave(B, T, V)},
            "ctc",
            constants={
                "valid": valid,
                "labels": labels.labels - 1,
                "label_lengths": labels.lengths,
                "blank": V - 1,
            },
        ),
        case(
            "log_mel",
            {"samples": wave(2, 40)},
            constants={"window": window, "filters": filters, "hop": 5, "n_fft": 16},
        ),
    ]


def zeros_like_shapes(shapes: Tree) -> Tree:
    """Return a parameter tree of zeros for a flat tree of shapes."""
    return type(shapes)(*(np.zeros(shape.dims) for shape in shapes))


CELLS_TO_PAIRS = {cell: "no_recurrence" if cell == "none" else cell for cell in CELLS}
