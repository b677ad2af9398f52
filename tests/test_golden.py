"""Rung 6: today's results equal the golden vectors that ports are checked against, and the vectors are complete."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minihra.adapters.hra import HRAEdit
from minihra.cases import Case, adapter_cases, time_cases
from minihra.model import forward
from minihra.tree import leaves
from tests.golden import make

MANIFEST = json.loads((make.FOLDER / make.MANIFEST).read_text("utf-8"))
LAYERS = {
    make.key(case): case for case in [*adapter_cases(), *(case for case in time_cases() if case.name.startswith("ctc"))]
}


def copied(folder: Path) -> Path:
    for path in (*make.FOLDER.glob("*.safetensors"), make.FOLDER / make.MANIFEST):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_files_are_current() -> None:
    assert make.check() == []


def test_files_are_small() -> None:
    assert make.total_size() < make.LIMIT


def test_every_cell_head_and_ctc_case_is_there() -> None:
    assert MANIFEST["cases"].keys() == {*LAYERS, "hra"}


def names_of(tree: Any, prefix: str) -> set[str]:
    """The names that the files must have: those of every array, but for the parameters that a cache points to."""
    names = {name for name, leaf in leaves(tree, prefix) if isinstance(leaf, np.ndarray)}
    return {name for name in names if not (name.startswith("cache.") and "p" in name.split("."))}


@pytest.mark.parametrize("key", LAYERS)
def test_case_is_complete(key: str) -> None:
    case: Case = LAYERS[key]
    *outputs, cache = case.pair.forward(**case.arguments, **case.constants)
    gradients = case.pair.backward(*outputs, cache)
    gradients = gradients if type(gradients) is tuple else (gradients,)
    about = MANIFEST["cases"][key]
    assert set(about["arrays"]) == {
        *names_of(case.arguments, "arguments"),
        *names_of(dict(case.constants), "constants"),
        *names_of(tuple(outputs), "outputs"),
        *names_of(tuple(outputs), "doutputs"),
        *names_of(cache, "cache"),
        *names_of(dict(zip(case.arguments, gradients, strict=True)), "gradients"),
    }
    absent = names_of(case.arguments, "gradients") - set(about["arrays"])
    assert set(about["zero"]) == absent


def test_whole_hra_has_every_field_that_its_backward_reads() -> None:
    backbone, p, features = make.hra_inputs("float64")
    groups = make.group_tasks(make.TASKS, p.heads)
    edit = HRAEdit(p, "gru", make.STATE, groups, len(make.TASKS), True)
    _, cache = forward(backbone, features, np.array(make.LENGTHS), edit)
    expected = set()
    for l, layer in enumerate(cache.layers):
        place = f"cache.layers.{l}"
        for site, step in zip(make.STEPS, layer.steps, strict=True):
            assert step.dropout is None and step.edit is None
            expected |= names_of(step.branch, f"{place}.{site}")
        expected |= names_of(layer.norm, f"{place}.norm") | names_of(layer.edit.cache.state, f"{place}.hra.state")
        expected |= names_of(layer.edit.cache.heads.heads, f"{place}.hra.heads")
    arrays = MANIFEST["cases"]["hra"]["arrays"]
    assert {name for name in arrays if name.startswith("cache.layers.")} == expected
    assert {name for name in arrays if name.startswith("cache.ctc.")} == {
        f"cache.ctc.{field}" for field in make.CTCCache._fields
    }
    assert {name for name in arrays if name.startswith("gradients.")} == {
        f"gradients.p.{name}" for name, _ in leaves(p) if ".eve." not in name
    }


def pure_python(shape: list[int], k: int, scale: float, offset: float) -> list[float]:
    """The formula of the manifest without NumPy, as a port would write it."""
    size = 1
    for length in shape:
        size *= length
    return [offset + scale * ((2 * ((271 * i * i + 89 * i + 331 * k + 57) % 1009) - 1009) / 1009) for i in range(size)]


def test_formula_gives_the_inputs() -> None:
    """To the bit: those in the files, and those of the backbone, which are not in the files."""
    backbone, _, _ = make.hra_inputs("float64")
    known = {f"constants.backbone.{name}": leaf for name, leaf in leaves(backbone.p)}
    compared = 0
    for case, about in MANIFEST["cases"].items():
        stored = load_file(make.FOLDER / about["file"])
        for name, entry in about["arrays"].items():
            if "formula" in entry:
                a = stored.get(f"{case}/float64/{name}", known.get(name) if case == "hra" else None)
                assert pure_python(entry.get("shape", a.shape), *entry["formula"]) == a.ravel().tolist(), name
                assert entry.get("shape", list(a.shape)) == list(a.shape)
                compared += 1
    assert compared > 150
    assert len(known) == sum(name.startswith("constants.backbone.") for name in MANIFEST["cases"]["hra"]["arrays"])


def test_floating_point_inputs_come_from_the_formula() -> None:
    """But 0 and 1, which stand where nothing is added: there is no input that a port could not make."""
    for case, about in MANIFEST["cases"].items():
        stored = load_file(make.FOLDER / about["file"])
        for name, entry in about["arrays"].items():
            array = stored.get(f"{case}/float64/{name}")
            if name.split(".")[0] in make.INPUTS and (array is None or array.dtype.kind == "f"):
                assert "formula" in entry, f"{case}: {name}"


@pytest.mark.parametrize("file", ["cells", "ctc", "hra"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_changed_value_is_found(file: str, dtype: str, tmp_path: Path) -> None:
    folder = copied(tmp_path)
    arrays = load_file(folder / f"{file}.safetensors")
    name = next(name for name in arrays if f"/{dtype}/gradients." in name)
    changed = arrays[name].copy()
    changed.flat[np.abs(changed).argmax()] *= 1 + {"float64": 1e-12, "float32": 1e-5}[dtype]
    save_file({**arrays, name: changed}, folder / f"{file}.safetensors")
    assert make.check(folder) == [f"{name}: other values"]


def test_what_is_missing_or_unknown_is_found(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    arrays = load_file(folder / "cells.safetensors")
    gone = next(iter(arrays))
    other = {("gru/float64/other" if name == gone else name): a for name, a in arrays.items()}
    save_file(other, folder / "cells.safetensors")
    (folder / "ctc.safetensors").rename(folder / "extra.safetensors")
    (folder / make.MANIFEST).write_text("{}", "utf-8")
    assert sorted(make.check(folder)) == sorted(
        [
            "ctc.safetensors: missing",
            "extra.safetensors: unknown",
            "gru/float64/other: only in the files",
            f"{gone}: not in the files",
            f"{make.MANIFEST}: other text",
        ]
    )


def test_infinities_must_be_the_same() -> None:
    a = np.array([1.0, -np.inf])
    assert make.close(a, a.copy(), 1e-13)
    assert not make.close(a, np.array([1.0, 5.0]), 1e-13)
    assert not make.close(np.array([1.0, 5.0]), a, 1e-13)
    assert not make.close(a, np.array([np.nan, -np.inf]), 1e-13)


def test_steps_stand_before_the_outputs_that_they_lead_to() -> None:
    """So that the first wrong array of a port names the step, and not the end."""
    for case, about in MANIFEST["cases"].items():
        order = [name.split(".")[0] for name in about["arrays"]]
        steps = [i for i, part in enumerate(order) if part in ("cache", "trace")]
        assert max(steps) < order.index("outputs") < order.index("gradients"), case
