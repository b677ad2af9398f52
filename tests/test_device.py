"""`--device`: whole commands on arrays that refuse NumPy, as CuPy's do; and what is said where no GPU can be used."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from minihra import device
from minihra.cli import main
from minihra.device import array_module_for, moved, to_host
from minihra.kernels.cuda import products as cuda_products
from minihra.ops import references
from minihra.trainees import Adaptation, Pretraining
from tests import standin
from tests.tones import Bench, adapt, bits, pretrain


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A machine with a GPU, whose arrays are stand-ins."""
    with standin.installed() as xp, references():
        monkeypatch.setitem(sys.modules, "cupy", xp)
        monkeypatch.setattr(device, "gpu_problem", lambda: None)
        standin.called.clear()
        yield xp


def error_rates(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def content(run: Path) -> dict[str, Any]:
    """Every file of a run's last step; of tensors the bytes, as their file's metadata stand in no order."""
    files = bits(run)
    for name in [name for name in files if name.endswith(".safetensors")]:
        files[name] = {key: leaf.tobytes() for key, leaf in load(files[name]).items()}
    return files


@pytest.mark.parametrize("name", ["cuda", "auto"])
def test_training_is_that_of_the_cpu(name: str, gpu: ModuleType, bench: Bench, tmp_path: Path) -> None:
    """To the bit, from the first step to the files, with a break in between."""
    runs = {}
    for where in ("cpu", name):
        backbone, adapter = tmp_path / f"{where}-backbone", tmp_path / f"{where}-adapter"
        standin.called.clear()
        assert main(pretrain(bench.manifest, backbone, "--steps", "3", "--device", where)) == 0
        command = adapt(bench, adapter, "--state-size", "8", "--limit-per-task", "4", "--device", where)
        assert main([*command, "--steps", "6"]) == 0
        assert bool(standin.called) == (where != "cpu")
        runs[where] = content(backbone), content(adapter)
    assert runs["cpu"] == runs[name]


@pytest.mark.parametrize("trainee", [Adaptation, Pretraining])
def test_a_run_goes_on_where_it_was(
    trainee: type, gpu: ModuleType, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(name: str) -> list[str]:
        more = ["--steps", "6", "--device", "cuda"]
        if trainee is Pretraining:
            return pretrain(bench.manifest, tmp_path / name, *more)
        return adapt(bench, tmp_path / name, "--state-size", "8", *more)

    assert main(command("whole")) == 0
    gradients, steps = trainee.gradients, []

    def until_the_memory_is_full(self: Any, *arguments: Any) -> Any:
        steps.append(True)
        if len(steps) > 4:
            raise MemoryError("Out of memory allocating 1,000 bytes")
        return gradients(self, *arguments)

    monkeypatch.setattr(trainee, "gradients", until_the_memory_is_full)
    assert main(command("broken")) == 2
    monkeypatch.setattr(trainee, "gradients", gradients)
    standin.called.clear()
    assert main([*command("broken"), "--resume"]) == 0
    assert ("ndarray.matmul", frozenset()) in standin.called  # it goes on there, and not on the CPU
    assert content(tmp_path / "whole") == content(tmp_path / "broken")


def test_recognition_is_that_of_the_cpu(gpu: ModuleType, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--manifest", str(bench.manifest), "--where", "speaker!=ann", "--adapter", str(bench.adapter)]
    command = ["eval", "--backbone", str(bench.backbone), *where, "--device"]
    assert error_rates(capsys, *command, "cuda") == error_rates(capsys, *command, "cpu")
    assert standin.called
    sound = str(bench.folder / "bob_ab_0.wav")
    command = ["transcribe", "--backbone", str(bench.backbone), "--adapter", str(bench.adapter), "--task", "bob", sound]
    texts = []
    for more in ([], ["--device", "cuda", "--tf32"]):
        assert main([*command, *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""


def test_a_graph_needs_a_gpu(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(adapt(bench, tmp_path / "out", "--steps", "1", "--graph")) == 2
    assert capsys.readouterr().err == "minihra: --graph is for a GPU: it needs --device cuda\n"
    assert not (tmp_path / "out").exists()
    backbone, sound = str(bench.backbone), str(bench.folder / "bob_ab_0.wav")
    for command in (
        pretrain(bench.manifest, tmp_path / "out", "--steps", "1"),
        ["eval", "--backbone", backbone, "--manifest", str(bench.manifest)],
        ["transcribe", "--backbone", backbone, sound],
    ):
        assert main([*command, "--graph"]) == 2
        assert capsys.readouterr().err == "minihra: --graph is for a GPU: it needs --device cuda\n"
    assert not (tmp_path / "out").exists()


def test_memory_that_runs_out_says_how_much_of_what(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy's own error: pip install 'minihra[kernels]' (no GPU is needed)")

    def full(self: Adaptation, *arguments: Any) -> None:
        raise cupy.cuda.memory.OutOfMemoryError(5_000_000, 70_000_000)

    monkeypatch.setattr(Adaptation, "gradients", full)
    assert main(adapt(bench, tmp_path / "out", "--steps", "6")) == 2
    said = capsys.readouterr().err
    assert "memory ran out (in step 1, with a batch of 16 recordings of up to 0.5 s: " in said
    assert "Out of memory allocating 5,000,000 bytes (allocated so far: 70,000,000 bytes)" in said
    assert "smaller batches" in said and said.count("\n") == 1


def test_memory_that_runs_out_while_recognising(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError("Out of memory allocating 1,000 bytes")

    monkeypatch.setattr("minihra.evaluate.infer", full)
    assert main(["transcribe", "--backbone", str(bench.backbone), str(bench.folder / "bob_ab_0.wav")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minihra: memory ran out (in a batch of 1, of up to 0.5 s each: Out of memory allocating")


def test_a_gpu_that_disappears(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told in a line, and the last checkpoint stays; an error of ours is not taken for it."""
    cupy = pytest.importorskip("cupy", reason="CuPy's own error: pip install 'minihra[kernels]' (no GPU is needed)")
    gradients = Adaptation.gradients
    steps: list[bool] = []
    lost = type("CUDARuntimeError", (RuntimeError,), {"__module__": cupy.cuda.runtime.CUDARuntimeError.__module__})

    def until_it_is_gone(self: Adaptation, *arguments: Any) -> Any:
        steps.append(True)
        if len(steps) > 3:
            raise lost("cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable")
        return gradients(self, *arguments)

    monkeypatch.setattr(Adaptation, "gradients", until_it_is_gone)
    assert main(adapt(bench, tmp_path / "out", "--epochs", "9")) == 2
    said = capsys.readouterr().err
    assert "the GPU failed or is gone (cudaErrorDevicesUnavailable" in said and "last checkpoint is whole" in said
    assert bits(tmp_path / "out")
    monkeypatch.setattr(Adaptation, "gradients", lambda *_: (_ for _ in ()).throw(RuntimeError("ours")))
    with pytest.raises(RuntimeError, match="ours"):
        main(adapt(bench, tmp_path / "other", "--steps", "1"))


def fake_cupy(**runtime: Any) -> SimpleNamespace:
    """As much of CuPy as is asked whether it works."""
    runtime = {"driverGetVersion": lambda: 12040, "getDeviceCount": lambda: 1, **runtime}
    x = np.zeros(1, np.int32)

    def kernel(text: str, name: str) -> Any:
        return runtime.get("kernel", lambda *_: x.fill(42))

    return SimpleNamespace(
        cuda=SimpleNamespace(runtime=SimpleNamespace(**runtime)), zeros=lambda *_: x, RawKernel=kernel
    )


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module of products, with a cuBLAS that is found."""
    monkeypatch.setattr(cuda_products, "cublas", lambda: None)
    return cuda_products


def failing(error: Exception) -> Any:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("cupy", "said"),
    [
        (None, "CuPy is not installed; pip install 'minihra[cuda12]' (or cuda13"),
        (fake_cupy(driverGetVersion=lambda: 0), "no NVIDIA driver was found; install the driver"),
        (fake_cupy(getDeviceCount=lambda: 0), "the NVIDIA driver finds no GPU"),
        (
            fake_cupy(getDeviceCount=failing(RuntimeError("cudaErrorNoDevice: no CUDA-capable device"))),
            "no kernel runs on the GPU (RuntimeError: cudaErrorNoDevice",
        ),
        (fake_cupy(kernel=failing(RuntimeError("Failure finding libnvrtc.so"))), "NVRTC, which compiles the kernels"),
        (fake_cupy(kernel=lambda *_: None), "gave a wrong result"),
    ],
)
def test_what_is_missing_is_said(
    cupy: Any, said: str, monkeypatch: pytest.MonkeyPatch, bench: Bench, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert said in device.gpu_problem()
    command = ["eval", "--backbone", str(bench.backbone), "--manifest", str(bench.manifest), "--device"]
    assert main([*command, "cuda"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("minihra: --device cuda: ") and said in printed and printed.count("\n") == 1
    assert array_module_for("auto") is np
    told = capsys.readouterr().err
    assert told.startswith("minihra: --device auto computes on the CPU: ") and said in told and told.count("\n") == 1


def test_a_gpu_without_cublas(monkeypatch: pytest.MonkeyPatch, products: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy())
    monkeypatch.setattr(products, "cublas", failing(OSError("cuBLAS was not found: pip install nvidia-cublas-cu12")))
    assert device.gpu_problem() == "cuBLAS was not found: pip install nvidia-cublas-cu12"


def test_a_gpu_on_which_a_kernel_runs(monkeypatch: pytest.MonkeyPatch, products: ModuleType) -> None:
    cupy = fake_cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    assert array_module_for("auto") is array_module_for("cuda") is cupy
    assert array_module_for("cpu") is np
    with pytest.raises(ValueError, match="unknown device 'gpu'; known: cpu, cuda, auto"):
        array_module_for("gpu")


def test_cupy_without_a_gpu() -> None:
    cupy = pytest.importorskip("cupy", reason="CuPy itself: pip install 'minihra[kernels]' (no GPU is needed)")
    if cupy.cuda.is_available():
        pytest.skip("here is a GPU")
    assert "no NVIDIA driver was found" in device.gpu_problem()


def test_trees_move_and_come_back() -> None:
    with standin.installed() as xp:
        tree = {"a": np.arange(3.0), "b": (None, np.ones((2, 2), np.float32))}
        there = moved(tree, xp)
        assert isinstance(there["a"], standin.ndarray) and moved(there, xp)["a"] is there["a"]
        back = to_host(there)
        assert back["b"][0] is None and (back["a"] == tree["a"]).all() and back["b"][1].dtype == np.float32
        assert moved(tree, np)["a"] is tree["a"] and to_host(tree)["a"] is tree["a"] and to_host(0.5) == 0.5


class Late:
    """A GPU that copies from page-locked memory as late as it may: when somebody waits for it."""

    def __init__(self) -> None:
        self.pending: list[tuple[np.ndarray, np.ndarray]] = []
        self.pinned: list[np.ndarray] = []

    def module(self) -> ModuleType:
        xp = ModuleType("late")
        xp.cuda, xp.empty = SimpleNamespace(Event=lambda: self), lambda shape, dtype: LateArray(self, shape, dtype)
        return xp

    def empty_pinned(self, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        self.pinned.append(np.empty(shape, dtype))
        return self.pinned[-1]

    def record(self) -> None:
        """An event of what is pending."""

    def synchronize(self) -> None:
        for place, source in self.pending:
            place[...] = source
        self.pending.clear()


class LateArray:
    def __init__(self, gpu: Late, shape: tuple[int, ...], dtype: type) -> None:
        self.gpu, self.there = gpu, np.zeros(shape, dtype)

    def set(self, source: np.ndarray) -> None:
        self.gpu.pending.append((self.there, source))


def test_page_locked_memory_is_written_when_it_has_been_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of several sizes and types, one after the other, through one piece of memory that grows."""
    gpu, rng = Late(), np.random.default_rng(0)
    xp = gpu.module()
    monkeypatch.setitem(sys.modules, "latex", SimpleNamespace(empty_pinned=gpu.empty_pinned))
    monkeypatch.setattr(device, "_staging", device.Staging())
    sizes = {(2, 3): np.float32, (3, 2): np.float32, (0, 4): np.float32, (5, 7): np.float64, (4, 2): np.float32}
    wanted = [rng.standard_normal(shape).astype(dtype) for shape, dtype in sizes.items()]
    found = [device.filled(xp, a.shape, a.dtype, lambda place, a=a: np.copyto(place, a)) for a in wanted]
    assert found[0].there.any() and not found[-1].there.any()  # the last copy is under way
    gpu.synchronize()
    for a, array in zip(wanted, found, strict=True):
        assert array.there.dtype == a.dtype
        np.testing.assert_array_equal(array.there, a)
    assert [memory.nbytes for memory in gpu.pinned] == [24, 280]
