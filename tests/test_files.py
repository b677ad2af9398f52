"""Adapters on disk: what comes back, what is refused, and that a failure leaves everything as it was."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from minihra.adapters.files import controller_hash, load_adapter, load_task, save_adapter, save_task
from minihra.adapters.hra import HRA
from minihra.adapters.parts import CELLS, HEADS
from minihra.tree import map_leaves
from tests.tiny import bits, new_hra, trained_hra

NAMES = ("a.b", "50%", "%2E", "two words", " ", "Жук, 甲虫", "line\nbreak", "tab\there", "a\u2028b", '"quoted"', "a,b")


def twin_of(hra: HRA, tasks: tuple[str, ...] = (), **changes: object) -> HRA:
    """Another HRA with the same controller."""
    sizes = {"cell": hra.cell, "head": hra.head, "dtype": hra.dtype}
    sizes |= {"bottleneck": hra.bottleneck} if hra.head == "ffn" else {}
    twin = HRA(hra.width, hra.state_size, **{**sizes, **changes})
    twin.p = twin.p._replace(controller=map_leaves(np.copy, hra.p.controller))
    for task in tasks:
        twin.add_task(task)
    return twin


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "numpy") as file:
        return file.metadata()


def next_head(hra: HRA) -> dict[str, bytes]:
    """The head that the next task would get: it shows whether the random numbers of `hra` have moved."""
    hra.add_task("the next")
    head = bits(hra.p.heads["the next"])
    hra.remove_task("the next")
    return head


def refused(load: Callable[[], object], path: Path, *parts: str, error: type[Exception] = ValueError) -> None:
    """Check that `load` fails with one line that names the file and says each of `parts`."""
    with pytest.raises(error) as caught:
        load()
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    assert all(part in message for part in parts), message
    assert type(caught.value) is error


# What comes back


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("head", HEADS)
def test_an_adapter_comes_back_to_the_bit(cell: str, head: str, dtype: type, tmp_path: Path) -> None:
    hra, path = trained_hra(cell, head, dtype=dtype), tmp_path / "hra.safetensors"
    save_adapter(hra, path)
    again = load_adapter(str(path))
    for fact in ("cell", "head", "width", "state_size", "bottleneck", "dtype", "task_names"):
        assert getattr(again, fact) == getattr(hra, fact)
    assert bits(again.p) == bits(hra.p)
    assert all(leaf.flags.writeable for leaf in again.p.controller)
    again.add_task("zoe")


@pytest.mark.parametrize("head", HEADS)
def test_a_task_comes_back_to_the_bit_in_a_small_file(head: str, tmp_path: Path) -> None:
    hra, path = trained_hra(head=head), tmp_path / "bob.safetensors"
    save_task(hra, "bob", path)
    twin = twin_of(hra, ("ann",))
    assert load_task(twin, path) == "bob"
    assert twin.task_names == ("ann", "bob")
    assert bits(twin.p.heads["bob"]) == bits(hra.p.heads["bob"])
    size = sum(map(len, bits(hra.p.heads["bob"]).values()))
    assert size < path.stat().st_size < size + 1000
    assert metadata_of(path)["controller_sha256"] == controller_hash(hra.cell, hra.p.controller)


def test_a_task_comes_back_under_another_name(tmp_path: Path) -> None:
    hra, path = trained_hra(), tmp_path / "bob.safetensors"
    save_task(hra, "bob", path)
    assert load_task(hra, path, "robert") == "robert"
    assert bits(hra.p.heads["robert"]) == bits(hra.p.heads["bob"])


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_task_comes_back(name: str, tmp_path: Path) -> None:
    hra, path = new_hra(tasks=(name,)), tmp_path / "task"
    save_task(hra, name, path)
    twin = twin_of(hra)
    assert load_task(twin, path) == name
    assert twin.task_names == (name,)


def test_any_names_come_back_with_an_adapter(tmp_path: Path) -> None:
    hra, path = new_hra(tasks=NAMES), tmp_path / "hra"
    for n, name in enumerate(NAMES):
        hra.p.heads[name].b[:] = n
    save_adapter(hra, path)
    again = load_adapter(path)
    assert again.task_names == NAMES
    assert bits(again.p) == bits(hra.p)


def test_an_adapter_without_tasks_comes_back(tmp_path: Path) -> None:
    save_adapter(new_hra(tasks=()), tmp_path / "hra")
    assert load_adapter(tmp_path / "hra").task_names == ()


def test_strided_parameters_are_written_as_they_read(tmp_path: Path) -> None:
    hra, path = trained_hra(), tmp_path / "hra"
    hra.p = map_leaves(lambda leaf: np.repeat(leaf, 2, axis=-1)[..., ::2], hra.p)
    save_adapter(hra, path)
    assert bits(load_adapter(path).p) == bits(hra.p)


# The hash of a controller


def test_the_hash_tells_controllers_apart() -> None:
    controller = new_hra("indrnn").p.controller
    flipped = controller.b.copy()
    flipped[0] = np.nextafter(flipped[0], np.float32(1))
    others = [
        controller._replace(b=flipped),
        controller._replace(b=-controller.b),  # -0.0 is not 0.0 to the bit
        controller._replace(u=controller.b, b=controller.u),
        controller._replace(W=controller.W.reshape(controller.W.shape[::-1])),
        map_leaves(np.float64, controller),
        map_leaves(lambda leaf: leaf.view(np.int32), controller),  # the same bytes, read otherwise
    ]
    hashes = {controller_hash("indrnn", c) for c in (controller, *others)} | {controller_hash("rnn", controller)}
    assert len(hashes) == len(others) + 2
    assert controller_hash("indrnn", map_leaves(np.copy, controller)) == controller_hash("indrnn", controller)


def test_a_head_of_another_controller_is_refused_with_both_hashes(tmp_path: Path) -> None:
    ours, theirs, path = new_hra(seed=1), new_hra(seed=2), tmp_path / "bob"
    save_task(theirs, "bob", path)
    hashes = [controller_hash(hra.cell, hra.p.controller) for hra in (ours, theirs)]
    refused(lambda: load_task(ours, path, "zoe"), path, *hashes)
    assert "zoe" not in ours.task_names


# What is refused


def written(kind: str, hra: HRA, path: Path) -> Callable[[], object]:
    """Write a file of this kind; return a call that loads it into an adapter with the same controller."""
    if kind == "adapter":
        save_adapter(hra, path)
        return lambda: load_adapter(path)
    save_task(hra, "bob", path)
    return lambda: load_task(twin_of(hra), path)


both_kinds = pytest.mark.parametrize("kind", ["adapter", "task"])


@both_kinds
def test_a_folder_is_no_file(kind: str, tmp_path: Path) -> None:
    load = written(kind, new_hra(), tmp_path / "bob")
    (tmp_path / "bob").unlink()
    (tmp_path / "bob").mkdir()
    with pytest.raises(FileNotFoundError, match="bob: a folder, not a file"):
        load()


@both_kinds
def test_a_folder_that_is_missing_is_named(kind: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"bob: there is no folder .*nowhere$"):
        written(kind, new_hra(), tmp_path / "nowhere" / "bob")


@both_kinds
def test_a_missing_file_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bob"
    load = written(kind, new_hra(), path)
    path.unlink()
    refused(load, path, error=FileNotFoundError)


@both_kinds
@pytest.mark.parametrize(
    "damage",
    [lambda whole: whole[:-10], lambda whole: whole[:100], lambda whole: b"", lambda whole: b"a note\n" * 200],
    ids=["truncated", "cut in its header", "empty", "another file"],
)
def test_a_damaged_file_is_refused(kind: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "bob"
    load = written(kind, new_hra(), path)
    path.write_bytes(damage(path.read_bytes()))
    refused(load, path)


def test_each_kind_of_file_is_refused_for_the_other(tmp_path: Path) -> None:
    hra, adapter, task = new_hra(), tmp_path / "hra", tmp_path / "bob"
    save_adapter(hra, adapter), save_task(hra, "bob", task)
    refused(lambda: load_task(twin_of(hra), adapter), adapter, "'hra-task'", "'hra'")
    refused(lambda: load_adapter(task), task, "'hra-task'", "'hra'")


@both_kinds
def test_another_safetensors_file_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bob"
    load = written(kind, new_hra(), path)
    save_file(load_file(path), path)
    refused(load, path, "None")


@both_kinds
@pytest.mark.parametrize("key", [None, "cell", "head", "width", "state_size", "bottleneck", "dtype", "format"])
def test_missing_metadata_are_named(kind: str, key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "bob"
    load = written(kind, new_hra(), path)
    metadata, key = metadata_of(path), key or {"adapter": "tasks", "task": "task"}[kind]
    del metadata[key]
    save_file(load_file(path), path, metadata)
    refused(load, path, key)


DAMAGES = [
    ("format", "2"),
    ("kind", "lora"),
    ("cell", "lstm"),
    ("head", "cubic"),
    ("head", "linear"),
    ("width", "-1"),
    ("width", "9"),
    ("width", "1000000000000"),  # there is no memory for such a controller: it must not be allocated
    ("state_size", "0"),
    ("state_size", "six"),
    ("bottleneck", "x"),
    ("bottleneck", "0"),
    ("bottleneck", "4"),
    ("dtype", "float99"),
    ("dtype", "float64"),
    ("dtype", "U7"),
]


OTHER_TASKS = (
    "",
    "ann",
    "ann ann eve",
    "base",
    '["ann"]',
    '["ann", "ann", "eve"]',
    '["base"]',
    '["ann", 1]',
    "3",
    '{"',
)


@pytest.mark.parametrize(("key", "value"), [*DAMAGES, *(("tasks", tasks) for tasks in OTHER_TASKS)])
def test_damaged_metadata_of_an_adapter_are_refused(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "hra"
    load = written("adapter", trained_hra(head="ffn"), path)
    save_file(load_file(path), path, metadata_of(path) | {key: value})
    refused(load, path)


@pytest.mark.parametrize(("key", "value"), [("format", "2"), ("kind", "lora"), ("task", "base"), ("task", "")])
def test_damaged_metadata_of_a_task_are_refused(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "bob"
    load = written("task", trained_hra(head="ffn"), path)
    save_file(load_file(path), path, metadata_of(path) | {key: value})
    refused(load, path)


@both_kinds
@pytest.mark.parametrize("change", ["extra", "missing", "shape", "dtype"])
def test_other_tensors_than_the_sizes_ask_for_are_refused(kind: str, change: str, tmp_path: Path) -> None:
    path = tmp_path / "bob"
    load = written(kind, new_hra(), path)
    metadata, tensors = metadata_of(path), load_file(path)
    name = next(name for name in tensors if name.endswith("W"))
    match change:
        case "extra":
            name = "heads.zoe"
            tensors[f"{name}\nand more.W"] = np.zeros(3, np.float32)  # the message is one line nevertheless
        case "missing":
            del tensors[name]
        case "shape":
            tensors[name] = tensors[name].T.copy()
        case "dtype":
            tensors[name] = tensors[name].astype(np.float16)
    save_file(tensors, path, metadata)
    refused(load, path, name)


@pytest.mark.parametrize(
    ("saved", "into"),
    [
        ({"head": "ffn"}, {"head": "linear", "bottleneck": None}),
        ({"head": "linear"}, {"head": "ffn", "bottleneck": 5}),
        ({"head": "ffn"}, {"bottleneck": 4}),
    ],
)
def test_a_head_of_another_kind_or_size_is_refused(saved: dict, into: dict, tmp_path: Path) -> None:
    hra, path = trained_hra(**saved), tmp_path / "bob"
    save_task(hra, "bob", path)
    twin = twin_of(hra, ("ann",), **into)
    before = bits(twin.p)
    refused(lambda: load_task(twin, path), path)
    assert bits(twin.p) == before


@pytest.mark.parametrize(
    ("name", "part"), [(None, "'bob' exists already"), ("ann", "'ann' exists already"), ("base", "'base'"), ("", "''")]
)
def test_a_name_that_the_task_cannot_have_is_refused(name: str | None, part: str, tmp_path: Path) -> None:
    hra, path = trained_hra(), tmp_path / "bob"
    save_task(hra, "bob", path)
    before = bits(hra.p)
    refused(lambda: load_task(hra, path, name), path, part)
    assert bits(hra.p) == before


def test_a_failed_load_changes_nothing_not_even_the_next_random_head(tmp_path: Path) -> None:
    hra, path = trained_hra(head="ffn"), tmp_path / "bob"
    save_task(hra, "bob", path)
    save_file({"W": np.zeros(3, np.float32)}, path, metadata_of(path))
    untouched, twin = twin_of(hra, ("ann",)), twin_of(hra, ("ann",))
    refused(lambda: load_task(twin, path), path)
    assert bits(twin.p) == bits(untouched.p) and twin.task_names == ("ann",)
    assert next_head(twin) == next_head(untouched)


def test_saving_an_unknown_task_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown task 'zoe'; known: ann, bob, eve"):
        save_task(new_hra(), "zoe", tmp_path / "zoe")
    assert list(tmp_path.iterdir()) == []


# Writing


@both_kinds
@pytest.mark.parametrize("broken", ["replace", "write"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    kind: str, broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bob"
    written(kind, new_hra(seed=1), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    def half_a_write(file: Path, content: bytes) -> None:
        with file.open("wb") as out:
            out.write(content[: len(content) // 2])
        fail()

    if broken == "replace":
        monkeypatch.setattr(os, "replace", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", half_a_write)
    with pytest.raises(OSError, match="the disk is full"):
        written(kind, new_hra(seed=2), path)
    assert [file.name for file in tmp_path.iterdir()] == ["bob"]
    assert path.read_bytes() == before


def test_writing_replaces_a_file(tmp_path: Path) -> None:
    hra, path = trained_hra(), tmp_path / "hra"
    save_adapter(new_hra(), path), save_adapter(hra, path)
    assert bits(load_adapter(path).p) == bits(hra.p)
    assert [file.name for file in tmp_path.iterdir()] == ["hra"]
