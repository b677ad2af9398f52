"""Checkpoints: folders with a model, and while it trains the state that it needs to go on to the same bits.

    RUN/step-00000430/config.json              what the model is: sizes, features, alphabet
                      model.safetensors        a backbone, or adapter.safetensors
                      optimiser.safetensors    AdamW's moments and counts of steps
                      state.json               the step, and the settings of the training
    RUN/log.jsonl                              a line for each step and evaluation

A folder is written under a temporary name and renamed, and only then are older ones deleted: whenever a run is killed,
the last whole folder stays. There is no state of random numbers to save: those of a step are a function of the seed and
the step. Wherever a folder is asked for, RUN stands for its last step.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from minihra.arrays import Array
from minihra.data.json_file import read_object
from minihra.device import moved, to_host
from minihra.optim import AdamW, Moments
from minihra.tree import Tree, from_leaves, leaves

FORMAT = 2


def step_folder(run: Path, step: int) -> Path:
    """Return the folder of a step."""
    return run / f"step-{step:08d}"


def steps_in(run: Path) -> list[Path]:
    """Return the folders of the steps in a run, oldest first."""
    return sorted(path for path in run.glob("step-*") if path.is_dir() and path.name[5:].isdigit())


def find(folder: str | Path, kind: str) -> Path:
    """Return the checkpoint that `folder` is or holds.

    Raises:
        ValueError: there is none.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    steps = steps_in(folder)
    if not steps:
        raise ValueError(f"{folder}: no {kind} in this folder (neither a config.json nor a step-...)")
    return steps[-1]


def write_checkpoint(run: Path, step: int, fill: Callable[[Path], None]) -> None:
    """Write the folder of a step, whose files `fill` writes, and delete those of earlier steps.

    Raises:
        OSError: the disk is full, or the folder cannot be written; what was there stays.
    """
    run.mkdir(parents=True, exist_ok=True)
    for left in run.glob(".step-*"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    final = step_folder(run, step)
    temporary = run / f".{final.name}.{os.getpid()}"
    try:
        temporary.mkdir()
        fill(temporary)
        older = steps_in(run)
        if final.exists():  # the same step, written anew: nothing is lost with the old one
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in older:
        if path != final:
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file for people to read."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_kind(path: Path, kind: str) -> dict[str, Any]:
    """Return the configuration in a file.

    Raises:
        ValueError: it is missing, no JSON object, of another kind or of another format version.
    """
    content = read_object(path)
    if content.get("kind") != kind:
        found = content.get("kind")
        raise ValueError(f"{path}: a configuration of kind {kind!r} is needed, this one is of {found!r}")
    if content.get("format") != FORMAT:
        raise ValueError(f"{path}: format version {content.get('format')}, but this minihra reads {FORMAT}")
    return content


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the arrays of a safetensors file.

    Raises:
        ValueError: it is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def write_tensors(path: Path, tree: Tree) -> None:
    """Write the leaves of a tree to a safetensors file."""
    path.write_bytes(save({name: np.ascontiguousarray(leaf) for name, leaf in leaves(to_host(tree))}))


def matched(path: Path, template: Tree) -> Tree:
    """Return a tree like `template`, whose leaves may be shapes alone, with the float32 tensors of a file.

    Raises:
        ValueError: tensors are missing, extra, or of another shape or type.
    """
    tensors = read_tensors(path)
    wanted = dict(leaves(template))
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    other = [
        name
        for name in wanted.keys() & tensors.keys()
        if wanted[name].shape != tensors[name].shape or tensors[name].dtype != np.float32
    ]
    for what, names in (("missing", missing), ("extra", extra), ("of another shape or type", sorted(other))):
        if names:
            raise ValueError(f"{path}: {len(names)} tensors {what}: {', '.join(names[:5])}{' ...' * (len(names) > 5)}")
    return from_leaves(template, tensors)


def save_optimiser(optimiser: AdamW, folder: Path) -> None:
    """Write optimiser.safetensors into a folder."""
    tensors = {
        f"{part}:{name}": leaf
        for name, moments in optimiser.moments.items()
        for part, leaf in zip(Moments._fields, to_host(moments), strict=True)
    }
    (folder / "optimiser.safetensors").write_bytes(save(tensors))


def load_optimiser(optimiser: AdamW, folder: Path, xp: ModuleType = np) -> None:
    """Give an optimiser the moments that were saved in a folder, as arrays of `xp`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / "optimiser.safetensors"
    tensors = read_tensors(path)
    names = [name.removeprefix("m:") for name in tensors if name.startswith("m:")]
    try:
        optimiser.moments = {
            name: moved(Moments(*(np.array(tensors[f"{part}:{name}"]) for part in Moments._fields)), xp)
            for name in names
        }
    except KeyError as error:
        raise ValueError(f"{path}: no tensor {error}") from None
