"""The switchboard: every pair under one name. Blocks and adapters call these names and never a backend.

A name without a twin IS the reference function, so "go to definition" lands on the equations. A hot pair takes its twin
from `minihra.kernels` by its first array: on the GPU where that is CuPy's, and on the CPU where it is NumPy's and
float32; there float64 is for checks, and what they check is the reference. MINIHRA_REFERENCE=1 in the environment, or
Numba missing, leaves everything to the reference.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from inspect import signature
from threading import Lock
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, is_cupys, is_numpys
from minihra.layers.activations import (
    gelu_backward,
    gelu_forward,
    glu_backward,
    glu_forward,
    relu_backward,
    relu_forward,
    sigmoid_backward,
    sigmoid_forward,
    swish_backward,
    swish_forward,
)
from minihra.layers.adamw import adamw_update
from minihra.layers.attention import attention_backward, attention_forward
from minihra.layers.conv import conv1d_backward, conv1d_forward, depthwise_conv_backward, depthwise_conv_forward
from minihra.layers.conv2d import conv2d_backward, conv2d_forward, depthwise_conv2d_backward, depthwise_conv2d_forward
from minihra.layers.ctc import ctc_backward, ctc_forward
from minihra.layers.dropout import draw_keep, dropout_backward, dropout_forward
from minihra.layers.gru import gru_backward, gru_forward
from minihra.layers.heads import (
    ffn_head_backward,
    ffn_head_forward,
    grouped_heads_backward,
    grouped_heads_forward,
)
from minihra.layers.indrnn import indrnn_backward, indrnn_forward
from minihra.layers.li_gru import li_gru_backward, li_gru_forward
from minihra.layers.linear import linear_backward, linear_forward
from minihra.layers.log_mel import log_mel_backward, log_mel_forward
from minihra.layers.no_recurrence import no_recurrence_backward, no_recurrence_forward
from minihra.layers.norms import (
    batch_norm_backward,
    batch_norm_forward,
    instance_norm_backward,
    instance_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    running_norm_backward,
    running_norm_forward,
)
from minihra.layers.relative_attention import relative_attention_backward, relative_attention_forward
from minihra.layers.residual import residual_backward, residual_forward
from minihra.layers.rnn import rnn_backward, rnn_forward
from minihra.layers.rotary import rotary_backward, rotary_forward
from minihra.layers.shaw_attention import shaw_attention_backward, shaw_attention_forward
from minihra.layers.softmax import masked_softmax_backward, masked_softmax_forward

__all__ = ["PAIRS", "TWINS", "UNPAIRED", "Pair", "adamw_update", "draw_keep", "hot", "references"]


class Pair(NamedTuple):
    """A forward and its backward."""

    forward: Callable
    backward: Callable


TWINS = {
    "linear": "linear",
    "relu": "activations",
    "swish": "activations",
    "glu": "activations",
    "layer_norm": "norms",
    "batch_norm": "norms",
    "running_norm": "norms",
    "residual": "residual",
    "dropout": "residual",
    "attention": "attention",
    "relative_attention": "attention",
    "depthwise_conv": "conv",
    "conv2d": "conv2d",
    "depthwise_conv2d": "conv2d",
    "gru": "gru",
    "indrnn": "indrnn",
    "grouped_heads": "heads",
    "ctc": "ctc",
    "log_mel": "log_mel",
}
"""The pairs with a twin for the CPU, and the file in minihra/kernels/cpu where it stands."""

CUDA_TWINS = {
    "layer_norm": "norms",
    "running_norm": "norms",
    "ctc": "ctc",
    "log_mel": "log_mel",
    "relu": "activations",
    "sigmoid": "activations",
    "swish": "activations",
    "glu": "activations",
    "gelu": "activations",
    "batch_norm": "batch_norm",
    "residual": "residual",
    "dropout": "residual",
    "depthwise_conv": "conv",
    "conv1d": "conv1d",
    "conv2d": "conv2d",
    "depthwise_conv2d": "conv2d",
    "linear": "linear",
    "masked_softmax": "softmax",
    "attention": "attention",
    "relative_attention": "relative_attention",
    "shaw_attention": "relative_attention",
    "rotary": "rotary",
    "gru": "cells",
    "indrnn": "cells",
    "rnn": "cells",
    "li_gru": "cells",
    "no_recurrence": "cells",
    "grouped_heads": "heads",
}
"""The pairs with a twin for the GPU, and the file in minihra/kernels/cuda where it stands."""

UNPAIRED = {
    "adamw_update_leaves": "adamw",
    "clip_leaves": "adamw",
    "clipped_adamw_leaves": "adamw",
    "subsample": "subsampling",
    "draw_keep": "drawing",
}
"""The same of functions that are no pair: of the optimiser, of dropout, and of blocks, several layers of a frozen model
in one.

Such a twin returns NotImplemented where it is none: for other variants of a block, or for arrays that its loop would
misread.
"""

CUDA_UNPAIRED = {
    "convolution_forward": "convolution",
    "convolution_backward": "convolution",
    "add_and_norm": "norms",
    "adamw_update_leaves": "adamw",
    "clip_leaves": "adamw",
    "add_leaves": "adamw",
    "subsample": "subsampling",
    "draw_keep": "drawing",
}
"""The same for the GPU."""


FLOAT32 = np.dtype(np.float32)
"""What the twins for the CPU take; types are compared faster with it than with numpy.float32."""


class Switch:
    """How many callers, in the whole process, want references alone."""

    off = int(os.environ.get("MINIHRA_REFERENCE") == "1")
    lock = Lock()


@contextmanager
def references() -> Iterator[None]:
    """Leave everything to the reference, in the whole process, as MINIHRA_REFERENCE=1 does."""
    with Switch.lock:
        Switch.off += 1
    try:
        yield
    finally:
        with Switch.lock:
            Switch.off -= 1


@cache
def twins_in(file: str, folder: str = "cpu") -> ModuleType | None:
    """Return the module minihra/kernels/`folder`/`file`, or None where Numba or the folder is missing."""
    try:
        return import_module(f"minihra.kernels.{folder}.{file}")
    except ModuleNotFoundError as missing:
        if missing.name not in ("numba", "minihra.kernels", f"minihra.kernels.{folder}"):
            raise
        return None


def twins_for(x: Array, pair: str) -> ModuleType | None:
    """Return the module with the twins of a pair (or of a function that is none) where `x` lives, or None."""
    if type(x) is not np.ndarray and is_cupys(x):
        file = CUDA_TWINS.get(pair) or CUDA_UNPAIRED.get(pair)
        return file and twins_in(file, "cuda")
    file = TWINS.get(pair) or UNPAIRED.get(pair)
    return twins_in(file) if file and x.dtype == FLOAT32 and is_numpys(x) else None


def hot(reference: Callable) -> Callable:
    """Return a function that is `reference`, or its twin where there is one for the first array."""
    name, first = reference.__name__, next(iter(signature(reference).parameters))
    pair = name if name in UNPAIRED or name in CUDA_UNPAIRED else name.rpartition("_")[0]

    @wraps(reference)
    def switch(*arguments: Any, **named: Any) -> Any:
        x = arguments[0] if arguments else named[first]
        x = x[0] if isinstance(x, list) else x
        if not Switch.off and (twin := getattr(twins_for(x, pair), name, None)) is not None:
            result = twin(*arguments, **named)
            if result is not NotImplemented:
                return result
        return reference(*arguments, **named)

    return switch


def hot_pair(forward: Callable, backward: Callable) -> tuple[Callable, Callable]:
    """Return both functions of a pair as `hot` does."""
    return hot(forward), hot(backward)


linear_forward, linear_backward = hot_pair(linear_forward, linear_backward)
sigmoid_forward, sigmoid_backward = hot_pair(sigmoid_forward, sigmoid_backward)
relu_forward, relu_backward = hot_pair(relu_forward, relu_backward)
gelu_forward, gelu_backward = hot_pair(gelu_forward, gelu_backward)
swish_forward, swish_backward = hot_pair(swish_forward, swish_backward)
glu_forward, glu_backward = hot_pair(glu_forward, glu_backward)
layer_norm_forward, layer_norm_backward = hot_pair(layer_norm_forward, layer_norm_backward)
batch_norm_forward, batch_norm_backward = hot_pair(batch_norm_forward, batch_norm_backward)
running_norm_forward, running_norm_backward = hot_pair(running_norm_forward, running_norm_backward)
residual_forward = hot(residual_forward)
dropout_forward, dropout_backward = hot_pair(dropout_forward, dropout_backward)
draw_keep = hot(draw_keep)
attention_forward, attention_backward = hot_pair(attention_forward, attention_backward)
relative_attention_forward, relative_attention_backward = hot_pair(
    relative_attention_forward, relative_attention_backward
)
shaw_attention_forward, shaw_attention_backward = hot_pair(shaw_attention_forward, shaw_attention_backward)
rotary_forward, rotary_backward = hot_pair(rotary_forward, rotary_backward)
masked_softmax_forward, masked_softmax_backward = hot_pair(masked_softmax_forward, masked_softmax_backward)
depthwise_conv_forward, depthwise_conv_backward = hot_pair(depthwise_conv_forward, depthwise_conv_backward)
conv1d_forward, conv1d_backward = hot_pair(conv1d_forward, conv1d_backward)
conv2d_forward, conv2d_backward = hot_pair(conv2d_forward, conv2d_backward)
depthwise_conv2d_forward, depthwise_conv2d_backward = hot_pair(depthwise_conv2d_forward, depthwise_conv2d_backward)
gru_forward, gru_backward = hot_pair(gru_forward, gru_backward)
indrnn_forward, indrnn_backward = hot_pair(indrnn_forward, indrnn_backward)
rnn_forward, rnn_backward = hot_pair(rnn_forward, rnn_backward)
li_gru_forward, li_gru_backward = hot_pair(li_gru_forward, li_gru_backward)
no_recurrence_forward, no_recurrence_backward = hot_pair(no_recurrence_forward, no_recurrence_backward)
grouped_heads_forward, grouped_heads_backward = hot_pair(grouped_heads_forward, grouped_heads_backward)
ctc_forward, ctc_backward = hot_pair(ctc_forward, ctc_backward)
log_mel_forward = hot(log_mel_forward)

PAIRS = {
    "linear": Pair(linear_forward, linear_backward),
    "sigmoid": Pair(sigmoid_forward, sigmoid_backward),
    "swish": Pair(swish_forward, swish_backward),
    "glu": Pair(glu_forward, glu_backward),
    "relu": Pair(relu_forward, relu_backward),
    "gelu": Pair(gelu_forward, gelu_backward),
    "layer_norm": Pair(layer_norm_forward, layer_norm_backward),
    "batch_norm": Pair(batch_norm_forward, batch_norm_backward),
    "running_norm": Pair(running_norm_forward, running_norm_backward),
    "instance_norm": Pair(instance_norm_forward, instance_norm_backward),
    "masked_softmax": Pair(masked_softmax_forward, masked_softmax_backward),
    "attention": Pair(attention_forward, attention_backward),
    "relative_attention": Pair(relative_attention_forward, relative_attention_backward),
    "shaw_attention": Pair(shaw_attention_forward, shaw_attention_backward),
    "rotary": Pair(rotary_forward, rotary_backward),
    "depthwise_conv": Pair(depthwise_conv_forward, depthwise_conv_backward),
    "conv1d": Pair(conv1d_forward, conv1d_backward),
    "conv2d": Pair(conv2d_forward, conv2d_backward),
    "depthwise_conv2d": Pair(depthwise_conv2d_forward, depthwise_conv2d_backward),
    "residual": Pair(residual_forward, residual_backward),
    "dropout": Pair(dropout_forward, dropout_backward),
    "gru": Pair(gru_forward, gru_backward),
    "indrnn": Pair(indrnn_forward, indrnn_backward),
    "rnn": Pair(rnn_forward, rnn_backward),
    "li_gru": Pair(li_gru_forward, li_gru_backward),
    "no_recurrence": Pair(no_recurrence_forward, no_recurrence_backward),
    "ffn_head": Pair(ffn_head_forward, ffn_head_backward),
    "grouped_heads": Pair(grouped_heads_forward, grouped_heads_backward),
    "ctc": Pair(ctc_forward, ctc_backward),
    "log_mel": Pair(log_mel_forward, log_mel_backward),
}
__all__ += [function.__name__ for pair in PAIRS.values() for function in pair]
