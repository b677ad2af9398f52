"""What only a GPU can show; without one each test is skipped, and says what is missing. `make gpu-check` runs them.

Every pair on CuPy's arrays against the reference on the CPU, products, whole steps and whole commands: the same numbers
within rounding, and the same bits when run twice. With MINIHRA_NO_POOL=1 each array has memory of its own, so that
compute-sanitizer sees what reads beyond its end.
"""

import json
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from minihra.bench_rows import Row, inputs_of
from minihra.bench_runs import adapter_of, batch_of, recogniser_of
from minihra.cases import Case
from minihra.cli import main
from minihra.device import array_module_for, gpu_problem
from minihra.evaluate import infer_parts
from minihra.graphs import InferenceGraphs
from minihra.kernels.cuda.products import allow_tf32, product
from minihra.ops import CUDA_TWINS, draw_keep
from minihra.optim import AdamW, clip_by_global_norm
from minihra.recogniser import Adapter
from minihra.speech.error_rate import sum_errors, word_errors
from minihra.trainees import Adaptation, Pretraining
from minihra.tree import Tree, leaves, map_leaves
from tests.test_twins import ALL, TOLERANCE, arguments_of, as_tuple, named, output_gradient, reference_of
from tests.tones import Bench, adapt, bits, pretrain

CASES = {case.name: case for case in ALL}
GRADIENT_TOLERANCE = {np.float64: 1e-12, np.float32: 1e-4}  # of the largest element
TINY = {"width": 16, "layers": 2, "batch": 5, "frames": 90, "tasks": 2}


@pytest.fixture(scope="module", autouse=True)
def xp() -> ModuleType:
    if (problem := gpu_problem()) is not None:
        pytest.skip(f"needs a GPU: {problem}")
    cupy = import_module("cupy")
    if os.environ.get("MINIHRA_NO_POOL") == "1":
        cupy.cuda.set_allocator(None)
    return cupy


def there(tree: Tree, xp: ModuleType) -> Tree:
    """The tree with its arrays on the GPU."""
    return map_leaves(lambda leaf: xp.asarray(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else leaf, tree)


def back(tree: Tree, xp: ModuleType) -> Tree:
    """The tree with its arrays on the host."""
    return map_leaves(lambda leaf: xp.asnumpy(leaf) if isinstance(leaf, xp.ndarray) else leaf, tree)


def assert_close(found: Tree, wanted: Tree, allowed: float) -> None:
    """Every array that is found is the wanted one, but for `allowed` of its largest element."""
    found, wanted = named(found), named(wanted)
    assert found.keys() <= wanted.keys()
    for name, a in found.items():
        b = wanted[name]
        assert a.dtype == b.dtype and a.shape == b.shape, name
        finite = np.isfinite(b)
        assert np.array_equal(a[~finite], b[~finite]), name  # the log of 0
        error = np.abs(a[finite].astype(float) - b[finite].astype(float)).max(initial=0)
        assert error <= allowed * np.abs(b[finite].astype(float)).max(initial=1e-30), (name, error)


def results_on(case: Case, dtype: type, xp: ModuleType) -> tuple[Tree, Tree]:
    """The outputs and gradients of a pair on the GPU."""
    *outputs, cache = case.pair.forward(**there(arguments_of(case, dtype), xp))
    dy = xp.asarray(output_gradient(back(outputs[0], xp)))
    return back(tuple(outputs), xp), back(as_tuple(case.pair.backward(dy, cache)), xp)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", CASES)
def test_twin_equals_its_reference(name: str, dtype: type, xp: ModuleType) -> None:
    """And it takes the reference's cache; a pair without a twin is its reference, on CuPy's arrays."""
    case = CASES[name]
    *wanted, wanted_cache = reference_of(case.pair.forward)(**arguments_of(case, dtype))
    dy = output_gradient(wanted[0])
    wanted_gradients = as_tuple(reference_of(case.pair.backward)(dy, wanted_cache))
    outputs, gradients = results_on(case, dtype, xp)
    assert_close(outputs, tuple(wanted), TOLERANCE[dtype])
    crossed = as_tuple(case.pair.backward(*there((dy, wanted_cache), xp)))
    for found in (gradients, back(crossed, xp)):
        assert named(found).keys() == named(wanted_gradients).keys()
        assert_close(found, wanted_gradients, GRADIENT_TOLERANCE[dtype])


@pytest.mark.parametrize("name", [name for name in CASES if name.partition(",")[0] in CUDA_TWINS])
def test_same_bits_again(name: str, xp: ModuleType) -> None:
    first, second = (
        [leaf.tobytes() for leaf in named(results_on(CASES[name], np.float32, xp)).values()] for _ in range(2)
    )
    assert first == second


PRODUCTS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "plain": lambda a, b: (a[0], b[0]),
    "first transposed": lambda a, b: (a[0].T.copy().T, b[0]),
    "second transposed": lambda a, b: (a[0], b[0].T.copy().T),
    "a part of rows": lambda a, b: (a[0, 3:], b[0][:, 5:]),
    "batched": lambda a, b: (a, b),
    "batched, one for all": lambda a, b: (a, b[0]),
    "batched, transposed": lambda a, b: (a, b.swapaxes(1, 2).copy().swapaxes(1, 2)),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, dtype: type, xp: ModuleType) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 65, 130)).astype(dtype), rng.standard_normal((3, 130, 77)).astype(dtype)
    wanted = np.matmul(*PRODUCTS[name](a, b))
    ours = PRODUCTS[name](xp.asarray(a), xp.asarray(b))
    found = product(*ours)
    assert_close((back(found, xp),), (wanted,), TOLERANCE[dtype])
    product(*ours, out=found, add=True)
    assert_close((back(found, xp),), (2 * wanted,), TOLERANCE[dtype])
    assert back(product(*ours), xp).tobytes() == back(product(*ours), xp).tobytes()


def test_tensor_cores_are_used_only_where_they_are_allowed(xp: ModuleType) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((256, 512)), rng.standard_normal((512, 256))
    wanted, single = a @ b, [xp.asarray(x.astype(np.float32)) for x in (a, b)]
    assert np.abs(back(product(*single), xp) - wanted).max() < 1e-5 * np.abs(wanted).max()
    try:
        allow_tf32(True)
        assert np.abs(back(product(*single), xp) - wanted).max() < 1e-2 * np.abs(wanted).max()
    finally:
        allow_tf32(False)


def trainee_of(row: Row, xp: ModuleType) -> Adaptation | Pretraining:
    inputs = inputs_of(row)
    recogniser = recogniser_of(row, inputs, xp)
    if row.kind == "training":
        return Pretraining(recogniser, 0.0)
    return Adaptation(recogniser, Adapter(adapter_of(row, inputs, xp), "task", ""))


def assert_close_to_the_largest(found: Tree, wanted: Tree) -> None:
    """As `assert_close` with 1e-4, but that what is nothing beside the largest leaf, as the gradient of a key's bias,
    which is 0 but for rounding, need not be the same nothing.
    """
    found, wanted = named(found), named(wanted)
    largest = max(np.abs(leaf).max(initial=0) for leaf in wanted.values())
    for name, b in wanted.items():
        error = np.abs(found[name].astype(float) - b).max(initial=0)
        assert error <= max(1e-4 * np.abs(b).max(initial=0), 2e-6 * largest), (name, error)


STEPS = {
    "adaptation, gru": Row("adaptation", **TINY),
    "adaptation, indrnn, ffn": Row("adaptation", **TINY, cell="indrnn", head="ffn"),
    "training": Row("training", **TINY),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_whole_step_is_that_of_the_cpu(name: str, xp: ModuleType) -> None:
    row, results = STEPS[name], []
    for module in (np, xp):
        trainee, batch = trainee_of(row, module), batch_of(inputs_of(row))
        loss, gradients = trainee.gradients(batch, np.random.default_rng(0))
        clipped, norm = clip_by_global_norm(gradients, 0.1)
        results.append(back(((loss.mean, norm), (gradients, clipped)), xp))
    (wanted, wanted_gradients), (found, found_gradients) = results
    assert_close(map_leaves(np.asarray, found), map_leaves(np.asarray, wanted), 1e-4)
    assert dict(leaves(found_gradients)).keys() == dict(leaves(wanted_gradients)).keys()
    for ours, theirs in zip(found_gradients, wanted_gradients, strict=True):
        assert_close_to_the_largest(ours, theirs)


@pytest.mark.parametrize("name", STEPS)
def test_steps_give_the_same_bits_again(name: str, xp: ModuleType) -> None:
    runs = []
    for _ in range(2):
        trainee, batch, optimiser = trainee_of(STEPS[name], xp), batch_of(inputs_of(STEPS[name])), AdamW(decay=0.01)
        for _ in range(3):
            _, gradients = trainee.gradients(batch, np.random.default_rng(0))
            clipped, _ = clip_by_global_norm(gradients, 1.0)
            optimiser.update(trainee.parameters, clipped, 1e-3)
        runs.append([leaf.tobytes() for leaf in named(back(trainee.parameters, xp)).values()])
    assert runs[0] == runs[1]


def test_a_step_as_a_graph_is_the_step(xp: ModuleType) -> None:
    """Recorded once, for batches whose rows belong to other tasks, while the parameters move."""
    row = Row("adaptation", **TINY)
    trainees, optimisers = [trainee_of(row, xp) for _ in range(2)], [AdamW(), AdamW()]
    trainees[1].graph = True
    for step in range(5):
        batch, found = batch_of(inputs_of(row)), []
        batch = batch._replace(tasks=list(np.roll(batch.tasks, step)), features=(1 + step) * batch.features)
        for trainee, optimiser in zip(trainees, optimisers, strict=True):
            loss, gradients = trainee.gradients(batch, np.random.default_rng(0))
            found.append(back((loss.utterances, gradients), xp))
            optimiser.update(trainee.parameters, gradients, 1e-3)
        assert_close(found[1], found[0], 1e-4)
    assert len(trainees[1]._graphs._recorded) == 1


def test_a_step_of_training_as_a_graph_is_the_step(xp: ModuleType) -> None:
    """With masks, running statistics and parameters that move; and what the model recognises meanwhile is its own."""
    row = Row("training", **TINY)
    trainees, optimisers = [trainee_of(row, xp) for _ in range(2)], [AdamW(), AdamW()]
    trainees[0].dropout = trainees[1].dropout = 0.2
    trainees[1].graph = True
    for step in range(5):
        batch = batch_of(inputs_of(row))._replace(features=inputs_of(row)["features"][::-1] + step)
        found = [trainee.gradients(batch, np.random.default_rng(step)) for trainee in trainees]
        assert_close_to_the_largest(back(found[1][1], xp), back(found[0][1], xp))
        assert_close((back(found[1][0].utterances, xp),), (back(found[0][0].utterances, xp),), 1e-4)
        assert_close(*(back(trainee.recogniser.model.statistics, xp) for trainee in trainees[::-1]), 1e-4)
        for trainee, optimiser in zip(trainees, optimisers, strict=True):
            optimiser.update(trainee.parameters, found[0][1], 1e-3)
        heard = [
            infer_parts(trainee.recogniser, list(batch.features), None, batch.tasks, graphs)
            for trainee, graphs in zip(trainees, (None, trainees[1]._inference), strict=True)
        ]
        assert_close(tuple(heard[1]), tuple(heard[0]), 1e-4)
    assert len(trainees[1]._graphs._recorded) == len(trainees[1]._inference._recorded) == 1


def test_recognition_as_a_graph_is_that_without(xp: ModuleType) -> None:
    row = Row("inference", **TINY)
    inputs = inputs_of(row)
    recogniser, hra = recogniser_of(row, inputs, xp), adapter_of(row, inputs, xp)
    graphs = InferenceGraphs(recogniser.model, hra)
    for step in range(4):
        features = [one[: 90 - 3 * n] * (1 + step) for n, one in enumerate(inputs["features"])]
        tasks = list(np.roll(inputs["tasks"], step))
        plain = infer_parts(recogniser, features, hra, tasks)
        assert_close(tuple(infer_parts(recogniser, features, hra, tasks, graphs)), tuple(plain), 1e-4)
    assert len(graphs._recorded) == 1


def test_masks_are_those_that_numpy_draws(xp: ModuleType) -> None:
    """Of more elements than threads, and the next mask behind them."""
    ours, numpys = np.random.default_rng(5), np.random.default_rng(5)
    for shape in ((3,), (16, 4, 16, 100, 144), (1000, 1001)):
        mask = xp.asnumpy(draw_keep(xp.zeros(1), ours, shape, rate=0.1))
        assert np.array_equal(mask, numpys.random(shape, np.float32) >= 0.1)
    assert ours.bit_generator.state == numpys.bit_generator.state


def test_the_optimiser_moves_as_on_the_cpu(xp: ModuleType) -> None:
    rng, moved = np.random.default_rng(0), []
    tree = {"W": rng.standard_normal((37, 19)).astype(np.float32), "b": rng.standard_normal(300).astype(np.float32)}
    gradients = map_leaves(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), tree)
    for module in (np, xp):
        p, optimiser = map_leaves(lambda leaf, module=module: module.array(leaf), tree), AdamW(decay=0.1)
        for scale in (1.0, 0.5, -2.0):
            g = map_leaves(lambda leaf, module=module, scale=scale: module.asarray(scale * leaf), gradients)
            optimiser.update(p, g, 1e-2)
        moved.append(back(p, xp))
    assert_close(moved[1], moved[0], 1e-5)


def test_two_runs_with_one_seed_give_the_same_bits(bench: Bench, tmp_path: Path, xp: ModuleType) -> None:
    runs = []
    for name in ("first", "second"):
        backbone, adapter = tmp_path / f"{name}-backbone", tmp_path / f"{name}-adapter"
        assert main(pretrain(bench.manifest, backbone, "--steps", "4", "--device", "cuda")) == 0
        assert main(adapt(bench, adapter, "--state-size", "8", "--steps", "6", "--device", "auto")) == 0
        runs.append((named_tensors(backbone), named_tensors(adapter)))
    assert runs[0] == runs[1]


def named_tensors(run: Path) -> dict[str, dict[str, bytes]]:
    """The bytes of every tensor of a run's last step, by file; the order of a file's metadata is that of no one."""
    from safetensors.numpy import load

    files = {name: content for name, content in bits(run).items() if name.endswith(".safetensors")}
    return {name: {key: leaf.tobytes() for key, leaf in load(content).items()} for name, content in files.items()}


def test_one_checkpoint_writes_the_same_down_on_both(bench: Bench, tmp_path: Path, xp: ModuleType) -> None:
    """At most one word is another."""
    texts = []
    for device in ("cpu", "cuda"):
        file = tmp_path / f"{device}.jsonl"
        command = ["eval", "--backbone", str(bench.backbone), "--adapter", str(bench.adapter), "--device", device]
        rows = ["--manifest", str(bench.manifest), "--where", "speaker!=ann", "--hypotheses", str(file)]
        assert main([*command, *rows]) == 0
        texts.append([json.loads(line)["hypothesis"] for line in file.read_text("utf-8").splitlines()])
    assert sum_errors(word_errors(a, b) for a, b in zip(*texts, strict=True)).errors <= 1
    assert any(texts[0])


def test_memory_that_runs_out_is_told(
    bench: Bench, tmp_path: Path, xp: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a pool of its own, which holds nothing that could be used again."""
    pool = xp.cuda.MemoryPool()
    pool.set_limit(size=1 << 17)
    with xp.cuda.using_allocator(pool.malloc):
        assert main(adapt(bench, tmp_path / "out", "--steps", "6", "--device", "cuda")) == 2
    said = capsys.readouterr().err
    assert "memory ran out" in said and "Out of memory allocating" in said and said.count("\n") == 1


def test_auto_takes_the_gpu(xp: ModuleType) -> None:
    assert array_module_for("auto") is xp
