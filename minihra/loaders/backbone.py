"""`--backbone`: what `minihra pretrain` wrote, the folder of an open checkpoint, or the name of a package with one."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from minihra.blocks.config import ConformerConfig
from minihra.blocks.conformer import Conformer
from minihra.blocks.parameters import ConformerParams, Statistics
from minihra.checkpoint import find, steps_in
from minihra.loaders import hama, lasr, parakeet, wav2vec2_bert, wav2vec2_conformer
from minihra.loaders.settings import Settings, feature_settings, read_settings
from minihra.loaders.table import Row, matched_rows, read_parameters
from minihra.loaders.tensors import PICKLES, StoredTensor, how_to_convert, stored_tensors, tensors_in
from minihra.recogniser import Recogniser, load_own
from minihra.speech.features import Features
from minihra.speech.phonemes import Phonemes, hama_assets
from minihra.speech.tokenizers import Tokenizer

FAMILIES = {module.FAMILY.model_type: module.FAMILY for module in (parakeet, lasr, wav2vec2_bert, wav2vec2_conformer)}
"""The families of Hugging Face folders, by the model_type of their config.json."""


class Source(NamedTuple):
    """A backbone whose parts are read when they are asked for (one of our own has been read whole)."""

    family: str
    place: str
    config: ConformerConfig
    parameters: Callable[[], tuple[ConformerParams, Statistics]]
    features: Callable[[], Features]
    tokenizer: Callable[[], Tokenizer]
    tensors: Callable[[], dict[str, StoredTensor]]  # those that the model asks for, by their headers alone


def open_backbone(name: str | Path) -> Source:
    """Return the backbone that `name` stands for.

    Raises:
        ValueError: it is none of the known kinds, or a file of it is missing or damaged.
    """
    if str(name) == hama.NAME:
        return open_hama()
    folder = Path(name)
    if folder.is_file() and folder.suffix in PICKLES:
        raise ValueError(f"{folder}: {how_to_convert(folder.name)}")
    if not folder.is_dir():
        found = "a file" if folder.is_file() else "no such folder"
        raise ValueError(f"{folder}: {found}; a backbone is a folder, or the name {hama.NAME}")
    if (folder / "config.json").is_file():
        settings = read_settings(folder / "config.json")
        if "model_type" in settings.content:
            return open_folder(folder, settings)
        if "kind" not in settings.content:
            raise ValueError(
                f"{settings.path}: neither of a backbone of minihra nor of an open checkpoint (no model_type)"
            )
    elif not steps_in(folder):
        archives = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
        if archives:
            raise ValueError(f"{archives[0]}: {how_to_convert(archives[0].name)}")
        raise ValueError(
            f"{folder}: no backbone in this folder (neither a config.json nor a step-... of `minihra pretrain`)"
        )
    own = load_own(folder)
    return Source(
        own.family,
        str(folder),
        own.model.config,
        lambda: (own.model.p, own.model.statistics),
        lambda: own.features,
        lambda: own.tokenizer,
        lambda: dict(tensors_in(find(folder, "backbone") / "model.safetensors")),
    )


def open_folder(folder: Path, settings: Settings) -> Source:
    """Return the backbone in a Hugging Face folder."""
    model_type = settings.content["model_type"]
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(f"{settings.path}: unknown model type {model_type!r}; known: {', '.join(FAMILIES)}")
    family = FAMILIES[model_type]
    try:
        config = family.config(settings)
    except (ValueError, TypeError, OverflowError) as error:  # OverflowError: a whole number that no float holds
        raise ValueError(str(error) if str(settings.path) in str(error) else f"{settings.path}: {error}") from None
    blank = settings.get("pad_token_id", family.default_blank)
    if not 0 <= blank < config.labels:
        raise ValueError(
            f"{settings.path}: pad_token_id, CTC's blank, must be one of {config.labels} labels, got {blank}"
        )

    def parameters() -> tuple[ConformerParams, Statistics]:
        return read_parameters(str(folder), config, family.rows(config), stored_tensors(folder), family.unused)

    def tensors() -> dict[str, StoredTensor]:
        stored = stored_tensors(folder)
        return asked_for(stored, matched_rows(str(folder), config, family.rows(config), stored, family.unused))

    def features() -> Features:
        try:
            made = family.features(feature_settings(folder), config)
        except (ValueError, TypeError) as error:
            raise ValueError(str(error) if str(folder) in str(error) else f"{folder}: {error}") from None
        if made.mels != config.mels:
            raise ValueError(
                f"{folder}: the features hold {made.mels} numbers a frame, but the model takes {config.mels}"
            )
        return made

    return Source(
        family.name,
        str(folder),
        config,
        parameters,
        features,
        lambda: family.tokenizer(folder, blank, config.labels),
        tensors,
    )


def asked_for(stored: dict[str, StoredTensor], rows: dict[str, Row]) -> dict[str, StoredTensor]:
    """Return the tensors that rows of a table name."""
    return {row.theirs: stored[row.theirs] for row in rows.values()}


def open_hama() -> Source:
    """Return the backbone of the package hama."""
    path = hama_assets() / "asr_waveform.hama"
    tensors = hama.named(hama.directory(path), path)

    def parameters() -> tuple[ConformerParams, Statistics]:
        return read_parameters(str(path), hama.CONFIG, hama.rows(hama.CONFIG), tensors, hama.FEATURES)

    def used() -> dict[str, StoredTensor]:
        return asked_for(tensors, matched_rows(str(path), hama.CONFIG, hama.rows(hama.CONFIG), tensors, hama.FEATURES))

    return Source("hama", str(path), hama.CONFIG, parameters, lambda: hama.features(tensors), Phonemes.read, used)


def load_backbone(name: str | Path) -> Recogniser:
    """Return the frozen recogniser that `name` stands for.

    Raises:
        ValueError: as `open_backbone`; or its tensors are others than it asks for, or it has no tokenizer.
    """
    source = open_backbone(name)
    features, tokenizer = source.features(), source.tokenizer()
    p, statistics = source.parameters()
    return Recogniser(Conformer(source.config, p, statistics), features, tokenizer, source.family)
