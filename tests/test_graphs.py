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

from minihra.arrays import packed, unpacked
from minihra.blocks.self_attention import position_table
from minihra.evaluate import infer_parts
from minihra.graphs import MOST, InferenceGraphs, multiple_for, padded, slots_of
from minihra.kernels.cuda import capture
from minihra.model_cases import frames_for
from minihra.open_cases import OPEN
from minihra.ops import references
from minihra.optim import AdamW
from minihra.recogniser import Adapter, Recogniser
from minihra.trainees import Adaptation, Batch, Pretraining
from minihra.tree import Tree, leaves, map_leaves
from tests import standin
from tests.cuda_twins import gpu_of_stand_ins
from tests.tiny import ALL_TASKS, CONFIG, frozen_backbone, trained_hra

recordings: list["Recording"] = []
moving: list[Callable[[], Tree]] = []  # what steps change in place


class Recording:
    """In the place of capture.Captured."""

    def __init__(self, step: Callable[[], Tree]) -> None:
        self.steps: list[Callable[[], None]] = []
        before = [(leaf, leaf.hidden.copy()) for tree in moving for _, leaf in leaves(tree())]
        with standin.recorded(self.steps):
            self.outputs = step()
        for _, leaf in leaves(self.outputs):  # a recording of CUDA computes nothing yet
            leaf.hidden[...] = 0
        for leaf, numbers in before:
            leaf.hidden[...] = numbers
        self.launches = 0
        recordings.append(self)

    def launch(self) -> None:
        self.launches += 1
        for step in self.steps:
            step()


@pytest.fixture(autouse=True)
def xp(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(capture, "Recorder", lambda: SimpleNamespace(run=lambda step: step(), record=Recording))
    recordings.clear()
    moving.clear()
    with gpu_of_stand_ins() as module:
        yield module


def recogniser_of(xp: ModuleType, **changes: Any) -> Recogniser:
    return Recogniser(frozen_backbone(**changes), None, SimpleNamespace(blank=0)).moved(xp)


def trainee_of(xp: ModuleType, graph: bool, cell: str = "gru", head: str = "linear", **how: Any) -> Adaptation:
    return Adaptation(recogniser_of(xp), Adapter(trained_hra(cell, head), "speaker", ""), graph=graph, **how)


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
    assert [recording.launches for recording in recordings] == [6]
    ((_, kept),) = graph._graphs._recorded.values()
    backbone = graph.recogniser.model
    table = position_table(16, backbone.config.width, backbone.config.form.attention, np.dtype(np.float32), xp)
    assert kept.positions is table  # or the graph would read memory that somebody else has got


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_graph_pretrains_every_batch_of_its_shape(dropout: float, xp: ModuleType) -> None:
    """The running statistics and the masks included; and it recognises with what has been learnt so far."""
    plain, graph = (Pretraining(recogniser_of(xp), dropout, graph) for graph in (False, True))
    optimisers, utterances = (AdamW(), AdamW()), [heard(seed) for seed in range(3)]
    moving.append(lambda: (graph.parameters, optimisers[0].moments))
    for step in range(6):
        batch = batch_of(step, ["ann"] * 4, frames=63 - 3 * (step % 3))
        wanted, found = (trainee.gradients(batch, np.random.default_rng(step)) for trainee in (plain, graph))
        assert_near_the_largest(host(found), host(wanted))
        statistics = (trainee.recogniser.model.statistics for trainee in (graph, plain))
        assert_near(*map(host, statistics))
        norms = [
            trainee.update(gradients, optimiser, 1e-2 / (1 + step), 0.5)
            for trainee, (_, gradients), optimiser in zip((graph, plain), (found, wanted), optimisers, strict=True)
        ]
        assert_near(*map(host, norms))
        assert_near_the_largest(*(without_rounding(trainee.parameters) for trainee in (graph, plain)))
        for (_, ours), (_, theirs) in zip(leaves(graph.parameters), leaves(plain.parameters), strict=True):
            ours.hidden[...] = theirs.hidden
        outputs = [
            infer_parts(trainee.recogniser, utterances, None, ["base"] * 3, graphs)
            for trainee, graphs in ((plain, None), (graph, graph._inference))
        ]
        assert_near(tuple(outputs[1]), tuple(outputs[0]))
    assert [recording.launches for recording in recordings] == [4, 4, 2]


def without_rounding(parameters: Tree) -> Tree:
    """Those whose gradient is not 0 but for rounding, which AdamW would move by that: no bias in front of a norm over
    the frames, and none of a key.
    """
    named = dict(leaves(parameters)).items()
    return host({name: leaf for name, leaf in named if not name.endswith(("depthwise.b", "key.b"))})


def heard(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((40 + 9 * seed, CONFIG.mels), np.float32)


def assert_near_the_largest(found: Tree, wanted: Tree) -> None:
    """As `assert_near`, but that what is 0 but for rounding, as the gradient of a key's bias, is near 0."""
    found, wanted = dict(leaves(found)), dict(leaves(wanted))
    largest = max(np.abs(leaf.astype(float)).max(initial=0) for leaf in wanted.values())
    assert found.keys() == wanted.keys()
    for name, b in wanted.items():
        error = np.abs(found[name].astype(float) - b).max(initial=0)
        assert error <= max(2e-5 * np.abs(b.astype(float)).max(initial=0), 2e-6 * largest), name


@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn")])
def test_a_graph_recognises_every_batch_of_its_shape(cell: str, head: str, xp: ModuleType) -> None:
    """Of other tasks, or of none, while the adapter learns."""
    recogniser, hra = recogniser_of(xp), trained_hra(cell, head)
    hra.move(xp)
    graphs = InferenceGraphs(recogniser.model, hra)
    for step, tasks in enumerate([*BATCHES, ["base", "ann", "eve", "base"], ["bob", "base", "base", "ann"], *BATCHES]):
        for _, leaf in leaves(hra.p):
            leaf.hidden[...] *= 0.9
        features = [heard(4)[: 76 - n - step % 3] + step for n in range(4)]
        plain = infer_parts(recogniser, features, hra, tasks)
        assert [len(row) for row in plain] == [-(-len(row) // 4) for row in features]
        assert_near(tuple(infer_parts(recogniser, features, hra, tasks, graphs)), tuple(plain))
    assert [recording.launches for recording in recordings] == [6, 0]


def test_a_graph_recognises_without_an_adapter(xp: ModuleType) -> None:
    recogniser, hra = recogniser_of(xp), trained_hra()
    hra.move(xp)
    features, nobody = [heard(1), heard(2)], ["base", "base"]
    plain = tuple(infer_parts(recogniser, features, None, nobody))
    for adapter in (None, hra):  # whose rows are all "base"
        graphs = InferenceGraphs(recogniser.model, adapter)
        for _ in range(3):
            assert_near(tuple(infer_parts(recogniser, features, adapter, nobody, graphs)), plain)
    assert [recording.launches for recording in recordings] == [1, 1]
    with references():
        assert_near(tuple(infer_parts(recogniser, features, None, nobody, graphs)), plain)
    assert [recording.launches for recording in recordings] == [1, 1]


@pytest.mark.parametrize("family", OPEN)
def test_every_family_can_be_recorded(family: str, xp: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Recognition and a step of adaptation: nothing in them goes to the GPU or comes from it."""
    recogniser, tasks, T = recogniser_of(xp, **OPEN[family]), ["bob", "ann", "bob"], frames_for(OPEN[family])
    trainees = [Adaptation(recogniser, Adapter(trained_hra(), "speaker", ""), graph=graph) for graph in (False, True)]
    for step in range(3):
        batch = batch_of(step, tasks, frames=T)._replace(labels=[[3], [4], [5]])
        plain, found = (host(trainee.gradients(batch, None)) for trainee in trainees)
        assert_near(found, plain)
        hra, rows = trainees[1].adapter.hra, list(batch.features)
        outputs = [infer_parts(recogniser, rows, hra, tasks, graphs) for graphs in (None, trainees[1]._inference)]
        assert_near(tuple(outputs[1]), tuple(outputs[0]))
    assert [recording.launches for recording in recordings] == [1, 1]
    assert capsys.readouterr().err == ""


def test_rows_without_a_task(xp: ModuleType) -> None:
    plain, graph = trainee_of(xp, False), trainee_of(xp, True)
    for step, tasks in enumerate((["base", "ann", "bob"], ["eve", "base", "eve"], ["bob", "ann", "base"]), start=3):
        batch = batch_of(step, tasks)
        assert_near(host(graph.gradients(batch, None)), host(plain.gradients(batch, None)))
    assert [recording.launches for recording in recordings] == [1]
    assert graph._graphs.gradients(*batch_of(9, ["base", "base"])) is None


def test_each_shape_has_a_graph_from_its_second_batch_on(xp: ModuleType) -> None:
    trainee = trainee_of(xp, True)
    for frames, rows in ((60, 3), (30, 3), (60, 3), (60, 2), (64, 3), (60, 2)):
        trainee.gradients(batch_of(0, ["ann", "bob", "eve"][:rows], frames), None)
    assert [recording.launches for recording in recordings] == [1, 0]
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

    monkeypatch.setattr(capture, "Recorder", lambda: SimpleNamespace(run=lambda step: step(), record=fail))
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
    together = packed(arrays, np)
    views = unpacked(together, arrays)
    for a, view in zip(arrays, views, strict=True):
        assert view.dtype == a.dtype and view.shape == a.shape and view.tobytes() == a.tobytes()
        assert not a.size or (np.shares_memory(view, together) and not np.shares_memory(view, a))
    together[...] = 0
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


def test_a_step_runs_in_the_memory_in_which_it_is_then_recorded(cuda: FakeCuda) -> None:
    def step() -> str:
        assert cuda.allocator(100).size == 100
        cuda.done.append("step")
        return f"outputs {cuda.done.count('step')}"

    recorder = capture.Recorder()
    assert recorder.run(step) == "outputs 1"
    assert cuda.done == ["wait", "free", "on the stream", "step", "wait", "off it"]
    del cuda.done[:3]
    captured = recorder.record(step)
    assert captured.outputs == "outputs 2"
    assert cuda.done == ["step", "wait", "off it", "on the stream", "begin", "step", "end", "off it"]
    captured.launch()
    assert cuda.done[-1] == "launch" and cuda.allocator is None
    assert capture.bytes_held() == 200  # which no pool can give back
    recorder.run(step)
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
        raise NotImplementedError("cuBLAS")

    with pytest.raises(NotImplementedError, match="cuBLAS"):
        capture.Recorder().record(step)
    assert cuda.done[-3:] == ["begin", "end", "off it"]
