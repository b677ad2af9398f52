"""A recogniser and its adapter as folders: what every command reads, and training writes.

config.json              what the model is: sizes, features, alphabet; or for an adapter, its tasks and backbone
model.safetensors        the backbone's parameters and running statistics, or adapter.safetensors
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minihra.adapters.files import load_adapter, save_adapter
from minihra.adapters.hra import HRA
from minihra.blocks.conformer import Conformer, ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.checkpoint import FORMAT, find, matched, read_json, write_json, write_tensors
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from minihra.tree import Tree, leaves


class Recogniser(NamedTuple):
    """A backbone with what it takes to turn a recording into text."""

    model: Conformer
    log_mel: LogMel
    alphabet: Alphabet


class Adapter(NamedTuple):
    """An HRA and the key of the manifest that names its tasks."""

    hra: HRA
    task_by: str


def tensors_of(model: Conformer) -> Tree:
    """Return all arrays of a backbone as one tree."""
    return {"p": model.p, "statistics": model.statistics}


def backbone_hash(model: Conformer) -> str:
    """Return the SHA-256 (hexadecimal) of a backbone: name, shape and bytes of each of its arrays."""
    digest = hashlib.sha256()
    for name, leaf in leaves(tensors_of(model)):
        digest.update(f"{name} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def save_backbone(recogniser: Recogniser, folder: Path) -> None:
    """Write config.json and model.safetensors into a folder."""
    config = {
        "format": FORMAT,
        "kind": "backbone",
        "model": asdict(recogniser.model.config),
        "features": asdict(recogniser.log_mel),
        "alphabet": recogniser.alphabet.characters,
    }
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", tensors_of(recogniser.model))


def load_backbone(folder: str | Path) -> Recogniser:
    """Return the frozen backbone of a folder.

    Raises:
        ValueError: the folder holds none, is of another format version, or has missing or extra tensors.
    """
    folder = find(folder, "backbone")
    path = folder / "config.json"
    content = read_json(path, "backbone")
    try:
        model = dict(content["model"])
        reach = model.get("reach")
        config = ConformerConfig(**{**model, "reach": None if reach is None else tuple(reach)})
        log_mel, alphabet = LogMel(**content["features"]), Alphabet(content["alphabet"])
        empty = initial_conformer(config, seed=0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if len(alphabet) != config.labels or log_mel.mels != config.mels:
        raise ValueError(f"{path}: damaged (the model has {config.labels} labels and {config.mels} mel bins)")
    tree = matched(folder / "model.safetensors", tensors_of(empty))
    return Recogniser(Conformer(config, tree["p"], tree["statistics"]), log_mel, alphabet)


def save_hra(adapter: Adapter, backbone: Conformer, folder: Path) -> None:
    """Write config.json and adapter.safetensors into a folder."""
    config = {
        "format": FORMAT,
        "kind": "adapter",
        "task_by": adapter.task_by,
        "tasks": list(adapter.hra.task_names),
        "backbone_sha256": backbone_hash(backbone),
    }
    write_json(folder / "config.json", config)
    save_adapter(adapter.hra, folder / "adapter.safetensors")


def load_hra(folder: str | Path, backbone: Conformer) -> Adapter:
    """Return the adapter of a folder, which must have been trained on `backbone`.

    Raises:
        ValueError: the folder holds none, is of another format version, damaged, or for another backbone.
    """
    folder = find(folder, "adapter")
    content = read_json(folder / "config.json", "adapter")
    ours, theirs = backbone_hash(backbone), content.get("backbone_sha256")
    if ours != theirs:
        raise ValueError(f"{folder}: this adapter is for the backbone {theirs}, but the backbone given is {ours}")
    try:
        return Adapter(load_adapter(folder / "adapter.safetensors"), str(content["task_by"]))
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"{folder}: damaged ({error})") from None
