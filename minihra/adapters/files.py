"""Adapters on disk: safetensors files, one for a whole HRA and a small one for a single task.

The metadata of a task's file carries the SHA-256 of the controller that its head was trained with. A head for another
controller is refused: it would load without complaint and change the model at random.
"""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from minihra.adapters.hra import HRA
from minihra.adapters.parts import CELLS, HEADS, CellParams, initial_head
from minihra.arrays import Array
from minihra.device import to_host
from minihra.tree import Tree, from_leaves, leaves, map_leaves

FORMAT = "1"


def controller_hash(cell: str, controller: CellParams) -> str:
    """Return the SHA-256 (hexadecimal) of a controller: its cell, and name, type, shape and bytes of each leaf."""
    digest = hashlib.sha256(cell.encode())
    for name, leaf in leaves(controller):
        digest.update(f"{name} {leaf.dtype.str} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(to_host(leaf)).tobytes())
    return digest.hexdigest()


def save_adapter(hra: HRA, path: str | Path, *, backbone_sha256: str | None = None) -> None:
    """Write the controller and all heads of `hra` to a safetensors file, whose metadata names the backbone if given.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    backbone = {} if backbone_sha256 is None else {"backbone_sha256": backbone_sha256}
    _write(path, hra.p, "hra", hra, tasks=json.dumps(hra.task_names), **backbone)


def load_adapter(path: str | Path, *, backbone_sha256: str | None = None) -> HRA:
    """Read an HRA that `save_adapter` wrote.

    Raises:
        ValueError: the file is not such a file, is damaged, or holds other tensors than its sizes ask for; or it names
            another backbone than the one given.
        FileNotFoundError: there is no such file.
    """
    tensors, metadata = _read(path, "hra")
    theirs = metadata.get("backbone_sha256")
    if None not in (theirs, backbone_sha256) and theirs != backbone_sha256:
        raise ValueError(
            f"{path}: this adapter is for the backbone {theirs}, but the backbone given is {backbone_sha256}"
        )
    try:
        width, state_size = int(metadata["width"]), int(metadata["state_size"])
        bottleneck = int(metadata["bottleneck"]) if metadata["head"] == "ffn" else None
        dtype = np.dtype(metadata["dtype"])
        largest = max((tensor.size for tensor in tensors.values()), default=0)
        if width * state_size > largest:  # before anything is allocated
            raise ValueError(f"width {width} and state size {state_size} are larger than any tensor in it")
        hra = HRA(width, state_size, cell=metadata["cell"], head=metadata["head"], bottleneck=bottleneck, dtype=dtype)
        for task in json.loads(metadata["tasks"]):
            hra.add_task(str(task))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged metadata ({error})") from None
    hra.p = _fill(path, hra.p, tensors)
    if controller_hash(hra.cell, hra.p.controller) != metadata["controller_sha256"]:
        raise ValueError(f"{path}: the controller is damaged: its SHA-256 is not that of the metadata")
    return hra


def save_task(hra: HRA, task: str, path: str | Path) -> None:
    """Write the head of one task to a safetensors file.

    Raises:
        ValueError: there is no such task.
        FileNotFoundError: the folder does not exist.
    """
    if task not in hra.p.heads:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(hra.task_names)}")
    _write(path, hra.p.heads[task], "hra-task", hra, task=task)


def load_task(hra: HRA, path: str | Path, name: str | None = None) -> str:
    """Add the task in a file of `save_task` to `hra`, under its own name or as `name`. Returns the name.

    Raises:
        ValueError: the file is not such a file, is damaged, its head belongs to another controller (both hashes are
            shown) or is of another kind or size, or the name is taken.
        FileNotFoundError: there is no such file.
    """
    tensors, metadata = _read(path, "hra-task")
    ours, theirs = controller_hash(hra.cell, hra.p.controller), metadata["controller_sha256"]
    if ours != theirs:
        raise ValueError(
            f"{path}: this head was trained with the controller {theirs}, but the adapter's controller is {ours}"
        )
    name = metadata["task"] if name is None else name
    try:
        hra.check_new_name(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    shapes = HEADS[hra.head](hra.width, hra.state_size, hra.bottleneck)
    template = initial_head(shapes, np.random.default_rng(0), hra.dtype)  # not with the HRA's own random numbers
    hra.p.heads[name] = _fill(path, template, tensors)
    return name


def _write(path: str | Path, tree: Tree, kind: str, hra: HRA, **more: str) -> None:
    """Write the leaves of `tree` with the facts of `hra` as metadata, under a temporary name that is then renamed."""
    metadata = {
        "format": FORMAT,
        "kind": kind,
        "cell": hra.cell,
        "head": hra.head,
        "width": str(hra.width),
        "state_size": str(hra.state_size),
        "bottleneck": str(hra.bottleneck),
        "dtype": hra.dtype.name,
        "controller_sha256": controller_hash(hra.cell, hra.p.controller),
        **more,
    }
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        tensors = {name: np.ascontiguousarray(leaf) for name, leaf in leaves(to_host(tree))}
        temporary.write_bytes(save(tensors, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: str | Path, kind: str) -> tuple[dict[str, Array], dict[str, str]]:
    """Return the tensors and the metadata of a file of this kind and format."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    if metadata.get("kind") != kind:
        raise ValueError(f"{path}: not a file of kind {kind!r} but {metadata.get('kind')!r}")
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: format version {metadata.get('format')}, but this minihra reads {FORMAT}")
    wanted = ("cell", "head", "width", "state_size", "bottleneck", "dtype", "controller_sha256")
    wanted += ("tasks",) if kind == "hra" else ("task",)
    missing = [key for key in wanted if key not in metadata]
    if missing or metadata["cell"] not in CELLS or metadata["head"] not in HEADS:
        raise ValueError(f"{path}: damaged metadata (missing: {', '.join(missing) or 'none'}; {metadata})")
    return tensors, metadata


def _fill(path: str | Path, template: Tree, tensors: dict[str, Array]) -> Tree:
    """Return a tree like `template` with the tensors of a file, which must be the same in name, shape and type."""
    expected = {name: (leaf.shape, leaf.dtype.name) for name, leaf in leaves(template)}
    found = {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        details = "; ".join(f"{name!r}: expected {expected.get(name)}, found {found.get(name)}" for name in wrong)
        raise ValueError(f"{path}: other tensors than the adapter has: {details}")
    return map_leaves(np.array, from_leaves(template, tensors))
