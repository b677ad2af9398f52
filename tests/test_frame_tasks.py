"""Tasks of ranges of frames: each frame gets what it would get in a row of its task, and nothing where it has none."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minihra.adapters.controller import group_frames
from minihra.adapters.hra import HRA
from minihra.adapters.parts import CELLS, HEADS
from minihra.arrays import Array
from minihra.cases import numbers
from minihra.device import to_host
from minihra.model import backward, ctc_loss, forward
from minihra.ops import references
from minihra.recogniser import edit_of
from minihra.tree import Tree, add, leaves
from tests.test_twins import assert_same
from tests.tiny import CONFIG, batch, frozen_backbone, trained_hra

T = 7
TASKS = ("bob", [("ann", 0, 3), ("bob", 3, 7)], [("eve", 4, 6), ("ann", 1, 2)], "base", [("base", 0, 2), ("ann", 6, 7)])
OF_FRAMES = [  # the same, frame by frame
    ["bob"] * 7,
    ["ann"] * 3 + ["bob"] * 4,
    ["base", "ann", "base", "base", "eve", "eve", "base"],
    ["base"] * 7,
    ["base"] * 6 + ["ann"],
]


def whether(task: str, dtype: type) -> Array:
    """(B, T, 1)  1 where a frame is of a task."""
    return np.array([[of_frame == task for of_frame in row] for row in OF_FRAMES], dtype)[..., None]


def two_layers(hra: HRA, tasks: Any, frames: int | None, dus: list[Array], xp: ModuleType = np, **how: Any) -> Tree:
    """u of two layers, the gradients of the parameters and those of both x."""
    edit, carry, us, caches = hra.edit(tasks, frames=frames, **how), None, [], []
    for l in range(2):
        x = xp.asarray(numbers(5, T, CONFIG.width, k=l).astype(hra.dtype))
        u, carry, cache = edit.forward("block", l, x, None, carry)
        us.append(u)
        caches.append(cache)
    total, dcarry, dxs = None, None, []
    for l in (1, 0):
        dx, _, dcarry, dp = edit.backward("block", l, xp.asarray(dus[l]), dcarry, caches[l])
        total = add(total, dp)
        dxs.append(dx)
    return tuple(us), total, tuple(dxs)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("cell", CELLS)
def test_frames_are_as_in_rows_of_their_task(cell: str, head: str, dtype: type) -> None:
    """And gradients are the sums over the tasks, of rows in which the frames of others are asked for nothing."""
    hra = trained_hra(cell, head, dtype=dtype)
    dus = [numbers(5, T, CONFIG.width, k=7 + l).astype(dtype) for l in range(2)]
    found, wanted = two_layers(hra, TASKS, T, dus), None
    for task in ("ann", "bob", "eve"):
        its = whether(task, dtype)
        us, gradients, dxs = two_layers(hra, [task] * 5, None, [du * its for du in dus])
        wanted = add(wanted, (tuple(u * its for u in us), gradients, dxs))
    assert_same(found, wanted, dtype)
    for u in found[0]:
        assert (u[whether("base", bool)[..., 0]] == 0).all()


def loss_and_gradients(hra: HRA, tasks: Any, frames: int | None, dtype: type = np.float64) -> tuple[float, Tree]:
    given, backbone = batch(dtype), frozen_backbone(dtype)
    logits, cache = forward(backbone, given.features, given.lengths, hra.edit(tasks, frames=frames))
    loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
    return loss.mean, backward(dlogits, cache).adapter


FRAMES = CONFIG.front_end.frames(batch().features.shape[1])
RANGES = ([("ann", 0, 2), ("bob", 2, FRAMES)], "eve", [("bob", 1, 3)], "base", [("eve", 0, 1), ("ann", 1, FRAMES)])


def test_gradients_are_derivatives_of_the_loss() -> None:
    """Of the whole model, by differences in some elements of each parameter."""
    hra = trained_hra(dtype=np.float64)
    _, gradients = loss_and_gradients(hra, RANGES, FRAMES)
    named = dict(leaves(gradients))
    assert {name.split(".")[1] for name in named if name.startswith("heads")} == {"ann", "bob", "eve"}
    for name, p in leaves(hra.p):
        for place in {0, p.size // 2, p.size - 1}:
            flat, losses = p.reshape(-1), []
            for change in (1e-6, -1e-6):
                before = flat[place]
                flat[place] += change
                losses.append(loss_and_gradients(hra, RANGES, FRAMES)[0])
                flat[place] = before
            assert abs((losses[0] - losses[1]) / 2e-6 - named[name].reshape(-1)[place]) < 1e-6, name


def test_a_range_of_all_frames_is_a_row() -> None:
    hra, tasks = trained_hra(dtype=np.float64), ("ann", "eve", "base", "bob", "ann")
    ranges = [[(task, 0, FRAMES)] for task in tasks]
    wanted = loss_and_gradients(hra, tasks, None)
    for given in (ranges, tasks, (*ranges[:2], *tasks[2:])):
        found = loss_and_gradients(hra, given, FRAMES)
        assert_same((np.array(found[0]), found[1]), (np.array(wanted[0]), wanted[1]), np.float64)


def test_twins_compute_the_references() -> None:
    hra = trained_hra(dtype=np.float32)
    found = loss_and_gradients(hra, RANGES, FRAMES, np.float32)
    with references():
        wanted = loss_and_gradients(hra, RANGES, FRAMES, np.float32)
    assert_same((np.array(found[0]), found[1]), (np.array(wanted[0]), wanted[1]), np.float32)


def test_on_a_gpu_it_is_the_same() -> None:
    cuda_twins = pytest.importorskip("tests.cuda_twins")
    dus = [numbers(5, T, CONFIG.width, k=7 + l).astype(np.float32) for l in range(2)]
    wanted = two_layers(trained_hra(dtype=np.float32), TASKS, T, dus)
    with cuda_twins.gpu_of_stand_ins(threads=64) as xp:
        hra = trained_hra(dtype=np.float32)
        hra.move(xp)
        found = to_host(two_layers(hra, TASKS, T, dus, xp))
    assert_same(found, wanted, np.float32)


@pytest.mark.parametrize(("lengths", "gathered"), [((6, 6, 6, 7, 5), True), ((6, 7, 6, 7, 5), False)])
def test_frames_of_padding_are_left_out_where_they_are_many(lengths: tuple[int, ...], gathered: bool) -> None:
    """From an eighth on: 5 of 35, and not 4. What is real gets the same, as do gradients without those of padding."""
    hra, tasks = trained_hra(dtype=np.float64), ("bob", "ann", "base", "bob", "eve")
    real = (np.arange(T) < np.array(lengths)[:, None])[..., None]
    dus = [numbers(5, T, CONFIG.width, k=7 + l) * real for l in range(2)]
    us, *wanted = two_layers(hra, tasks, None, dus)
    found_us, *found = two_layers(hra, tasks, T, dus, lengths=lengths)
    assert_same((tuple(u * real for u in found_us), *found), (tuple(u * real for u in us), *wanted), np.float64)
    assert [(u * ~real).any() for u in found_us] == [not gathered] * 2
    edit = hra.edit(tasks, frames=T, lengths=lengths)
    assert edit.groups.count(T) == (6 + 6 + 7 + 5 if gathered else 4 * T)


def test_a_step_without_padded_frames_is_the_same() -> None:
    """The loss and its gradients, of utterances of which nearly half is padding, one of them empty."""
    given, backbone, hra = batch(np.float64), frozen_backbone(np.float64), trained_hra(dtype=np.float64)
    tasks = ("ann", "bob", "ann", "base", "bob")
    edit, outcomes = edit_of(backbone, hra, given.features, given.lengths, tasks), []
    assert edit.frames == FRAMES and edit.groups.count(FRAMES) < 4 * FRAMES
    for one in (edit, hra.edit(tasks)):
        logits, cache = forward(backbone, given.features, given.lengths, one)
        loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
        outcomes.append((np.where(cache.context.valid[..., None], logits, 0), backward(dlogits, cache).adapter, loss))
    assert_same(*outcomes, np.float64)


def test_an_eighth_of_padding_is_many() -> None:
    hra = trained_hra()
    counts = [hra.edit(["ann", "bob"], frames=8, lengths=[8, n]).groups.count(8) for n in (5, 6, 7, 8)]
    assert counts == [13, 14, 16, 16]


def test_rows_without_frames_have_a_task() -> None:
    hra = trained_hra()
    assert hra.edit(["ann", "bob"], frames=4, lengths=[4, 0]).groups.segments == (("ann", 0, 4),)
    assert hra.edit(["ann", "bob"], frames=4, lengths=[0, 0]).groups.segments == (("ann", 0, 1), ("bob", 1, 2))
    with pytest.raises(ValueError, match="row 1: unknown task 'zoe'"):
        hra.edit(["ann", "zoe"], frames=4, lengths=[4, 0])
    with pytest.raises(ValueError, match="2 tasks were given for a batch of 3 rows"):
        hra.edit(["ann", "bob"], frames=4, lengths=[4, 0, 1])
    for tasks, frames in ((["ann"], None), ([[("ann", 0, 2)]], 4)):
        with pytest.raises(ValueError, match="`lengths` need `frames`"):
            hra.edit(tasks, frames=frames, lengths=[4])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([[("zoe", 0, 2)]], "row 0: unknown task 'zoe'; known: base, ann, bob, eve"),
        (["base", "zoe"], "row 1: unknown task 'zoe'; known: base, ann, bob, eve"),
        ([[("ann", 0, 8)]], "row 0: frames 0 to 8 of 'ann': ranges are of the frames 0 to 7 and do not overlap"),
        ([[("ann", -1, 2)]], "row 0: frames -1 to 2 of 'ann': ranges"),
        ([[("ann", 2, 2)]], "row 0: frames 2 to 2 of 'ann': ranges"),
        (["bob", [("ann", 3, 5), ("bob", 0, 4)]], "row 1: frames 3 to 5 of 'ann': ranges"),
    ],
)
def test_ranges_that_cannot_be_are_told(tasks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        trained_hra().edit(tasks, frames=T)


def test_frames_must_be_known_and_those_of_the_layers() -> None:
    with pytest.raises(ValueError, match="tasks of ranges of frames need `frames`"):
        trained_hra().edit(["ann", [("ann", 0, 2)]])
    edit = trained_hra().edit(TASKS, frames=T)
    with pytest.raises(ValueError, match="tasks were given for rows of 7 frames, but layer 3 has 8"):
        edit.forward("block", 2, numbers(5, 8, CONFIG.width), None, None)
    assert trained_hra().edit([[("base", 0, 7)], [], "base"], frames=T) is None


def test_frames_stand_by_task_in_the_order_of_first_appearance() -> None:
    (rows, frames), segments, in_order = group_frames(TASKS, ("ann", "bob", "eve"), T)
    assert segments == (("bob", 0, 11), ("ann", 11, 16), ("eve", 16, 18)) and not in_order
    assert list(zip(rows.tolist(), frames.tolist(), strict=True))[7:] == [
        (1, 3), (1, 4), (1, 5), (1, 6), (1, 0), (1, 1), (1, 2), (2, 1), (4, 6), (2, 4), (2, 5),
    ]  # fmt: skip
