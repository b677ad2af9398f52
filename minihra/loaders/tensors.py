"""Tensors on disk, read one by one: safetensors files, whole or in shards, without a copy where none is needed.

float32 tensors are memory-mapped and stay on disk until they are used; float16 and bfloat16 ones are converted one at a
time. So the memory that loading takes is that of the float32 weights. (The safetensors library checks the files; its
own reader copies every tensor, and keeps the pages of the file beside the copies.)
"""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from minihra.arrays import Array
from minihra.data.json_file import read_object

STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""How each type that can be read lies on disk; bfloat16 is the upper half of a float32."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".nemo")
"""The endings of files that hold pickles, which can run code when they are read."""


class StoredTensor(NamedTuple):
    """Where a tensor lies."""

    path: Path
    type: str  # as safetensors calls it
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    @property
    def bytes(self) -> int:
        """How long it is on disk; 0 where the type is unknown."""
        return math.prod(self.shape) * (np.dtype(STORED[self.type]).itemsize if self.type in STORED else 0)

    def read(self) -> Array:
        """Return the tensor, float32: a read-only view of the file where it is stored so.

        Raises:
            ValueError: it is of a type that is no float.
        """
        if self.type not in STORED:
            raise ValueError(f"{self.path}: a tensor of type {self.type}; known: {', '.join(STORED)}")
        stored = np.memmap(self.path, STORED[self.type], "r", self.offset, self.shape).view(np.ndarray)
        if self.type == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        if self.type == "F32" and stored.flags.aligned:
            return stored
        return stored.astype(np.float32)


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors of model.safetensors in a folder, or of the files that model.safetensors.index.json names.

    Raises:
        ValueError: there are none, the index is damaged or names a file that is missing, or a file is cut short.
    """
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if single.is_file():
        return dict(tensors_in(single))
    if not index.is_file():
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise ValueError(f"{folder / pickles[0]}: {how_to_convert(pickles[0])}")
        raise ValueError(f"{folder}: no model.safetensors and no model.safetensors.index.json")
    try:
        shards = sorted({str(shard) for shard in read_object(index)["weight_map"].values()})
    except (KeyError, AttributeError):
        raise ValueError(f"{index}: has no weight_map from tensors to files") from None
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ValueError(f"{index}: names files that are missing: {', '.join(missing)}")
    return {name: tensor for shard in shards for name, tensor in tensors_in(folder / shard)}


def tensors_in(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yield name and place of each tensor in a safetensors file.

    Raises:
        ValueError: it is cut short, or is no such file.
    """
    try:
        with safe_open(path, "numpy"):  # checks that the header is sound and the file as long as it says
            pass
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None
    for name, entry in header.items():
        if name != "__metadata__":
            yield name, StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])


def how_to_convert(name: str) -> str:
    """Return what to do with a file that holds pickles."""
    if name.endswith(".nemo"):
        return (
            "a NeMo archive holds pickles, which are never read here; convert it once, where PyTorch is, with "
            "transformers' convert_nemo_to_hf.py, and give the folder that it writes"
        )
    return (
        "a pickle, which is never read here; convert it once, where PyTorch and transformers are installed, by "
        "Model.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER), which writes model.safetensors"
    )
