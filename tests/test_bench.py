"""`minihra bench`: the rows, the turns, the rival, and what it refuses."""

import io
import json
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minihra import bench_side, bench_twins
from minihra.bench import beside, measure
from minihra.bench_bandwidth import COPIED, FROZEN, arguments_of, least_bytes, share_of_copy
from minihra.bench_floor import operations_of, products_run, rehearsed
from minihra.bench_rows import PATTERNS, Row, all_rows, inputs_of, tasks_by
from minihra.bench_runs import runs_of
from minihra.bench_side import ON_CPU, Where, load_rival, number, timed
from minihra.bench_twins import check_twins
from minihra.cli import main
from minihra.device import gpu_problem, to_host
from minihra.ops import CUDA_TWINS, PAIRS, TWINS, UNPAIRED, references
from tests import standin
from tests.imports_of import ROOT

CUDA = Where("cuda")
TINY = Row("adaptation", width=8, layers=2, batch=3, frames=64, tasks=2)
KINDS = ("adaptation", "inference", "training", "heads forward", "heads backward", "ctc", "log-mel")
RIVAL = """
import atexit, json, os
from pathlib import Path

def runs_of(row, inputs):
    Path({log!r}).write_text(json.dumps([row.name, sorted(inputs), os.environ["OMP_NUM_THREADS"]]))
    calls = []
    atexit.register(lambda: Path({log!r} + ".calls").write_text(json.dumps(calls)))
    return {{
        "fast": lambda: calls.append("fast") or {first},
        "slow": lambda: calls.append("slow") or sum(range(10**6)) and {first},
    }}
"""


def rival(folder: Path, first: float) -> str:
    file = folder / "rival.py"
    file.write_text(RIVAL.format(log=str(folder / "log.json"), first=first))
    return str(file)


def test_every_kind_of_row_is_there_and_names_differ() -> None:
    rows = list(all_rows())
    assert {row.kind for row in rows} == set(KINDS)
    assert len({row.name for row in rows}) == len(rows)
    heads = [row for row in rows if row.kind == "heads forward" and row.head == "linear"]
    assert Counter(row.pattern for row in heads) == dict.fromkeys(PATTERNS, len(heads) // 5)
    assert all(row.batch == max(16, row.tasks) for row in heads)


def test_rows_of_a_gpu() -> None:
    here, there = set(all_rows()), set(all_rows("cuda"))
    assert {row.kind for row in here - there} == {"log-mel"}
    large = [row for row in there if row.width == 512 and row.kind == "adaptation"]
    assert {(row.cell, row.head) for row in large} == {(c, h) for c in ("gru", "indrnn") for h in ("linear", "ffn")}
    assert {(row.layers, row.batch, row.frames) for row in large} == {(17, 16, 800)}
    bandwidth = [row for row in there - here if row.kind.startswith("bandwidth")]
    assert {row.kind for row in there - here} == {"adaptation", "inference", "bandwidth forward", "bandwidth backward"}
    assert len({row.name for row in there}) == len(there)
    for row in bandwidth:
        scores = row.frames if row.pair == "masked_softmax" else 1
        assert 4 * row.batch * row.frames * row.width * scores > 256e6


@pytest.mark.parametrize("row", [row for row in all_rows("cuda") if row.pair], ids=lambda row: row.name)
def test_bandwidth(row: Row) -> None:
    """Bytes are those of the arrays, and twice the time is half the share."""
    row = replace(row, batch=5, frames=7, width=8)
    arguments = arguments_of(row)
    y, _ = PAIRS[row.pair].forward(**arguments, **FROZEN.get(row.pair, {}))
    if row.pair == "layer_norm":  # x and y, or dy and dx; the normalised x and 1 / deviation; gain and bias
        assert least_bytes(row) == 4 * (5 * 7 * (3 * 8 + 1) + 2 * 8)
    if row.pair == "masked_softmax":  # s and y, or dy, y and ds
        scores = 5 * 8 * 7 * 7 * 4
        assert least_bytes(row) == (2 * scores + 5 * 7 if row.kind == "bandwidth forward" else 3 * scores)
    assert least_bytes(row) > 2 * y.nbytes
    once = share_of_copy(row, 1.0, 1.0)
    assert once == pytest.approx(least_bytes(row) / (8 * COPIED)) and share_of_copy(row, 2.0, 1.0) == once / 2


def test_patterns() -> None:
    rng = np.random.default_rng(0)
    counts = {pattern: Counter(tasks_by(pattern, 64, 640, rng)) for pattern in PATTERNS}
    assert counts["identical"] == {"task0": 640}
    assert set(counts["distinct"].values()) == {10} and len(counts["distinct"]) == 64
    assert 280 < counts["skewed"]["task0"] < 370
    assert counts["zipf"]["task0"] > 3 * counts["zipf"]["task2"] > 0
    assert max(counts["uniform"].values()) < 25


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn")])
def test_each_side_gives_one_number(kind: str, cell: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours and that of PyTorch, which is built from the same arrays, eagerly and in both of its ways."""
    torch_twin = pytest.importorskip(
        "tests.torch_twin", reason="the rival needs PyTorch: pip install 'minihra[parity]'"
    )
    row = Row(kind, 8, 2, 3, 64, cell, head, 2)
    inputs = inputs_of(row)
    ours = number(runs_of(row, inputs)["ours"]())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    theirs = {name: run for name, run in torch_twin.runs_of(row, inputs).items() if name.endswith("eager")}
    assert np.isfinite(ours)
    assert len(theirs) == {"training": 1, "ctc": 1}.get(kind, 2)
    for name, run in theirs.items():
        assert number(run()) == pytest.approx(ours, rel=1e-4, abs=1e-3 if kind.startswith("heads") else 1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_quick_rival_is_the_same_network(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its eager runs are those of the rival that compiles the whole model; it compiles no more than blocks."""
    torch_twin = pytest.importorskip(
        "tests.torch_twin", reason="the rival needs PyTorch: pip install 'minihra[parity]'"
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", [*sys.path])
    row = Row(kind, 8, 2, 3, 64, tasks=2)
    inputs, quick = inputs_of(row), load_rival(str(ROOT / "benchmarks" / "torch_blocks.py"), ON_CPU)
    found, others = quick.runs_of(row, inputs), torch_twin.runs_of(row, inputs)
    if kind in quick.WITH_BLOCKS:
        names = {name.removesuffix(", compiled").removesuffix(", eager") for name in others}
        assert found.keys() == {f"{name}, {how}" for name in names for how in ("eager", "blocks compiled")}
    else:
        assert found.keys() == others.keys()
    for name in found:
        if name.endswith("eager"):
            assert number(found[name]()) == pytest.approx(number(others[name]()), rel=1e-5, abs=1e-5), name


ROWS = [Row(kind, 8, 2, 3, 64, tasks=2) for kind in KINDS]
ROWS += [replace(row, batch=2, frames=9, width=6) for row in all_rows("cuda") if row.pair]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind} {row.pair}")
def test_our_side_runs_where_no_array_is_numpys(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, with the same number; what is fetched is fetched by name."""
    monkeypatch.setattr("minihra.bench_bandwidth.COPIED", 10)
    recorded = lambda run: SimpleNamespace(launch=lambda: None, outputs=run())  # noqa: E731
    monkeypatch.setattr(
        "minihra.kernels.cuda.capture.Recorder", lambda: SimpleNamespace(run=lambda run: run(), record=recorded)
    )
    numbers: list[dict[str, float]] = []
    with standin.installed() as xp, references():
        for module in (np, xp):
            standin.called.clear()
            runs = runs_of(row, inputs_of(row), module)
            numbers.append({name: number(to_host(run())) for name, run in runs.items()})
            assert bool(standin.called) == (module is xp)
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    more = {"heads": {"dense"}, "bandwidth": {"copy"}}.get(row.kind.partition(" ")[0], set())
    assert numbers[0].keys() == {"ours"} | more


def test_a_run_on_a_gpu_ends_when_an_element_has_come_back() -> None:
    fetched = []
    element = SimpleNamespace(item=lambda: fetched.append(1))

    class Result:
        ndim = 2

        def __getitem__(self, place: tuple[int, ...]) -> Any:
            assert place == (0, 0)
            return element

    seconds, value = timed(Result, True, False)
    assert len(fetched) == 1 and seconds >= 0 and isinstance(value, Result)
    timed(Result, False, False)
    assert timed(lambda: 1.5, True, False)[1] == 1.5 and len(fetched) == 1


def test_memory_of_a_gpu_is_that_of_the_second_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reset before a run that counts would make it ask the driver for memory again."""
    held, resets, runs = [100], [], {"a": lambda: 1.0, "b": lambda: {}["graph"], "c": lambda: 3.0}

    def memory(reset: bool) -> int:
        (resets if reset else held).append(held[-1] + 7)
        return held[-1]

    def served(where: str) -> list[Any]:
        monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\na\nc\nb\na\nc\n"))
        monkeypatch.setattr(bench_side, "built", lambda *_: (runs, memory))
        bench_side.serve("rival.py", json.dumps(asdict(TINY)), str(tmp_path / "inputs.npz"), where)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    np.savez(tmp_path / "inputs.npz", x=np.zeros(1))
    names, *answers = served('{"device": "cuda"}')
    assert names == ["a", "b", "c"]
    assert [answer.get("memory") for answer in answers] == [0, None, 7, 0, None, 0, 7] and len(resets) == 3
    assert answers[1] == {"error": "KeyError: 'graph'"}
    assert [answer.get("memory", 0) for answer in served("{}")[1:]] == [7, 0, 14, 21, 0, 28, 35]
    assert len(resets) == 3 + 8


def test_the_pool_tells_what_it_holds() -> None:
    done: list[str] = []
    pool = SimpleNamespace(free_all_blocks=lambda: done.append("freed"), total_bytes=lambda: 512)
    xp: Any = SimpleNamespace(get_default_memory_pool=lambda: pool)
    assert bench_side.pool_memory(xp, False) == 512 and done == []
    assert bench_side.pool_memory(xp, True) == 512 and done == ["freed"]


@pytest.mark.parametrize("mode", ["gather", "loop"])
def test_nothing_keeps_the_rival_from_cuda_graphs(mode: str) -> None:
    """Its model is one graph, in which no tensor is on the CPU; where a GPU is missing, in tensors without content."""
    torch = pytest.importorskip("torch", reason="the rival needs PyTorch: pip install 'minihra[parity]'")
    from tests.torch_twin import TorchHRA

    inputs = inputs_of(TINY)
    named = {name: a for name, a in inputs.items() if name.startswith(("backbone.", "statistics.", "adapter."))}
    how = {"heads": 4, "cell": "gru", "tasks": ("task0", "task1"), "dtype": torch.float32, "heads_mode": mode}
    model = TorchHRA(named, **how).to("meta")
    plan, graphs, devices = model.plan(inputs["tasks"], 3), [], set()

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        devices.update(value.device.type for value in values if isinstance(value, torch.Tensor))
        return graph.forward

    features, lengths = torch.empty(3, 64, 80, device="meta"), torch.empty(3, dtype=torch.long, device="meta")
    torch.compile(model.forward, backend=backend)(features, lengths, plan)
    assert len(graphs) == 1 and devices == {"meta"}


def test_twins_of_the_gpu_are_checked() -> None:
    """Here on stand-ins, which have none: the references, beside themselves."""
    with standin.installed() as xp:
        errors = check_twins(xp)
    assert {name.partition(",")[0] for name in errors} == CUDA_TWINS.keys()
    assert max(errors.values()) < 1e-6


def test_absent_tasks_have_heads_and_no_rows() -> None:
    row = replace(TINY, absent=3)
    inputs = inputs_of(row)
    assert row.name.endswith("2 of 5 tasks")
    assert {name.split(".")[2] for name in inputs if name.startswith("adapter.heads.")} == {
        f"task{n}" for n in range(5)
    }
    assert set(inputs["tasks"]) <= {"task0", "task1"}
    assert runs_of(row, inputs)["ours"]() > 0


def test_two_sides_take_turns(tmp_path: Path) -> None:
    value = runs_of(TINY, inputs_of(TINY))["ours"]()
    result = measure(TINY, rival(tmp_path, value), turns=3)
    assert result["row"] == TINY.name
    assert result["variant"] == "fast"
    assert result["rival"] == result["variants"]["fast"] < result["variants"]["slow"]
    assert result["ratio"] == result["ours"] / result["rival"] > 1
    assert result["gflops"] > 0 and result["products"] > 0 and result["first"] > result["ours"] / 2
    name, inputs, threads = json.loads((tmp_path / "log.json").read_text())
    assert name == TINY.name
    assert {"features", "tasks", "adapter.controller.W", "backbone.readout.linear.W"} <= set(inputs)
    assert int(threads) >= 1
    calls = json.loads((tmp_path / "log.json.calls").read_text())
    assert calls[:3] == ["fast", "slow", "fast"]  # once, in the first turn
    assert calls.count("fast") > 100  # what is short is repeated in the others


def test_products_are_a_share_of_our_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a side that takes turns with ours."""
    turns = []

    class Fixed:
        def __init__(self, side: str, *_: Any) -> None:
            self.side, self.memory, self.first = side, {"ours": 1}, {"ours": 1.0}
            self.seconds = {side: [{"ours": 4.0, "products": 1.0}[side]]}

        def __enter__(self) -> "Fixed":
            return self

        def __exit__(self, *_: object) -> None: ...

        def turn(self, keep: bool) -> None:
            turns.append((self.side, keep))

    monkeypatch.setattr("minihra.bench.Side", Fixed)
    result = measure(TINY, None, turns=2)
    assert result["products"] == 0.25 and result["gflops"] == operations_of(TINY) / 4e9
    assert turns == [(side, keep) for keep in (False, False, True, True) for side in ("ours", "products")]


def test_a_rival_that_computes_something_else_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ours gives .*, fast of .*rival\.py 1e\+06"):
        measure(TINY, rival(tmp_path, 1e6), turns=1)


def test_what_a_rival_cannot_run_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rival.py"
    value = runs_of(TINY, inputs_of(TINY))["ours"]()
    text = "def runs_of(row, inputs):\n    return {'good': lambda: %r, 'bad': lambda: {}['graph']}\n"
    file.write_text(text % value)
    result = measure(TINY, str(file), turns=1)
    assert result["variant"] == "good" and result["failed"] == {"bad": "KeyError: 'graph'"}
    assert f"bad of {file} failed and is left out: KeyError" in capsys.readouterr().out
    other: Any = SimpleNamespace(side="rival.py", seconds={}, value={}, failed={"bad": "KeyError: 'graph'"})
    with pytest.raises(ValueError, match=r"nothing of rival\.py runs"):
        beside(TINY, other, other, 1e-3)
    other.failed = {}
    assert beside(TINY, other, other, 1e-3) == {}


def test_a_rival_for_a_gpu_takes_the_device(tmp_path: Path) -> None:
    path = rival(tmp_path, 1.0)
    with pytest.raises(ValueError, match=r"for a GPU a rival has a function runs_of\(row, inputs, \*, device, tf32\)"):
        load_rival(path, CUDA)
    pytest.importorskip("torch", reason="the rival needs PyTorch: pip install 'minihra[parity]'")
    assert hasattr(load_rival("tests/torch_twin.py", CUDA), "gpu_memory")


def test_products_are_those_of_the_model() -> None:
    """Of one layer's feed-forward modules, forward and backward, and of the controller."""
    row = Row("adaptation", width=12, layers=2, batch=3, frames=64, tasks=2)
    products, N = rehearsed(row).products, 3 * 16  # frames behind the front end
    assert products[1, N, 12, 48] == 2 * 2 + 2  # up in two layers; down turned, in the one layer that has a backward
    assert products[1, N, 12, 3 * 64] == 2  # the GRU's gates
    assert sum(n * rows for (_, rows, I, _), n in products.items() if I == 9 * 12) == N * 20  # 80 mels halved twice
    assert operations_of(row) == sum(2 * n * int(np.prod(shape)) for shape, n in products.items()) > 0
    assert operations_of(Row("ctc")) == 0


def test_products_are_made_as_often_as_a_step_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with arrays of its shape, which are made before."""
    row, made = Row("adaptation", width=12, layers=2, batch=3, frames=64, tasks=2), Counter()

    class Spied(np.ndarray):
        def __matmul__(self, b: np.ndarray) -> np.ndarray:
            made[*self.shape, b.shape[2]] += 1
            return np.zeros((1, 1, 1), np.float32)

    rng = SimpleNamespace(standard_normal=lambda shape, dtype: np.zeros(shape, dtype).view(Spied))
    with monkeypatch.context() as context:
        context.setattr(np.random, "default_rng", lambda _: rng)
        run = products_run(row)
    assert run() == 0 and made == rehearsed(row).products
    seconds, value = timed(products_run(row), on_gpu=False, again=False)
    assert seconds > 0 and np.isfinite(value)


def test_twins_are_checked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="the twins for the CPU need numba")
    errors = check_twins()
    assert {name.partition(",")[0] for name in errors} == TWINS.keys() | UNPAIRED.keys()
    assert max(errors.values()) < 1e-5
    file = bench_twins.twins_in("activations")
    right = file.swish_forward
    monkeypatch.setattr(file, "swish_forward", lambda x: (right(x)[0] * np.float32(1.001), right(x)[1]))
    with pytest.raises(ValueError, match=r"swish: the twin is off by 1\.8e-03"):
        check_twins()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "--rows", "heads", "ffn"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed and all("heads" in line and "ffn" in line for line in listed)
    assert main(["bench", "--list", "--device", "cuda", "--rows", "bandwidth"]) == 0  # no GPU is needed to list
    assert capsys.readouterr().out.count("\n") == 12
    out = tmp_path / "bench.json"
    assert main(["bench", "--rows", "ctc", "--turns", "1", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "| ctc, 32 x 200 |" in printed
    content = json.loads(out.read_text())
    assert content["turns"] == 1 and [row["row"] for row in content["rows"]] == ["ctc, 32 x 200"]


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if gpu_problem() is None:
        monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["bench", "--device", "cuda", "--rows", "ctc", "--tf32"]) == 2
    said = capsys.readouterr().err
    assert said == f"minihra: --device cuda: {gpu_problem()}\n"
    assert main(["bench", "--list", "--device", "auto", "--rows", "log-mel"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "nonsense"], "no row has 'nonsense' in its name"),
        (["--turns", "0"], "--turns must be at least 1"),
        (["--rows", "ctc", "--rival", "absent.py"], "absent.py: no file of Python"),
        (["--rows", "ctc", "--rival", "tests/tiny.py"], "a rival has a function runs_of"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
