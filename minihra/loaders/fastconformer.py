"""What Parakeet and LASR have in common: the names of their blocks' tensors, and the tokenizer."""

from pathlib import Path

from minihra.loaders.table import (
    Row,
    affine,
    depthwise,
    norm,
    pointwise,
    running,
    same,
    transposed,
)
from minihra.speech.pieces import Pieces


def block_rows(l: int) -> list[Row]:
    """Return the rows of block l."""
    ours, theirs = f"p.layers.{l}", f"encoder.layers.{l}"
    rows = [
        *norm(f"{ours}.attention.norm", f"{theirs}.norm_self_att"),
        *norm(f"{ours}.conv.norm", f"{theirs}.norm_conv"),
        *norm(f"{ours}.norm", f"{theirs}.norm_out"),
        *affine(f"{ours}.conv.pointwise1", f"{theirs}.conv.pointwise_conv1", pointwise),
        *affine(f"{ours}.conv.depthwise", f"{theirs}.conv.depthwise_conv", depthwise),
        *norm(f"{ours}.conv.inner_norm", f"{theirs}.conv.norm"),
        *running(f"statistics.{l}", f"{theirs}.conv.norm"),
        *affine(f"{ours}.conv.pointwise2", f"{theirs}.conv.pointwise_conv2", pointwise),
        Row(f"{ours}.attention.position.W", f"{theirs}.self_attn.relative_k_proj.weight", transposed),
        Row(f"{ours}.attention.position.u", f"{theirs}.self_attn.bias_u", same),
        Row(f"{ours}.attention.position.v", f"{theirs}.self_attn.bias_v", same),
    ]
    for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
        rows += affine(f"{ours}.attention.{part}", f"{theirs}.self_attn.{letter}_proj")
    for n in (1, 2):
        rows += norm(f"{ours}.ffn{n}.norm", f"{theirs}.norm_feed_forward{n}")
        rows += affine(f"{ours}.ffn{n}.up", f"{theirs}.feed_forward{n}.linear1")
        rows += affine(f"{ours}.ffn{n}.down", f"{theirs}.feed_forward{n}.linear2")
    return rows


def tokenizer(folder: Path, blank: int, labels: int) -> Pieces:
    """Return the tokenizer of a folder."""
    return Pieces(folder / "tokenizer.json", blank, labels)


UNUSED = (r".*\.num_batches_tracked", r".*\.inv_freq")
"""Buffers that PyTorch saves, and nothing that is trained."""
