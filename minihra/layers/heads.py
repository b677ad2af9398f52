"""Adapter heads: the small maps, one a task, that turn the controller's state h into what is added to a layer's output.

    linear   o = h W + b                                    H -> C; Munkhdalai et al. 2024, 2403.19709
    ffn      o = relu(h W_up + b_up) W_down + b_down        H -> R -> C

`grouped_heads` applies them to a batch of mixed tasks whose rows stand sorted by task: the rows of a task are one
segment (task, start, stop) of the batch, and make one product with its head. The biases are our choice: the
paper does not say.
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.layers.activations import ReluCache, relu_backward, relu_forward
from minihra.layers.linear import LinearCache, LinearParams, linear_backward, linear_forward

Segments = tuple[tuple[str, int, int], ...]
"""(task, start, stop) of each task in the batch; together they cover its rows."""


class FFNHeadParams(NamedTuple):
    """Parameters of an FFN head."""

    up: LinearParams  # (H, R)
    down: LinearParams  # (R, C)


class FFNHeadCache(NamedTuple):
    """What `ffn_head_backward` reads."""

    up: LinearCache
    relu: ReluCache
    down: LinearCache


HeadParams = LinearParams | FFNHeadParams


def ffn_head_forward(h: Array, p: FFNHeadParams, *, params: bool = True) -> tuple[Array, FFNHeadCache]:
    """Map h (..., H) to o (..., C)."""
    a, up = linear_forward(h, p.up, params=params)  # (1)
    a, relu = relu_forward(a)  # (2)
    o, down = linear_forward(a, p.down, params=params)  # (3)
    return o, FFNHeadCache(up, relu, down)


def ffn_head_backward(do: Array, cache: FFNHeadCache) -> tuple[Array, FFNHeadParams | None]:
    """Return dh (..., H) and dp for do (..., C)."""
    da, ddown = linear_backward(do, cache.down)  # (3)
    da = relu_backward(da, cache.relu)  # (2)
    dh, dup = linear_backward(da, cache.up)  # (1)
    return dh, None if dup is None else FFNHeadParams(dup, ddown)


HEAD_PAIRS = {
    LinearParams: (linear_forward, linear_backward),
    FFNHeadParams: (ffn_head_forward, ffn_head_backward),
}
"""The pair of a head, by the type of its parameters."""


class GroupedHeadsCache(NamedTuple):
    """What `grouped_heads_backward` reads."""

    heads: dict[str, LinearCache | FFNHeadCache]  # of the tasks in the batch
    segments: Segments


def grouped_heads_forward(
    h: Array, heads: dict[str, HeadParams], *, segments: Segments, params: bool = True
) -> tuple[Array, GroupedHeadsCache]:
    """Map h (B, T, H), rows sorted by task, to o (B, T, C): one product for each task in the batch."""
    outputs, caches = [], {}
    for task, start, stop in segments:
        forward, _ = HEAD_PAIRS[type(heads[task])]
        o, caches[task] = forward(h[start:stop], heads[task], params=params)  # (1)
        outputs.append(o)
    return array_module(h).concatenate(outputs), GroupedHeadsCache(caches, segments)


def grouped_heads_backward(do: Array, cache: GroupedHeadsCache) -> tuple[Array, dict[str, HeadParams | None]]:
    """Return dh (B, T, H) and the gradients of the heads in the batch for do (B, T, C); other tasks have no entry."""
    dhs, dheads = [], {}
    for task, start, stop in cache.segments:
        head = cache.heads[task]
        backward = linear_backward if isinstance(head, LinearCache) else ffn_head_backward
        dh, dheads[task] = backward(do[start:stop], head)  # (1)
        dhs.append(dh)
    return array_module(do).concatenate(dhs), dheads
