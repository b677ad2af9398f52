"""The switchboard: every pair under one name. Blocks and adapters call these names and never a backend.

A name without a twin IS the reference function, so "go to definition" lands on the equations. A hot pair will pick a
twin from `minihra.kernels` here, by where its first array lives.
"""

from collections.abc import Callable
from typing import NamedTuple

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
from minihra.layers.dropout import dropout_backward, dropout_forward
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
from minihra.layers.rnn import rnn_backward, rnn_forward
from minihra.layers.rotary import rotary_backward, rotary_forward
from minihra.layers.shaw_attention import shaw_attention_backward, shaw_attention_forward
from minihra.layers.softmax import masked_softmax_backward, masked_softmax_forward

__all__ = ["PAIRS", "Pair", "adamw_update"]


class Pair(NamedTuple):
    """A forward and its backward."""

    forward: Callable
    backward: Callable


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
