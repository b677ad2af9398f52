"""Wav2Vec2-Conformer with a CTC head (transformers' Wav2Vec2ConformerForCTC). Wang et al. 2020, 2010.05171.

The original lets padding into its front end's norm ("group") and into its convolution modules; here the mask holds, as
everywhere, so that only utterances without padding give the original's numbers.
"""

from minihra.blocks.config import ConformerConfig, Stages
from minihra.blocks.stages import Stage
from minihra.loaders.family import Family
from minihra.loaders.settings import ACTIVATIONS, Settings
from minihra.loaders.table import Row, affine, convolution, norm
from minihra.loaders.wav2vec2 import POSITIONS, UNUSED, block_rows, common
from minihra.speech.sound_features import WaveformFeatures
from minihra.speech.tokenizers import Characters


def config(settings: Settings) -> ConformerConfig:
    """Return the configuration that a config.json describes."""
    shared = common(settings, width=768, layers=12, heads=12, inner=3072, activation="gelu")
    eps = settings.get("layer_norm_eps", 1e-5)
    relative = {key: value for key, value in POSITIONS.items() if value != "shaw"}
    return ConformerConfig(
        **shared,
        mels=1,
        position=settings.choice("position_embeddings_type", "relative", relative),
        out_norm=eps,
        front_end=Stages((*convolutions(settings), Stage(norm="layer", eps=eps), Stage(shared["width"]))),
    )


def convolutions(settings: Settings) -> list[Stage]:
    """Return the stages that turn the waveform into frames.

    Raises:
        ValueError: the lists of their sizes differ in length.
    """
    widths = settings.sizes("conv_dim", (512,) * 7)
    kernels = settings.sizes("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = settings.sizes("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    if not len(widths) == len(kernels) == len(strides):
        raise ValueError(f"{settings.path}: conv_dim, conv_kernel and conv_stride must be of one length")
    bias = settings.get("conv_bias", False)
    activation = settings.choice("feat_extract_activation", "gelu", ACTIVATIONS)
    norms = settings.choice(  # a group norm of as many groups as channels, in the first stage alone
        "feat_extract_norm",
        "group",
        {"group": ["instance", *[None] * (len(widths) - 1)], "layer": ["layer"] * len(widths)},
    )
    return [
        Stage(width, kernel, stride, bias=bias, norm=norm, activation=activation)
        for width, kernel, stride, norm in zip(widths, kernels, strides, norms, strict=True)
    ]


def rows(config: ConformerConfig) -> list[Row]:
    """Return the table of the family."""
    prefix, table = "wav2vec2_conformer", []
    *convs, _, _ = config.front_end.stages
    for n, conv in enumerate(convs):
        theirs = f"{prefix}.feature_extractor.conv_layers.{n}"
        table += affine(f"p.front_end.{n}.map", f"{theirs}.conv", convolution(conv))
        table += norm(f"p.front_end.{n}.norm", f"{theirs}.layer_norm")
    n = len(convs)
    table += norm(f"p.front_end.{n}.norm", f"{prefix}.feature_projection.layer_norm")
    table += affine(f"p.front_end.{n + 1}.map", f"{prefix}.feature_projection.projection")
    for l in range(config.layers):
        inner = norm(f"p.layers.{l}.conv.inner_norm", f"{prefix}.encoder.layers.{l}.conv_module.batch_norm")
        table += [*block_rows(l, prefix), *inner]
    table += norm("p.readout.norm", f"{prefix}.encoder.layer_norm")
    return table + affine("p.readout.linear", "lm_head")


FAMILY = Family(
    name="Wav2Vec2-Conformer-CTC",
    model_type="wav2vec2-conformer",
    config=config,
    default_blank=0,
    rows=rows,
    unused=(*UNUSED, r"wav2vec2_conformer\.encoder\.pos_conv_embed\..*"),  # made, saved and never called
    features=lambda settings, config: WaveformFeatures.from_settings(settings),
    tokenizer=Characters.read,
)
