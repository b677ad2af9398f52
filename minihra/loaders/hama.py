"""hama: a trained Conformer-CTC of 2.0 M parameters that recognises phonemes, from the PyPI package of that name.

The weights stay in the package (hama/assets/asr_waveform.hama). The file:

    "HAMAPK", 2 bytes, u32 number of tensors
    for each: u16 length of the name, name, u8 type (0 float32, 1 float16), u8 axes, u32 for each, u64 offset, u64 bytes
    the data, whose offsets count from the end of the directory, rounded up to 16 bytes

Matrices of linear maps, and all convolution kernels but the pointwise ones, have lost their names (onnx::MatMul_829):
they stand in the order in which they are used, and are named here by that order.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minihra.blocks.config import ConformerConfig, Stages
from minihra.blocks.stages import Stage
from minihra.loaders.table import Row, affine, columns, depthwise, norm, over_time, pointwise, same
from minihra.loaders.tensors import StoredTensor
from minihra.speech.sound_features import HamaFeatures

NAME = "hama"
MAGIC = b"HAMAPK"
TYPES = ("F32", "F16")
CONFIG = ConformerConfig(
    labels=191,
    mels=80,
    width=144,
    layers=4,
    heads=4,
    kernel=31,
    conv_norm="none",
    position="none",
    front_end=Stages((Stage(144, kernel=3, stride=2, pad=1, activation="gelu"),)),
)
MATRICES = ("ffn1.fc1", "ffn1.fc2", "attn.in_proj", "attn.out_proj", "ffn2.fc1", "ffn2.fc2")
"""The matrices of a block in the order of their use."""

MODEL = "acoustic_model.model"
FRONT_END = "front_end"
"""Our name of the front end's convolution, which has none."""

FEATURES = ("mel_fb", "stft_real_kernel", "stft_imag_kernel")


def directory(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a file, as they are called there.

    Raises:
        ValueError: the file is missing, is no such file, or is cut short.
    """
    try:
        data = path.read_bytes()
        if not data.startswith(MAGIC):
            raise ValueError(f"it begins with {data[:6]!r}, not with {MAGIC!r}")
        (number,), place, found = struct.unpack_from("<I", data, 8), 12, []
        for _ in range(number):
            (length,) = struct.unpack_from("<H", data, place)
            name = data[place + 2 : place + 2 + length].decode("utf-8")
            kind, axes = struct.unpack_from("<BB", data, place + 2 + length)
            place += 4 + length
            *shape, offset, size = struct.unpack_from(f"<{axes}IQQ", data, place)
            place += 4 * axes + 16
            found.append((name, TYPES[kind], tuple(shape), offset, size))
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise ValueError(f"{path}: not a whole file of hama's ({error})") from None
    start = -(-place // 16) * 16
    for name, kind, shape, offset, size in found:
        if start + offset + size > len(data) or size != math.prod(shape) * (4 if kind == "F32" else 2):
            raise ValueError(f"{path}: not a whole file of hama's (the tensor {name} is cut short)")
    return {name: StoredTensor(path, kind, shape, start + offset) for name, kind, shape, offset, _ in found}


def named(tensors: Mapping[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Return the tensors with names for those that have lost theirs.

    Raises:
        ValueError: there are more or fewer of them than the model has.
    """
    blocks = [f"{MODEL}.blocks.{l}" for l in range(CONFIG.layers)]
    matrices = [f"{block}.{part}.weight" for block in blocks for part in MATRICES]
    convolutions = [FRONT_END, *(f"{block}.conv.depthwise" for block in blocks)]
    kernels = [f"{part}.{leaf}" for part in convolutions for leaf in ("weight", "bias")]
    lost = {"onnx::MatMul_": iter(matrices), "onnx::Conv_": iter(kernels)}
    for prefix, names in (("onnx::MatMul_", matrices), ("onnx::Conv_", kernels)):
        found = sum(name.startswith(prefix) for name in tensors)
        if found != len(names):
            raise ValueError(f"{path}: {found} tensors {prefix}..., but the model has {len(names)}: another version")
    result = {}
    for name, tensor in tensors.items():
        prefix = name[: name.rfind("_") + 1]
        found = next(lost[prefix]) if prefix in lost else name
        # PyTorch keeps the bias of attention's first map under a name of its own.
        result[found.replace("attn.in_proj_bias", "attn.in_proj.bias")] = tensor
    return result


def rows(config: ConformerConfig) -> list[Row]:
    """Return the table of the model."""
    table = affine("p.front_end.0.map", FRONT_END, over_time)
    for l in range(config.layers):
        ours, theirs = f"p.layers.{l}", f"{MODEL}.blocks.{l}"
        table += norm(f"{ours}.attention.norm", f"{theirs}.attn_norm")
        for part, name in enumerate(("query", "key", "value")):
            table += thirds(f"{ours}.attention.{name}", f"{theirs}.attn.in_proj", part)
        table += affine(f"{ours}.attention.out", f"{theirs}.attn.out_proj", same)
        table += norm(f"{ours}.conv.norm", f"{theirs}.conv.norm")
        table += affine(f"{ours}.conv.pointwise1", f"{theirs}.conv.pointwise1", pointwise)
        table += affine(f"{ours}.conv.depthwise", f"{theirs}.conv.depthwise", depthwise)
        table += affine(f"{ours}.conv.pointwise2", f"{theirs}.conv.pointwise2", pointwise)
        table += norm(f"{ours}.norm", f"{theirs}.norm")
        for n in (1, 2):
            table += norm(f"{ours}.ffn{n}.norm", f"{theirs}.ffn{n}.norm")
            table += affine(f"{ours}.ffn{n}.up", f"{theirs}.ffn{n}.fc1", same)
            table += affine(f"{ours}.ffn{n}.down", f"{theirs}.ffn{n}.fc2", same)
    return table + affine("p.readout.linear", f"{MODEL}.proj", pointwise)


def thirds(ours: str, theirs: str, part: int) -> list[Row]:
    """Return the rows of one of three maps that stand side by side."""
    third = columns(part, 3)
    return [Row(f"{ours}.W", f"{theirs}.weight", third), Row(f"{ours}.b", f"{theirs}.bias", third)]


def features(tensors: dict[str, StoredTensor]) -> HamaFeatures:
    """Return the features, with the kernels and mel filters of the file."""
    if missing := [name for name in FEATURES if name not in tensors]:
        raise ValueError(f"hama's file lacks {', '.join(missing)}: another version")
    cosine, sine = (tensors[f"stft_{part}_kernel"].read()[:, 0].T for part in ("real", "imag"))
    return HamaFeatures(np.ascontiguousarray(cosine), np.ascontiguousarray(sine), tensors["mel_fb"].read())
