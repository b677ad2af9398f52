"""A recogniser and its adapter as folders: what every command reads, and training writes.

config.json              what the model is: sizes, features, alphabet; or for an adapter, its tasks and backbone
model.safetensors        the backbone's parameters and running statistics, or adapter.safetensors
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from minihra.adapters.files import load_adapter, save_adapter
from minihra.adapters.hra import HRA, HRAEdit
from minihra.arrays import Array
from minihra.blocks.config import config_from_json
from minihra.blocks.conformer import Conformer
from minihra.blocks.parameters import conformer_shapes
from minihra.checkpoint import FORMAT, find, matched, read_kind, write_json, write_tensors
from minihra.device import moved, to_host
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import Features, LogMel
from minihra.speech.tokenizers import Tokenizer
from minihra.tree import Tree, leaves

OWN = "minihra"
"""The family of the backbones that `minihra pretrain` writes."""


class Recogniser(NamedTuple):
    """A backbone with what it takes to turn a recording into text."""

    model: Conformer
    features: Features
    tokenizer: Tokenizer
    family: str = OWN

    def moved(self, xp: ModuleType) -> "Recogniser":
        """Return it with the arrays of its model in `xp`."""
        p, statistics = moved((self.model.p, self.model.statistics), xp)
        return self._replace(model=replace(self.model, p=p, statistics=statistics))


class Adapter(NamedTuple):
    """An HRA, the key of the manifest that names its tasks, and the hash of the backbone that it belongs to."""

    hra: HRA
    task_by: str
    backbone_sha256: str


def edit_of(
    model: Conformer, hra: HRA, features: Array, lengths: Array, tasks: Sequence[str], *, train_controller: bool = True
) -> HRAEdit | None:
    """Bind an adapter to features (B, T, F), of which `lengths` (B,) frames are real: see `HRA.edit`."""
    frames = model.config.front_end.frames
    return hra.edit(
        tasks,
        frames=frames(features.shape[1]),
        lengths=[frames(n) for n in lengths],
        train_controller=train_controller,
    )


def tensors_of(model: Conformer) -> Tree:
    """Return all arrays of a backbone as one tree."""
    return {"p": model.p, "statistics": model.statistics}


def backbone_hash(model: Conformer) -> str:
    """Return the SHA-256 (hexadecimal) of a backbone: name, shape and bytes of each of its arrays."""
    digest = hashlib.sha256()
    for name, leaf in leaves(tensors_of(model)):
        digest.update(f"{name} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(to_host(leaf)).tobytes())
    return digest.hexdigest()


def save_backbone(recogniser: Recogniser, folder: Path) -> None:
    """Write config.json and model.safetensors of one of our own backbones into a folder."""
    config = {
        "format": FORMAT,
        "kind": "backbone",
        "model": asdict(recogniser.model.config),
        "features": asdict(recogniser.features),
        "alphabet": recogniser.tokenizer.characters,
    }
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", tensors_of(recogniser.model))


def load_own(folder: str | Path) -> Recogniser:
    """Return the frozen backbone of a folder that `save_backbone` wrote.

    Raises:
        ValueError: the folder holds none, is of another format version, or has missing or extra tensors.
    """
    folder = find(folder, "backbone")
    path = folder / "config.json"
    content = read_kind(path, "backbone")
    try:
        config = config_from_json(content["model"])
        features, alphabet = LogMel(**content["features"]), Alphabet(content["alphabet"])
        p, statistics = conformer_shapes(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({error})") from None
    if len(alphabet) != config.labels or features.mels != config.mels:
        raise ValueError(f"{path}: damaged (the model has {config.labels} labels and {config.mels} mel bins)")
    tree = matched(folder / "model.safetensors", {"p": p, "statistics": statistics})
    return Recogniser(Conformer(config, tree["p"], tree["statistics"]), features, alphabet)


def save_hra(adapter: Adapter, folder: Path) -> None:
    """Write config.json and adapter.safetensors into a folder."""
    config = {
        "format": FORMAT,
        "kind": "adapter",
        "task_by": adapter.task_by,
        "tasks": list(adapter.hra.task_names),
        "backbone_sha256": adapter.backbone_sha256,
    }
    write_json(folder / "config.json", config)
    save_adapter(adapter.hra, folder / "adapter.safetensors", backbone_sha256=adapter.backbone_sha256)


def load_hra(folder: str | Path, backbone_sha256: str) -> Adapter:
    """Return the adapter of a folder, which must have been trained on the backbone of this hash.

    Raises:
        ValueError: the folder holds none, is of another format version, damaged, or for another backbone.
    """
    folder = find(folder, "adapter")
    content = read_kind(folder / "config.json", "adapter")
    theirs = content.get("backbone_sha256")
    if theirs != backbone_sha256:
        raise ValueError(
            f"{folder}: this adapter is for the backbone {theirs}, but the backbone given is {backbone_sha256}"
        )
    try:
        hra = load_adapter(folder / "adapter.safetensors", backbone_sha256=backbone_sha256)
        return Adapter(hra, str(content["task_by"]), backbone_sha256)
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"{folder}: damaged ({error})") from None
