"""What Wav2Vec2-BERT and Wav2Vec2-Conformer have in common: the names of their blocks' tensors, and their settings."""

from typing import Any

from minihra.loaders.settings import ACTIVATIONS, Settings
from minihra.loaders.table import Row, affine, depthwise, norm, pointwise, running, same, transposed

POSITIONS = {"relative": "relative", "rotary": "rotary_input", "relative_key": "shaw", None: "none"}
"""Our names of the ways to learn of positions, by theirs."""


def common(settings: Settings, width: int, layers: int, heads: int, inner: int, activation: str) -> dict[str, Any]:
    """Return what both families set alike, given their defaults.

    Raises:
        ValueError: the model has adapter layers of its own after the blocks, or no labels.
    """
    for key in ("add_adapter", "use_intermediate_ffn_before_adapter"):
        if settings.get(key, False):
            raise ValueError(
                f"{settings.path}: {key} is true: the model has layers of its own after its blocks, which are not "
                "built here; take a checkpoint that was trained without them"
            )
    if settings.content.get("vocab_size") is None:
        raise ValueError(
            f"{settings.path}: no vocab_size: the model has no CTC head; take a checkpoint that was fine-tuned with one"
        )
    return {
        "labels": settings.size("vocab_size", 0),
        "width": settings.size("hidden_size", width),
        "layers": settings.size("num_hidden_layers", layers),
        "heads": settings.size("num_attention_heads", heads),
        "inner": settings.size("intermediate_size", inner),
        "kernel": settings.size("conv_depthwise_kernel_size", 31),
        "activation": settings.choice("hidden_act", activation, ACTIVATIONS),
        "rotary_base": float(settings.size("rotary_embedding_base", 10000)),
        "precision": "float32",
        "exponential": True,
        "conv_bias": False,
    }


def block_rows(l: int, prefix: str) -> list[Row]:
    """Return the rows of block l."""
    ours, theirs = f"p.layers.{l}", f"{prefix}.encoder.layers.{l}"
    rows = [
        *norm(f"{ours}.attention.norm", f"{theirs}.self_attn_layer_norm"),
        *norm(f"{ours}.conv.norm", f"{theirs}.conv_module.layer_norm"),
        *norm(f"{ours}.norm", f"{theirs}.final_layer_norm"),
        *affine(f"{ours}.conv.pointwise1", f"{theirs}.conv_module.pointwise_conv1", pointwise),
        *affine(f"{ours}.conv.depthwise", f"{theirs}.conv_module.depthwise_conv", depthwise),
        *affine(f"{ours}.conv.pointwise2", f"{theirs}.conv_module.pointwise_conv2", pointwise),
        *running(f"statistics.{l}", f"{theirs}.conv_module.batch_norm"),
        Row(f"{ours}.attention.position.W", f"{theirs}.self_attn.linear_pos.weight", transposed),
        Row(f"{ours}.attention.position.u", f"{theirs}.self_attn.pos_bias_u", same),
        Row(f"{ours}.attention.position.v", f"{theirs}.self_attn.pos_bias_v", same),
        Row(f"{ours}.attention.position.E", f"{theirs}.self_attn.distance_embedding.weight", same),
    ]
    for part, letter in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out")):
        rows += affine(f"{ours}.attention.{part}", f"{theirs}.self_attn.linear_{letter}")
    for n in (1, 2):
        rows += norm(f"{ours}.ffn{n}.norm", f"{theirs}.ffn{n}_layer_norm")
        rows += affine(f"{ours}.ffn{n}.up", f"{theirs}.ffn{n}.intermediate_dense")
        rows += affine(f"{ours}.ffn{n}.down", f"{theirs}.ffn{n}.output_dense")
    return rows


UNUSED = (r".*\.num_batches_tracked", r".*\.inv_freq", r".*\.masked_spec_embed")
"""Buffers that PyTorch saves, and what only pre-training uses."""
