"""Steps as CUDA graphs: a recording of what stand-ins compute takes the graph's place, and refuses what one refuses.

What a recorded step computes again must depend on its inputs alone: on their numbers, and on no number, address or task
of the batch that it was recorded with.
"""

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minihra.arrays import uploaded
from minihra.blocks.self_attention import position_table
from minihra.graphs import MOST, multiple_for, padded, slots_of
from minihra.kernels.cuda import capture
from minihra.optim import AdamW
from minihra.recogniser import Adapter, Recogniser
from minihra.trainees import Adaptation, Batch
from minihra.tree import Tree, leaves, map_leaves
from tests import standin
from tests.cuda_twins import gpu_of_stand_ins
from tests.tiny import ALL_TASKS, CONFIG, frozen_backbone, trained_hra

recordings: list["Recording"] = []


class Recording:
    """In the place of capture.Captured."""

    def __init__(self, step: Callable[[], Tree]) -> None:
        step()
        self.steps: list[Callable[[], None]] = []
        with standin.recorded(self.steps):
            self.outputs = step()
        for _, leaf in leaves(self.outputs):  # a recording of CUDA computes nothing yet
            leaf.hidden[...] = 0
        self.launches = 0
        recordings.append(self)

    def launch(self) -> None:
        self.launches += 1
        for step in self.steps:
            step()


@pytest.fixture(autouse=True)
def xp(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(capture, "Recorder", lambda: SimpleNamespace(record=Recording))
    recordings.clear()
    with gpu_of_stand_ins() as module:
        yield module


def trainee_of(xp: ModuleType, graph: bool, cell: str = "gru", head: str = "linear", **how: Any) -> Adaptation:
    recogniser = Recogniser(frozen_backbone(), None, SimpleNamespace(blank=0)).moved(xp)
    return Adaptation(recogniser, Adapter(trained_hra(cell, head), "speaker", ""), graph=graph, **how)


def batch_of(seed: int, tasks: Sequence[str], frames: int = 60) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(frames // 2, frames, len(tasks))
    lengths[0] = frames
    features = rng.standard_normal((len(tasks), frames, CONFIG.mels), np.float32)
    labels = [rng.integers(1, CONFIG.labels, rng.integers(1, 4)).tolist() for _ in tasks]
    return Batch(features, lengths, labels, tasks)


def host(tree: Tree) -> Tree:
    return map_leaves(lambda leaf: leaf.hidden.copy(), tree)


def assert_near(found: Tree, wanted: Tree) -> None:
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for name, b in wanted.items():
        assert np.abs(found[name].astype(float) - b).max(initial=0) <= 1e-5 * np.abs(b).max(initial=1e-3), name


BATCHES = [  # of one shape: rows of other tasks, in another order, and fewer tasks
    ["ann", "bob", "eve", "ann"],
    ["bob", "bob", "ann", "eve"],
    ["eve", "eve", "eve", "eve"],
    ["bob", "ann", "bob", "ann"],
]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn")])
def test_a_graph_computes_every_batch_of_its_shape(cell: str, head: str, recompute: bool, xp: ModuleType) -> None:
    """With the parameters moving from step to step, and utterances that end elsewhere."""
    plain, graph = (trainee_of(xp, graph, cell, head, recompute=recompute) for graph in (False, True))
    optimisers = AdamW(), AdamW()
    for step in range(8):
        batch = batch_of(step, BATCHES[step % 4], frames=63 - 3 * (step % 3))
        results = []
        for trainee, optimiser in zip((plain, graph), optimisers, strict=True):
            loss, gradients = trainee.gradients(batch, None)
            results.append(host((loss, gradients)))
            optimiser.update(trainee.parameters, gradients, 1e-2)
        assert_near(results[1], results[0])
        assert_near(host(graph.parameters), host(plain.parameters))
    assert [recording.launches for recording in recordings] == [7]
    ((_, kept),) = graph.graphs._recorded.values()
    backbone = graph.recogniser.model
    table = position_table(16, backbone.config.width, backbone.config.form.attention, np.dtype(np.float32), xp)
    assert kept.positions is table  # or the graph would read memory that somebody else has got


def test_rows_without_a_task(xp: ModuleType) -> None:
    plain, graph = trainee_of(xp, False), trainee_of(xp, True)
    for step, tasks in enumerate((["base", "ann", "bob"], ["eve", "base", "eve"], ["bob", "ann", "base"]), start=3):
        batch = batch_of(step, tasks)
        assert_near(host(graph.gradients(batch, None)), host(plain.gradients(batch, None)))
    assert [recording.launches for recording in recordings] == [2]
    assert graph.graphs.gradients(*batch_of(9, ["base", "base"])) is None


def test_each_shape_has_a_graph_from_its_second_batch_on(xp: ModuleType) -> None:
    trainee = trainee_of(xp, True)
    for frames, rows in ((60, 3), (30, 3), (60, 3), (60, 2), (64, 3), (60, 2)):
        trainee.gradients(batch_of(0, ["ann", "bob", "eve"][:rows], frames), None)
    assert [recording.launches for recording in recordings] == [2, 1]
    assert MOST > 2


def test_new_parameters_have_new_graphs(xp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    trainee, batch = trainee_of(xp, True), batch_of(0, ["ann", "bob"])
    for _ in range(2):
        trainee.gradients(batch, None)
    other = trained_hra()
    other.p = map_leaves(lambda leaf: leaf + leaf, other.p)
    monkeypatch.setattr("minihra.trainees.load_hra", lambda *_: Adapter(other, "speaker", ""))
    trainee.load(None)
    found = host(trainee.gradients(batch, None))
    plain = trainee_of(xp, False)
    plain.load(None)
    assert_near(found, host(plain.gradients(batch, None)))


def test_without_a_graph_it_goes_on(
    xp: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, and the gradients are those of a step without one."""

    def fail(*_: Any) -> None:
        raise NotImplementedError("a product that cannot be recorded")

    monkeypatch.setattr(capture, "Recorder", lambda: SimpleNamespace(record=fail))
    trainee, plain = trainee_of(xp, True), trainee_of(xp, False)
    for step in range(4):
        batch = batch_of(step, ["ann", "bob"])
        assert_near(host(trainee.gradients(batch, None)), host(plain.gradients(batch, None)))
    said = capsys.readouterr().err
    assert said == "minihra: from here on steps run without new CUDA graphs (a product that cannot be recorded)\n"


def test_an_upload_or_a_download_cannot_be_recorded(xp: ModuleType) -> None:
    x = xp.asarray(np.ones(3))
    for mistake in (lambda: xp.asarray([1.0]), lambda: xp.asnumpy(x), lambda: xp.concatenate([x, x])):
        with standin.recorded([]), pytest.raises(RuntimeError, match="while a graph is recorded"):
            mistake()


def test_slots_and_padding() -> None:
    heads = {task: object() for task in ALL_TASKS}
    named, segments = slots_of((("eve", 0, 2), ("ann", 2, 5)), 3, heads)
    assert named == {"0": heads["eve"], "1": heads["ann"], "2": heads["eve"]}
    assert segments == (("0", 0, 2), ("1", 2, 5), ("2", 5, 5))
    assert padded(np.ones((2, 5, 3)), 4).shape == (2, 8, 3) and padded(np.ones((2, 5)), 4).sum() == 10
    assert padded(np.ones((2, 5)), 4, least=9).shape == (2, 12)
    assert padded(np.ones((2, 8)), 4).shape == (2, 8) and padded(np.ones((2, 0)), 4).shape == (2, 0)
    wanted = {0: 8, 1: 8, 200: 8, 255: 8, 256: 16, 400: 16, 511: 16, 512: 32, 800: 32}
    assert {frames: multiple_for(frames) for frames in wanted} == wanted


def test_arrays_go_together() -> None:
    """Of all types, without elements, and as they lie."""
    arrays = [np.arange(3), np.zeros((0, 3), np.int32), np.ones((2, 5), bool), np.arange(8.0).reshape(2, 4).T]
    packed, views = uploaded(arrays, np)
    for a, view in zip(arrays, views, strict=True):
        assert view.dtype == a.dtype and view.shape == a.shape and view.tobytes() == a.tobytes()
        assert not a.size or (np.shares_memory(view, packed) and not np.shares_memory(view, a))
    packed[...] = 0
    assert not any(view.any() for view in views)


class FakeCuda:
    """As much of cupy.cuda as a recorder uses; `done` notes what is done, in its order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.allocator: Callable[[int], Any] | None = None
        self.Memory = lambda size: SimpleNamespace(size=size)
        self.MemoryPointer = lambda memory, offset: memory

    def MemoryPool(self, allocator: Callable[[int], Any]) -> SimpleNamespace:
        return SimpleNamespace(malloc=allocator)

    def Stream(self, non_blocking: bool) -> "FakeCuda":
        assert non_blocking
        return self

    get_current_stream = lambda self: self  # noqa: E731

    def synchronize(self) -> None:
        self.done.append("wait")

    def begin_capture(self) -> None:
        self.done.append("begin")

    def end_capture(self) -> SimpleNamespace:
        self.done.append("end")
        return SimpleNamespace(launch=lambda: self.done.append("launch"))

    def __enter__(self) -> None:
        self.done.append("on the stream")

    def __exit__(self, *_: object) -> None:
        self.done.append("off it")

    @contextmanager
    def using_allocator(self, allocator: Callable[[int], Any]) -> Iterator[None]:
        self.allocator = allocator
        yield
        self.allocator = None


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.undo()  # of the recorder that the other tests have
    cuda = FakeCuda()
    pool = SimpleNamespace(free_all_blocks=lambda: cuda.done.append("free"))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool))
    monkeypatch.setattr(capture.Recorder, "recorders", [])
    return cuda


def test_a_step_runs_once_before_it_is_recorded(cuda: FakeCuda) -> None:
    def step() -> str:
        assert cuda.allocator(100).size == 100
        cuda.done.append("step")
        return "outputs"

    recorder = capture.Recorder()
    captured = recorder.record(step)
    assert captured.outputs == "outputs"
    recorded = ["on the stream", "step", "wait", "begin", "step", "end", "off it"]
    assert cuda.done == ["wait", "free", *recorded]
    captured.launch()
    assert cuda.done[-1] == "launch" and cuda.allocator is None
    assert capture.bytes_held() == 200  # which no pool can give back
    recorder.record(step)
    assert capture.bytes_held() == 400


def test_what_a_recorded_step_reads_lives_as_long(cuda: FakeCuda) -> None:
    def recorded() -> tuple[capture.Captured, weakref.ref]:
        x = np.zeros(3)
        return capture.Recorder().record(lambda: x.size), weakref.ref(x)

    captured, x = recorded()
    assert x() is not None
    del captured
    gc.collect()
    assert x() is None


def test_a_recording_that_fails_is_ended(cuda: FakeCuda) -> None:
    def step() -> None:
        if "begin" in cuda.done:
            raise NotImplementedError("cuBLAS")

    with pytest.raises(NotImplementedError, match="cuBLAS"):
        capture.Recorder().record(step)
    assert cuda.done[-2:] == ["end", "off it"]
