"""Write the golden vectors: what every cell, head, CTC and one tiny whole HRA compute, for ports in any language.

    python tests/golden/make.py            write tests/golden/*.safetensors and manifest.json
    python tests/golden/make.py --check    compare them with what the code computes now; exit status 1 if they differ

docs/porting.md says what they hold and how to read them. The float32 arrays are computed in float32, not rounded from
float64 results. Inputs are stored once, in float64: the float32 ones are these, rounded.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from minihra.adapters.controller import HRAParams, group_tasks
from minihra.adapters.hra import HRAEdit
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.conformer import Conformer
from minihra.blocks.conformer_block import SITES, STEPS
from minihra.cases import Case, adapter_cases, filled_cell, filled_head, numbers, time_cases
from minihra.layers.ctc import CTCCache
from minihra.layers.gru import GRUCache
from minihra.masks import hide
from minihra.model import ModelCache, backward, forward, pack_labels
from minihra.model_cases import tiny_conformer
from minihra.ops import ctc_backward, ctc_forward, grouped_heads_backward, references
from minihra.tree import Tree, children, leaves, map_leaves

FOLDER = Path(__file__).parent
MANIFEST = "manifest.json"
DTYPES = ("float64", "float32")
INPUTS = ("arguments", "constants", "doutputs")
LIMIT = 300_000  # bytes of all files together
OUTPUT_GRADIENT = 40  # k of the first output gradient; no argument has it
FORMULA = (
    "element i of an array, counted row by row (the last index runs fastest), is "
    "offset + scale * (2 m - 1009) / 1009 in float64, with m = (271 i^2 + 89 i + 331 k + 57) mod 1009"
)

# What two machines may differ by, as a share of the largest element of an array. Another BLAS adds in another order,
# and another libm rounds tanh and exp in the last place; long sums and CTC's log domain enlarge that. Our float32
# results differ from our float64 results by up to 1.7e-6, that is by 30 roundings (of 6e-8); as many roundings of
# float64 are 3e-15. So 1e-13 leaves room for 30 times as much, and 4e-6 for twice as much.
CURRENT = {"float64": 1e-13, "float32": 4e-6}
# What a port may differ by. It may arrange whole layers in another way.
PORT = {"float64": 1e-12, "float32": 1e-5}

# The order of computation, where the fields of a cache stand in another one.
ORDER = {
    GRUCache: ("x", "h", "r", "z", "q", "n", "p"),
    CTCCache: (
        "valid", "log_y", "states", "skip", "log_end", "log_alpha", "log_likelihood", "feasible"
    ),
}  # fmt: skip

# Smaller than the HRA of model_cases.py, so that the files stay small.
CONFIG = ConformerConfig(labels=7, mels=5, width=6, layers=3, heads=2, kernel=3, inner=12)
STATE, FRAMES = 5, 11  # 3 frames after subsampling
LENGTHS = (11, 7, 3, 6)
LABELS = ([3, 3], [5], [2], [1, 2, 4])  # the last row is too short for its labels
TASKS = ("bob", "base", "ann", "bob")  # "eve" is absent
HEADS = {"ann": 20, "bob": 24, "eve": 28}  # the k of each head's first leaf


class Record(NamedTuple):
    """What one case computes in one type."""

    arrays: dict[str, Array]  # by dotted name, in the order in which to compare
    static: dict[str, Any]  # what holds no array: segments, blank, ...
    zero: list[str]  # gradients that are exactly zero and so have no array


def golden_records() -> dict[str, dict[str, dict[str, Record]]]:
    """Return every record, by file, case and type."""
    adapters, ctc = adapter_cases(), [case for case in time_cases() if case.name.startswith("ctc")]
    files = {
        "cells": [case for case in adapters if "head" not in case.name],
        "heads": [case for case in adapters if "head" in case.name],
        "ctc": ctc,
    }
    with references():
        records = {
            file: {key(case): {dtype: layer_record(case, dtype) for dtype in DTYPES} for case in cases}
            for file, cases in files.items()
        }
        return records | {"hra": {"hra": {dtype: hra_record(dtype) for dtype in DTYPES}}}


def key(case: Case) -> str:
    """Return the name of a case in the files: "ctc, last label blank" is ctc.last_label_blank."""
    return case.name.replace(", ", ".").replace(" ", "_")


def layer_record(case: Case, dtype: str) -> Record:
    """Return what a case of a pair computes."""
    arguments, constants = cast(case.arguments, dtype), cast(dict(case.constants), dtype)
    *outputs, cache = case.pair.forward(**arguments, **constants)
    doutputs = tuple(numbers(*y.shape, k=OUTPUT_GRADIENT + n).astype(dtype) for n, y in enumerate(outputs))
    gradients, zero = gradients_by_name(arguments, case.pair.backward(*doutputs, cache))
    tree = {
        "arguments": arguments,
        "constants": constants,
        "doutputs": doutputs,
        "cache": without_parameters(cache),
        "outputs": tuple(outputs),
        "gradients": gradients,
    }
    return record(tree, zero, dtype)


def without_parameters(tree: Tree) -> Tree:
    """Return a cache as nested dicts in the order of computation, without what is None and without the parameters `p`
    that it points to (they are inputs) and what the call set: the flag `params`, and `left`.
    """
    if hasattr(tree, "_fields"):
        order = ORDER.get(type(tree), tree._fields)
        tree = {name: getattr(tree, name) for name in order if name not in ("p", "params", "left")}
    if not isinstance(tree, dict):
        return tree
    return {name: without_parameters(child) for name, child in tree.items() if child is not None}


def cast(tree: Tree, dtype: str) -> Tree:
    """Return a tree whose floating-point leaves have `dtype`."""
    return map_leaves(lambda leaf: leaf.astype(dtype) if getattr(leaf, "dtype", None) == np.float64 else leaf, tree)


def gradients_by_name(arguments: dict[str, Tree], gradients: Any) -> tuple[dict[str, Tree], list[str]]:
    """Return the gradients under the names of their arguments, and the names of those that are absent."""
    gradients = (gradients,) if isinstance(gradients, np.ndarray) else gradients
    named = dict(zip(arguments, gradients, strict=True))
    present = dict(leaves(named))
    return named, [f"gradients.{name}" for name, _ in leaves(arguments) if name not in present]


def record(tree: dict[str, Tree], zero: list[str], dtype: str) -> Record:
    """Return the record of a tree.

    Raises:
        ValueError: a floating-point array has another type than `dtype`.
    """
    arrays, static = split(tree)
    leaks = [name for name, a in arrays.items() if a.dtype.kind == "f" and a.dtype != dtype]
    if leaks:
        raise ValueError(f"not {dtype}: {', '.join(leaks)}")
    return Record(arrays, static, zero)


def split(tree: Tree, prefix: str = "") -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the arrays of a tree by dotted name, and by name the subtrees that hold none (segments, blank)."""
    arrays = {name: leaf for name, leaf in leaves(tree, prefix) if isinstance(leaf, np.ndarray)}
    if not arrays and prefix not in INPUTS:
        return {}, {} if tree is None or tree == {} else {prefix: tree}
    static = {}
    for name, child in children(tree):
        static |= split(child, f"{prefix}.{name}" if prefix else name)[1]
    return arrays, static


class Recorder(NamedTuple):
    """An edit that does what `edit` does, and writes down what passes each site, on the way up and down."""

    edit: HRAEdit
    valid: Array  # (B, T)
    trace: dict[str, dict[str, Array]]  # by layer and name
    dtrace: dict[str, dict[str, Array]]  # their gradients
    sites = frozenset(SITES)

    def shown(self, a: Array) -> Array:
        """Return an array with 0 on padded frames: they hold what the backbone happens to make of them, for nobody."""
        (B, T), rows = self.valid.shape, self.edit.groups.rows
        if a.shape[:2] == (B, T):
            return hide(a, self.valid).astype(a.dtype)
        if a.ndim == 4 and a.shape[::2] == (B, T):  # queries, keys, values (B, A, T, D)
            return hide(a.swapaxes(1, 2), self.valid).swapaxes(1, 2)
        if a.shape[0] == len(rows) * T:  # of the rows with a task (M T, ...)
            return np.where(self.valid[rows].reshape(-1, 1), a, 0).astype(a.dtype)
        return a

    def forward(self, site: str, l: int, x: Array, u: Array | None, carry: Any) -> tuple[Array | None, Any, Any]:
        """Write down the branch u of a step; at the end of a block, what HRA reads and gives."""
        seen = self.trace.setdefault(str(l), {})
        if site != "block":
            seen[site] = self.shown(u)
            return u, carry, None
        u, h, cache = self.edit.forward(site, l, x, u, carry)
        seen |= {"x": self.shown(x), "h": self.shown(h), "u": self.shown(u)}
        return u, h, cache

    def backward(self, site: str, l: int, du: Array, dcarry: Any, cache: Any) -> tuple[Array, Any, Any, Tree]:
        """Write down the gradients of what the forward wrote down; nothing trains below the end of the first block."""
        seen = self.dtrace.setdefault(str(l), {})
        if site != "block":
            if l > 0:
                seen[site] = self.shown(du)
            return np.zeros_like(du), du, dcarry, None
        dx, du_below, dcarry_below, dp = self.edit.backward(site, l, du, dcarry, cache)
        dh = grouped_heads_backward(du[self.edit.groups.rows], cache.heads)[0].reshape(-1, self.edit.state_size)
        seen |= {"u": self.shown(du), "h": self.shown(dh if dcarry is None else dh + dcarry), "x": self.shown(du + dx)}
        return dx, du_below, dcarry_below, dp


def cache_by_name(cache: ModelCache, recorder: Recorder) -> Tree:
    """Return every field that the backward reads, by layer and site, with 0 on padded frames.

    The frozen branches of the first layer keep nothing.
    """
    layers = {}
    for l, layer in enumerate(cache.layers):
        branches = {site: step.branch for site, step in zip(STEPS, layer.steps, strict=True)}
        step = layer.edit.cache
        heads = {
            task: hide(step.heads.heads[task].x, recorder.valid[step.groups.rows[start:stop]])
            for task, start, stop in step.groups.segments
        }
        fields = without_parameters({**branches, "norm": layer.norm, "hra": {"state": step.state}})
        fields = map_leaves(recorder.shown, fields)
        layers[str(l)] = {**fields, "hra": {**fields["hra"], "heads": {task: {"x": x} for task, x in heads.items()}}}
    return {"layers": layers}


def hra_inputs(dtype: str) -> tuple[Conformer, HRAParams, Array]:
    """Return the frozen Conformer, the parameters of a GRU HRA with linear heads, and features."""
    backbone = tiny_conformer(CONFIG)
    backbone = Conformer(CONFIG, cast(backbone.p, dtype), cast(backbone.statistics, dtype))
    heads = {task: filled_head("linear", CONFIG.width, STATE, STATE, k) for task, k in HEADS.items()}
    p = cast(HRAParams(filled_cell("gru", CONFIG.width, STATE), heads), dtype)
    return backbone, p, numbers(len(TASKS), FRAMES, CONFIG.mels, k=2).astype(dtype)


def hra_record(dtype: str) -> Record:
    """Return what the HRA computes through the frozen Conformer to the CTC loss of each utterance, and back."""
    backbone, p, features = hra_inputs(dtype)
    lengths, labels, groups = np.array(LENGTHS), pack_labels(LABELS, CONFIG.labels), group_tasks(TASKS, p.heads)
    x0, context, _ = backbone.embed(features, lengths)
    edit = HRAEdit(p, "gru", STATE, groups, len(TASKS), True)
    recorder = Recorder(edit, context.valid, {}, {})
    logits, cache = forward(backbone, features, lengths, recorder)
    losses, ctc_cache = ctc_forward(logits, context.valid, *labels)
    dlosses = numbers(len(TASKS), k=OUTPUT_GRADIENT).astype(dtype)
    dlogits = ctc_backward(dlosses, ctc_cache)
    gradients, zero = gradients_by_name({"p": p}, (backward(dlogits, cache).adapter,))
    constants = {
        "features": features,
        "lengths": lengths,
        "labels": labels.labels,
        "label_lengths": labels.lengths,
        "tasks": TASKS,
        "config": asdict(CONFIG),
        "backbone": backbone.p,
        "statistics": backbone.statistics,
    }
    trace = {
        "valid": context.valid,
        "positions": context.positions,
        "groups": groups,
        "x0": recorder.shown(x0),
        "layers": recorder.trace,
        "logits": recorder.shown(logits),
    }
    ctc_shown = map_leaves(recorder.shown, without_parameters(ctc_cache))
    tree = {
        "arguments": {"p": p},
        "constants": constants,
        "doutputs": (dlosses,),
        "trace": trace,
        "cache": {**cache_by_name(forward(backbone, features, lengths, edit)[1], recorder), "ctc": ctc_shown},
        "outputs": (losses,),
        "dtrace": {"logits": dlogits, "layers": recorder.dtrace},
        "gradients": gradients,
    }
    return record(tree, zero, dtype)


def formula(a: Array) -> tuple[int, float, float] | None:
    """Return (k, scale, offset) of a float64 array that comes from the formula, None for another one.

    The k is read from the first element and proved on all of them, so that cases.py need not say it a second time.
    """
    for scale, offset in ((1, 0), (0.5, 0), (2, 0), (0.5, 1)):
        if a.dtype == np.float64 and a.size:
            m = round(((a.flat[0] - offset) / scale * 1009 + 1009) / 2)
            k = int((m - 57) * pow(331, -1, 1009) % 1009)
            if np.array_equal(offset + scale * numbers(*a.shape, k=k), a):
                return k, scale, offset
    return None


def repeated(types: dict[str, Record]) -> dict[str, str]:
    """Return the arrays of a case that repeat an earlier one, as a cache does inputs, and the name of that one."""
    first: dict[tuple, str] = {}
    found = {}
    for name, a in types["float64"].arrays.items():
        b = types["float32"].arrays[name]
        earlier = first.setdefault((a.shape, a.dtype, a.tobytes(), b.tobytes()), name)
        if earlier != name and name.split(".")[0] not in INPUTS:
            found[name] = earlier
    return found


def stored(name: str, a: Array, dtype: str) -> bool:
    """Return whether an array that is no repetition is in the files: inputs, and what is not floating-point, once; the
    backbone of the HRA by its formula alone.
    """
    once = name.split(".")[0] in INPUTS or a.dtype.kind != "f"
    return not name.startswith("constants.backbone.") and (dtype == "float64" or not once)


def golden_tensors(records: dict) -> dict[str, dict[str, Array]]:
    """Return the arrays of every file by their full names, such as gru/float64/outputs.0."""
    return {
        f"{file}.safetensors": {
            f"{case}/{dtype}/{name}": np.ascontiguousarray(a)
            for case, types in cases.items()
            for dtype, made in types.items()
            for name, a in made.arrays.items()
            if stored(name, a, dtype) and name not in repeated(types)
        }
        for file, cases in records.items()
    }


def manifest_entry(name: str, a: Array, repetitions: dict[str, str]) -> dict[str, Any]:
    """Return what the manifest says of an array: which one it repeats, its formula, its shape if it is not stored."""
    if name in repetitions:
        return {"same": repetitions[name]}
    made_by = formula(a) if name.split(".")[0] in INPUTS else None
    return ({"formula": made_by} if made_by else {}) | ({} if stored(name, a, "float64") else {"shape": a.shape})


def golden_manifest(records: dict) -> str:
    """Return the manifest as JSON, with one line for each array."""
    cases = []
    for file, made in records.items():
        for case, types in made.items():
            repetitions, (arrays, static, zero) = repeated(types), types["float64"]
            entries = {name: manifest_entry(name, a, repetitions) for name, a in arrays.items()}
            lines = [f'   "{name}":{json.dumps(entry, separators=(",", ":"))}' for name, entry in entries.items()]
            parts = [
                f'  "{case}": {{"file": "{file}.safetensors"',
                f'   "static": {json.dumps(static)}',
                f'   "zero": {json.dumps(zero)}',
                '   "arrays": {\n' + ",\n".join(lines) + "}}",
            ]
            cases.append(",\n".join(parts))
    head = {"format": 1, "formula": FORMULA, "tolerances": PORT}
    return f'{json.dumps(head, indent=1)[:-2]},\n "cases": {{\n' + ",\n".join(cases) + "}}\n"


def differences(old: dict[str, Array], new: dict[str, Array], tolerances: dict[str, float] = CURRENT) -> list[str]:
    """Return what differs between two sets of arrays, by name: missing, of another shape or type, or too far away."""
    found = [f"{name}: only in the files" for name in old.keys() - new.keys()]
    found += [f"{name}: not in the files" for name in new.keys() - old.keys()]
    for name in new.keys() & old.keys():
        a, b = old[name], new[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            found.append(f"{name}: {a.dtype} {a.shape} in the files, {b.dtype} {b.shape} now")
        elif not close(a, b, tolerances.get(a.dtype.name, 0)):
            found.append(f"{name}: other values")
    return sorted(found)


def close(a: Array, b: Array, tolerance: float) -> bool:
    """Return whether a and b differ by at most `tolerance` of the largest element; -inf only equals -inf."""
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    finite = np.isfinite(a)
    largest, error = (np.abs(x[finite]).max(initial=0) for x in (a, a - np.where(finite, b, 0)))
    return np.array_equal(a[~finite], b[~finite]) and bool(error <= tolerance * largest)


def check(folder: Path = FOLDER) -> list[str]:
    """Return what differs between the files of `folder` and what the code computes now."""
    records = golden_records()
    tensors, found = golden_tensors(records), []
    present = {path.name for path in folder.glob("*.safetensors")}
    found += [f"{file}: {'missing' if file in tensors else 'unknown'}" for file in present ^ tensors.keys()]
    for file in present & tensors.keys():
        found += differences(load_file(folder / file), tensors[file])
    manifest = folder / MANIFEST
    if not manifest.is_file() or manifest.read_text("utf-8") != golden_manifest(records):
        found.append(f"{MANIFEST}: other text")
    return found


def write(folder: Path = FOLDER) -> None:
    """Write all files."""
    records = golden_records()
    for file, tensors in golden_tensors(records).items():
        (folder / file).write_bytes(save(tensors))
    (folder / MANIFEST).write_text(golden_manifest(records), "utf-8")


def total_size(folder: Path = FOLDER) -> int:
    """Return the bytes of all golden files."""
    return sum(path.stat().st_size for path in (*folder.glob("*.safetensors"), folder / MANIFEST))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write the golden vectors, or check them.")
    parser.add_argument("--check", action="store_true", help="only compare; exit status 1 if they are not current")
    if parser.parse_args().check:
        found = check()
        print("\n".join(found) or "the golden files are current")
        return bool(found)
    write()
    print(f"{total_size()} bytes of at most {LIMIT}")
    return total_size() > LIMIT


if __name__ == "__main__":
    sys.exit(main())
