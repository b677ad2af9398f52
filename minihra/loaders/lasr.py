"""LASR, Google's open Conformer-CTC, of which MedASR is one (transformers' LasrForCTC)."""

from minihra.blocks.config import ConformerConfig, Stages
from minihra.blocks.stages import Stage
from minihra.loaders.family import Family
from minihra.loaders.fastconformer import UNUSED, block_rows, tokenizer
from minihra.loaders.settings import ACTIVATIONS, Settings
from minihra.loaders.table import Row, affine, convolution, norm, pointwise
from minihra.speech.open_features import LasrFeatures


def config(settings: Settings) -> ConformerConfig:
    """Return the configuration that a config.json describes."""
    encoder = settings.part("encoder_config")
    width, eps = encoder.size("hidden_size", 512), encoder.get("layer_norm_eps", 1e-6)
    kernel, stride = encoder.size("subsampling_conv_kernel_size", 5), encoder.size("subsampling_conv_stride", 2)
    channels = encoder.size("subsampling_conv_channels", 256)
    feed_forward = encoder.numbers("feed_forward_residual_weights", (1.5, 0.5))
    conv = encoder.numbers("conv_residual_weights", (2.0, 1.0))
    rope = encoder.part("rope_parameters")
    rope.choice("rope_type", "default", {"default": "default"})
    return ConformerConfig(
        labels=settings.size("vocab_size", 512),
        mels=encoder.size("num_mel_bins", 128),
        width=width,
        layers=encoder.size("num_hidden_layers", 17),
        heads=encoder.size("num_attention_heads", 8),
        kernel=encoder.size("conv_kernel_size", 32),
        inner=encoder.size("intermediate_size", 2048),
        activation=encoder.choice("hidden_act", "silu", ACTIVATIONS),
        position="rotary",
        rotary_base=float(rope.get("rope_theta", 10000.0)),
        precision="float32",
        bias=encoder.get("attention_bias", False),
        conv_bias=encoder.get("convolution_bias", False),
        norm_bias=False,
        eps=eps,
        weights=(feed_forward, (1.0, 1.0), conv, feed_forward),
        out_norm=eps,
        front_end=Stages(
            (
                Stage(width, activation="relu"),
                Stage(width, kernel, stride, activation="relu"),
                Stage(channels, kernel, stride, activation="relu"),
                Stage(width),
            )
        ),
    )


def rows(config: ConformerConfig) -> list[Row]:
    """Return the table of the family."""
    ours, theirs, stages = "p.front_end", "encoder.subsampler", config.front_end.stages
    table = [
        *affine(f"{ours}.0.map", f"{theirs}.dense_0"),
        *affine(f"{ours}.1.map", f"{theirs}.conv_0", convolution(stages[1])),
        *affine(f"{ours}.2.map", f"{theirs}.conv_1", convolution(stages[2])),
        *affine(f"{ours}.3.map", f"{theirs}.dense_1"),
    ]
    for l in range(config.layers):
        table += block_rows(l)
    return [
        *table,
        *norm("p.readout.norm", "encoder.out_norm"),
        *affine("p.readout.linear", "ctc_head", pointwise),
    ]


FAMILY = Family(
    name="LASR-CTC",
    model_type="lasr_ctc",
    config=config,
    default_blank=0,
    rows=rows,
    unused=UNUSED,
    features=lambda settings, config: LasrFeatures.from_settings({"feature_size": config.mels, **settings}),
    tokenizer=tokenizer,
)
