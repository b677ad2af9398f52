"""Parakeet-CTC, NVIDIA's FastConformer with a CTC head (transformers' ParakeetForCTC).

Rekesh et al. 2023, 2305.05084.
"""

import math

from minihra.blocks.config import ConformerConfig, Subsampling
from minihra.loaders.family import Family
from minihra.loaders.fastconformer import UNUSED, block_rows, tokenizer
from minihra.loaders.settings import ACTIVATIONS, Settings
from minihra.loaders.table import (
    Row,
    affine,
    depthwise_in_two_dimensions,
    flattened_by_channel,
    in_two_dimensions,
    pointwise,
)
from minihra.speech.open_features import ParakeetFeatures

CONVS = {2: 1, 4: 2, 8: 3, 16: 4}
"""Convolutions of a front end, by the factor by which it lowers the frame rate."""


def config(settings: Settings) -> ConformerConfig:
    """Return the configuration that a config.json describes."""
    encoder = settings.part("encoder_config")
    width = encoder.size("hidden_size", 1024)
    encoder.choice("subsampling_conv_kernel_size", 3, {3: 3})
    encoder.choice("subsampling_conv_stride", 2, {2: 2})
    front_end = Subsampling(
        convs=encoder.choice("subsampling_factor", 8, CONVS),
        channels=encoder.size("subsampling_conv_channels", 256),
        separable=True,
        scale=math.sqrt(width) if encoder.get("scale_input", True) else 1.0,
    )
    return ConformerConfig(
        labels=settings.size("vocab_size", 1025),
        mels=encoder.size("num_mel_bins", 80),
        width=width,
        layers=encoder.size("num_hidden_layers", 24),
        heads=encoder.size("num_attention_heads", 8),
        kernel=encoder.size("conv_kernel_size", 9),
        inner=encoder.size("intermediate_size", 4096),
        activation=encoder.choice("hidden_act", "silu", ACTIVATIONS),
        precision="float32",
        bias=encoder.get("attention_bias", True),
        conv_bias=encoder.get("convolution_bias", True),
        front_end=front_end,
    )


def rows(config: ConformerConfig) -> list[Row]:
    """Return the table of the family."""
    ours, theirs, front = "p.front_end", "encoder.subsampling", config.front_end
    table = affine(f"{ours}.convs.0", f"{theirs}.layers.0", in_two_dimensions)
    for n in range(1, front.convs):  # depthwise, pointwise and relu take three places
        table += affine(f"{ours}.convs.{n}.depthwise", f"{theirs}.layers.{3 * n - 1}", depthwise_in_two_dimensions)
        table += affine(f"{ours}.convs.{n}.pointwise", f"{theirs}.layers.{3 * n}", pointwise)
    table += affine(f"{ours}.out", f"{theirs}.linear", flattened_by_channel(front.channels))
    for l in range(config.layers):
        table += block_rows(l)
    return table + affine("p.readout.linear", "ctc_head", pointwise)


FAMILY = Family(
    name="Parakeet-CTC",
    model_type="parakeet_ctc",
    config=config,
    default_blank=1024,
    rows=rows,
    unused=UNUSED,
    features=lambda settings, config: ParakeetFeatures.from_settings({"feature_size": config.mels, **settings}),
    tokenizer=tokenizer,
)
