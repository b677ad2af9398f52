"""Tiny random models of every open family and variant, made by transformers and saved as its users would have them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

torch.set_num_threads(1)  # models this small lose more than they gain by a second one

WORDS = ("two to one", "a boat to the moon", "he had not eaten", "the man on the boat", "one two one two", "no one did")
LETTERS = "abcdehmnotuw"
VOCAB = {"[PAD]": 0, "|": 1, **{letter: n for n, letter in enumerate(LETTERS, start=2)}, "[UNK]": 14}
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
WIDTH = 24
CONVS = {"conv_dim": [12, 10, 14], "conv_kernel": [10, 5, 3], "conv_stride": [5, 4, 4], "num_feat_extract_layers": 3}
"""A waveform front end of 80 samples a frame."""


class Variant(NamedTuple):
    """A model to make: its family, and settings that differ from the ones that all of the family share."""

    family: str
    settings: dict[str, Any]
    masks: bool = True  # whether the original keeps padding out


VARIANTS = {
    "parakeet with biases": Variant("parakeet", {"scale_input": False}),
    "parakeet scaled, without biases": Variant(
        "parakeet", {"scale_input": True, "attention_bias": False, "convolution_bias": False, "subsampling_factor": 4}
    ),
    "parakeet, relu, half the rate": Variant("parakeet", {"hidden_act": "relu", "subsampling_factor": 2}),
    "lasr": Variant("lasr", {}),
    "lasr with biases": Variant(
        "lasr",
        {
            "attention_bias": True,
            "convolution_bias": True,
            "conv_kernel_size": 5,
            "feed_forward_residual_weights": [1.25, 0.75],
            "conv_residual_weights": [1.5, 0.5],
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "layer_norm_eps": 1e-3,
        },
    ),
    **{
        f"wav2vec2-bert {position}": Variant("wav2vec2_bert", {"position_embeddings_type": position, **more})
        for position, more in {
            "relative_key": {"left_max_position_embeddings": 6, "right_max_position_embeddings": 2},
            "relative": {"hidden_act": "gelu"},
            "rotary": {"rotary_embedding_base": 500, "layer_norm_eps": 1e-3},
            None: {},
        }.items()
    },
    **{
        f"wav2vec2-conformer {norm} {position}": Variant(
            "wav2vec2_conformer",
            {"feat_extract_norm": norm, "position_embeddings_type": position, **more},
            masks=False,
        )
        for norm, position, more in (
            ("layer", "relative", {"conv_bias": True}),
            ("layer", "rotary", {"layer_norm_eps": 1e-3}),
            ("group", "relative", {"hidden_act": "swish"}),
            ("group", "rotary", {"rotary_embedding_base": 500}),
            ("layer", None, {}),
            ("group", None, {"conv_bias": True}),
        )
    },
}
FIRST = ("parakeet with biases", "lasr", "wav2vec2-bert relative_key", "wav2vec2-conformer group relative")
"""One of each family."""


def make(name: str, **more: Any) -> Any:
    """Make the model of a variant, float32, in evaluation mode, with random values everywhere."""
    family, settings, _ = VARIANTS[name]
    settings = {"hidden_size": WIDTH, **SIZES, **settings, **more}
    if family in ("parakeet", "lasr"):
        settings = {"num_mel_bins": 16, "conv_kernel_size": 5 if family == "parakeet" else 6, **settings}
        settings["subsampling_conv_channels"] = 6 if family == "parakeet" else 10
        labels = 41
        if family == "parakeet":
            config = transformers.ParakeetCTCConfig(vocab_size=labels, pad_token_id=labels - 1, encoder_config=settings)
        else:
            config = transformers.LasrCTCConfig(vocab_size=labels, pad_token_id=0, encoder_config=settings)
    else:
        settings = {"vocab_size": len(VOCAB), "pad_token_id": 0, "conv_depthwise_kernel_size": 5, **settings}
        settings |= {"bos_token_id": None, "eos_token_id": None}
        if family == "wav2vec2_bert":
            config = transformers.Wav2Vec2BertConfig(feature_projection_input_dim=16, **settings)
        else:
            settings = {**CONVS, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 3, **settings}
            config = transformers.Wav2Vec2ConformerConfig(**settings)
    made = {
        "parakeet": transformers.ParakeetForCTC,
        "lasr": transformers.LasrForCTC,
        "wav2vec2_bert": transformers.Wav2Vec2BertForCTC,
        "wav2vec2_conformer": transformers.Wav2Vec2ConformerForCTC,
    }[family]
    config._attn_implementation = "sdpa"  # its eager attention casts the softmax to float32
    torch.manual_seed(0)
    model = made(config).eval()
    fill(model, sorted(VARIANTS).index(name))
    return model


def fill(model: Any, seed: int) -> None:
    """Give a model random values: gains about 1, weights by their fan-in, biases, u, v and statistics about 0."""
    rng = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, size: float) -> torch.Tensor:
        return size * torch.randn(shape, generator=rng)

    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.endswith("weight"):
                p.copy_(1 + normal(p.shape, 0.2))
            elif p.ndim == 1 or "bias" in name.rsplit(".", 1)[-1]:
                p.copy_(normal(p.shape, 0.3))
            else:
                p.copy_(normal(p.shape, p[0].numel() ** -0.5))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer.shape, 0.3))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=rng))


def extractor_of(name: str) -> Any:
    """The feature extractor of a variant."""
    return {
        "parakeet": lambda: transformers.ParakeetFeatureExtractor(feature_size=16),
        "lasr": lambda: transformers.LasrFeatureExtractor(feature_size=16),
        "wav2vec2_bert": lambda: transformers.SeamlessM4TFeatureExtractor(num_mel_bins=8, feature_size=8),
        "wav2vec2_conformer": lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True),
    }[VARIANTS[name].family]()


def save(name: str, folder: Path, model: Any = None, **how: Any) -> Any:
    """Write the folder of a variant: model, feature extractor and tokenizer. Returns the model."""
    model = make(name) if model is None else model
    model.save_pretrained(folder, **how)
    extractor_of(name).save_pretrained(folder)
    if VARIANTS[name].family in ("parakeet", "lasr"):
        write_pieces(folder, VARIANTS[name].family, model.config.vocab_size)
    else:
        (folder / "vocab.json").write_text(json.dumps(VOCAB))
        config = {"unk_token": "[UNK]", "pad_token": "[PAD]", "word_delimiter_token": "|", "bos_token": None}
        (folder / "tokenizer_config.json").write_text(
            json.dumps({**config, "eos_token": None, "tokenizer_class": "Wav2Vec2CTCTokenizer"})
        )
    return model


def write_pieces(folder: Path, family: str, labels: int) -> None:
    """Write a tokenizer.json: of byte pairs with the blank behind them (Parakeet), or of unigrams after it (LASR)."""
    if family == "parakeet":
        made = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=labels - 1, special_tokens=["<unk>"], show_progress=False)
    else:
        made = Tokenizer(models.Unigram())
        special = ["<epsilon>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=labels, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(WORDS, trainer)
    pad = "<pad>" if family == "parakeet" else "<epsilon>"
    made.add_tokens([f"zz{n}" for n in range(labels - (family == "parakeet") - made.get_vocab_size())])
    made.add_special_tokens([pad])  # one that is new stands behind all others
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "ParakeetTokenizer" if family == "parakeet" else "LasrTokenizer"}
    config |= {"pad_token": pad, "unk_token": "<unk>"} | (
        {"eos_token": "</s>", "extra_ids": 0} if family == "lasr" else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


class Inputs(NamedTuple):
    """A batch as the original and as ours is given it."""

    features: np.ndarray  # (B, T, F)
    lengths: np.ndarray  # (B,)

    def theirs(self, family: str, dtype: torch.dtype = torch.float32, masked: bool = True) -> dict[str, Any]:
        """The arguments of the original."""
        features = torch.tensor(self.features, dtype=dtype)
        given = {"input_values": features[..., 0]} if family == "wav2vec2_conformer" else {"input_features": features}
        if masked:
            given["attention_mask"] = torch.arange(features.shape[1]) < torch.tensor(self.lengths)[:, None]
        return given


def inputs_of(name: str, lengths: tuple[int, ...], seed: int = 0) -> Inputs:
    """Random features of so many output frames in each utterance, a few more than they take; padding is 0."""
    family, settings, _ = VARIANTS[name]
    per_frame = {"parakeet": settings.get("subsampling_factor", 8), "lasr": 4, "wav2vec2_bert": 1}.get(family, 80)
    more = {"lasr": 11, "wav2vec2_conformer": 200}.get(family, 0)
    frames = np.array([per_frame * n + more - (n % 3) * (per_frame > 1) for n in lengths])
    width = 1 if family == "wav2vec2_conformer" else 16
    features = np.random.default_rng(seed).standard_normal((len(lengths), frames.max(), width)).astype(np.float32)
    features *= (np.arange(frames.max()) < frames[:, None])[..., None]
    return Inputs(features, frames)


def voice(n: int, pitch: float = 120.0) -> np.ndarray:
    """A hummed vowel (n,) at 16 kHz, whose pitch and loudness move, with noise 30 dB below it."""
    t, rng = np.arange(n) / 16000, np.random.default_rng(n)
    hum = sum(np.sin(2 * np.pi * pitch * k * t + 3 * np.sin(5 * t * k)) / k for k in range(1, 20))
    return (0.1 * hum * (0.6 + 0.4 * np.sin(9 * t)) + 3e-3 * rng.standard_normal(n)).astype(np.float32)
