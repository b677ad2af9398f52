"""Wav2Vec2-BERT with a CTC head (transformers' Wav2Vec2BertForCTC), the speech encoder of SeamlessM4T v2.

Communication et al. 2023, 2312.05187, section 3.2.1.
"""

from minihra.blocks.config import ConformerConfig, Stages
from minihra.blocks.stages import Stage
from minihra.loaders.family import Family
from minihra.loaders.settings import Settings
from minihra.loaders.table import Row, affine, norm
from minihra.loaders.wav2vec2 import POSITIONS, UNUSED, block_rows, common
from minihra.speech.open_features import Wav2Vec2BertFeatures
from minihra.speech.tokenizers import Characters


def config(settings: Settings) -> ConformerConfig:
    """Return the configuration that a config.json describes."""
    shared = common(settings, width=1024, layers=24, heads=16, inner=4096, activation="swish")
    eps = settings.get("layer_norm_eps", 1e-5)
    left = settings.size("left_max_position_embeddings", 64, least=0)
    right = settings.size("right_max_position_embeddings", 8, least=0)
    return ConformerConfig(
        **shared,
        mels=settings.size("feature_projection_input_dim", 160),
        conv_norm="layer",
        causal=True,
        position=settings.choice("position_embeddings_type", "relative_key", POSITIONS),
        shaw=(left, right),
        eps=eps,
        front_end=Stages((Stage(norm="layer", eps=eps), Stage(shared["width"]))),
    )


def rows(config: ConformerConfig) -> list[Row]:
    """Return the table of the family."""
    prefix = "wav2vec2_bert"
    table = [
        *norm("p.front_end.0.norm", f"{prefix}.feature_projection.layer_norm"),
        *affine("p.front_end.1.map", f"{prefix}.feature_projection.projection"),
    ]
    for l in range(config.layers):
        inner = norm(f"p.layers.{l}.conv.inner_norm", f"{prefix}.encoder.layers.{l}.conv_module.depthwise_layer_norm")
        table += [*block_rows(l, prefix), *inner]
    return table + affine("p.readout.linear", "lm_head")


FAMILY = Family(
    name="Wav2Vec2-BERT-CTC",
    model_type="wav2vec2-bert",
    config=config,
    default_blank=0,
    rows=rows,
    unused=UNUSED,
    features=lambda settings, config: Wav2Vec2BertFeatures.from_settings(settings),
    tokenizer=Characters.read,
)
