"""How work is shared among threads: one setting rules, results keep their order, and BLAS gets its threads back."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minihra import threads as module
from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.cli import main
from minihra.evaluate import logits_of
from minihra.model import backward, ctc_loss, forward, infer, pack_labels
from minihra.ops import twins_in
from minihra.parts import LEAST_FRAMES, is_little, parts_of
from minihra.recogniser import Adapter, Recogniser
from minihra.speech.alphabet import Alphabet
from minihra.threads import alone, one_thread_blas, set_threads, share, threads, together
from minihra.trainees import Adaptation, Batch, Pretraining
from minihra.tree import Total, leaves, map_leaves
from tests.imports_of import ROOT
from tests.tiny import frozen_backbone


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before, blas = threads(), [library.num_threads for library in module._blas()]
    yield
    set_threads(before)
    for library, number in zip(module._blas(), blas, strict=True):
        library.set_num_threads(number)


def blas_threads() -> set[int]:
    return {library.num_threads for library in module._blas()}


def test_results_are_in_order_and_come_from_other_threads() -> None:
    set_threads(3)
    barrier = threading.Barrier(3, timeout=20)  # which fewer than three threads would never pass

    def task(n: int) -> tuple[int, bool, set[int]]:
        barrier.wait()
        return n, alone(), blas_threads()

    results = share([lambda n=n: task(n) for n in range(6)])
    assert results == [(n, True, {1}) for n in range(6)]
    assert blas_threads() == {3}


def test_one_thread_works_alone() -> None:
    set_threads(1)
    assert share([threading.get_ident] * 4) == [threading.get_ident()] * 4
    set_threads(2)
    assert not alone()


def test_the_caller_works_too_and_waits_for_the_others() -> None:
    set_threads(2)
    barrier, done = threading.Barrier(2, timeout=20), []

    def task(n: int) -> int:
        barrier.wait()
        if n == 0:
            raise ZeroDivisionError("the first")
        time.sleep(0.05)
        done.append(n)
        return threading.get_ident()

    assert threading.get_ident() in share([partial(task, n) for n in (1, 2)])
    assert not alone() and sorted(done) == [1, 2]
    with pytest.raises(ZeroDivisionError, match="the first"):
        share([partial(task, n) for n in (0, 3)])
    assert not alone() and done[2:] == [3] and blas_threads() == {2}


def test_a_single_task_keeps_the_threads_of_blas() -> None:
    set_threads(2)
    assert share([lambda: (threading.get_ident(), blas_threads())]) == [(threading.get_ident(), {2})]


def test_a_single_task_with_little_to_do_has_its_callers_thread_alone() -> None:
    set_threads(2)
    its_own = [(threading.get_ident(), True, {1})]
    assert share([lambda: (threading.get_ident(), alone(), blas_threads())], little=True) == its_own
    assert together([lambda total: (threading.get_ident(), alone(), blas_threads())], little=True) == its_own
    with pytest.raises(ZeroDivisionError):
        share([lambda: 1 // 0], little=True)
    assert not alone() and blas_threads() == {2}


def test_tasks_that_meet_add_up_what_they_bring() -> None:
    """In the order of the tasks, as often as they like, all at the same time and with one-thread BLAS."""
    set_threads(2)  # fewer than tasks
    values = (1e8, 1.0, -1e8, 1.0)  # 1 in this order, 0 in the other: float32 cannot hold 1e8 + 1

    def task(n: int, total: Total) -> tuple[float, Any, bool, set[int]]:
        first = total({"a": np.float32(values[n]), "b": np.arange(n, n + 2)})
        for _ in range(200):  # nobody reads what belongs to the next time
            assert total((n,)) == (6,)
        return float(first["a"]), first["b"].tolist(), alone(), blas_threads()

    assert together([partial(task, n) for n in range(4)]) == [(1.0, [6, 10], True, {1})] * 4
    assert blas_threads() == {2}
    assert together([lambda total: (total("alone"), blas_threads())]) == [("alone", {2})]


def test_nobody_waits_for_a_task_that_failed() -> None:
    set_threads(2)

    def task(n: int, total: Total) -> None:
        if n == 1:
            raise ZeroDivisionError("the second")
        total(n)

    with pytest.raises(ZeroDivisionError, match="the second"):
        together([partial(task, n) for n in range(3)])
    assert blas_threads() == {2}


def test_blas_has_its_threads_back_when_the_last_caller_is_out() -> None:
    set_threads(2)
    with one_thread_blas():
        with one_thread_blas():
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}
    with pytest.raises(ZeroDivisionError):
        share([lambda: 1 // 0] * 2)
    assert blas_threads() == {2}


@pytest.mark.parametrize("number", [0, -1, "two", "1.5", ""])
def test_impossible_numbers(number: int | str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="whole number of at least 1, got"):
        set_threads(number)
    assert main(["params", "--threads", str(number)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_option_rules(capsys: pytest.CaptureFixture[str]) -> None:
    set_threads(1)
    assert main(["params", "--threads", "3"]) == 0
    assert threads() == 3 and blas_threads() == {3}
    assert main(["params"]) == 0
    assert threads() == 3


@pytest.mark.parametrize(("setting", "number"), [("3", "3"), (None, str(module.processors()))])
def test_the_environment_rules(setting: str | None, number: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MINIHRA_THREADS"}
    environment |= {} if setting is None else {"MINIHRA_THREADS": setting}
    code = "import numpy; from minihra import threads as t; print(t.threads(), t._blas()[0].num_threads)"
    printed = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    assert printed.stdout.split()[0].decode() == number
    assert setting is None or printed.stdout.split()[1].decode() == number


@pytest.mark.parametrize("number", ["1", "3"])
def test_the_setting_rules_from_the_first_share(number: str) -> None:
    """BLAS has one thread in each of several tasks, and with a single one and afterwards the number of the setting."""
    code = """
import numpy
from minihra import threads as t
count = lambda: t._blas()[0].num_threads
print(*t.share([count]), *t.share([count] * 4), count())"""
    environment = {**os.environ, "MINIHRA_THREADS": number}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    assert printed.stdout.decode().split() == [number, "1", "1", "1", "1", number]


def test_a_new_number_counts_when_the_products_are_done() -> None:
    set_threads(2)
    with one_thread_blas():
        set_threads(3)
        assert blas_threads() == {1}
    assert blas_threads() == {3}


def test_mistakes_are_told_with_their_row_of_the_batch() -> None:
    trainee, batch = adaptation()
    tasks, labels = [*batch.tasks], [*batch.labels]
    tasks[4], labels[4] = "nobody", [99]
    with pytest.raises(ValueError, match="row 4: unknown task 'nobody'"):
        trainee.gradients(batch._replace(tasks=tasks), np.random.default_rng(0))
    for one in (trainee, pretraining()[0]):
        with pytest.raises(ValueError, match="row 4: label 99"):
            one.gradients(batch._replace(labels=labels), np.random.default_rng(0))


@pytest.mark.parametrize("row", range(6))
def test_mistakes_are_told_with_any_row_of_the_batch(row: int) -> None:
    """Which stands elsewhere in its part, of one or several."""
    trainee, batch = adaptation()
    tasks, labels = [*batch.tasks], [*batch.labels]
    tasks[row], labels[row] = "nobody", [99]
    for number in (1, 3):
        set_threads(number)
        with pytest.raises(ValueError, match=f"row {row}: unknown task 'nobody'"):
            trainee.gradients(batch._replace(tasks=tasks), np.random.default_rng(0))
        for one in (trainee, pretraining()[0]):
            with pytest.raises(ValueError, match=f"row {row}: label 99"):
                one.gradients(batch._replace(labels=labels), np.random.default_rng(0))


def test_parts() -> None:
    rng = np.random.default_rng(3)
    for n in range(200):
        set_threads(n % 9 + 1)
        lengths = rng.integers(0, rng.integers(1, 2000), size=rng.integers(1, 40))
        parts = parts_of(lengths)
        assert sorted(np.concatenate(parts)) == list(range(len(lengths)))
        assert 1 <= len(parts) <= max(2, threads()) and all(len(part) for part in parts)
        ordered = lengths[np.concatenate(parts)]
        assert (np.diff(ordered) <= 0).all()  # the longest first
        frames = [lengths[part].sum() for part in parts]
        assert len(parts) == 1 or max(frames) <= lengths.sum() / len(parts) + 2 * lengths.max()
    for number, parts in ((1, 2), (2, 2), (3, 3), (5, 5), (9, 5)):
        set_threads(number)
        assert len(parts_of([LEAST_FRAMES] * 5)) == parts
    assert len(parts_of([LEAST_FRAMES // 10] * 5)) == 1
    set_threads(2)
    lengths, tasks = [LEAST_FRAMES] * 6 + [0], [*"bababa", "c"]
    assert [part.tolist() for part in parts_of(lengths)] == [[0, 1, 2], [3, 4, 5, 6]]
    assert [part.tolist() for part in parts_of(lengths, tasks)] == [[1, 0, 2], [3, 5, 4, 6]]
    assert [part.tolist() for part in parts_of([0, 0])] == [[0, 1]]


def adaptation() -> tuple[Adaptation, Batch]:
    backbone, rng = frozen_backbone(), np.random.default_rng(0)
    hra = HRA(backbone.config.width, 8, seed=2)
    for task in ("ann", "bob"):
        hra.add_task(task)
    hra.p = map_leaves(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), hra.p)
    lengths = np.array([900, 300, 0, 701, 850, 2])
    features = rng.standard_normal((6, 900, backbone.config.mels), np.float32)
    labels = [[1, 2], [3], [1], [2, 2, 1], [1], [1, 2, 3]]  # the third and the last are too short
    tasks = ["ann", "bob", "ann", "base", "bob", "ann"]
    trainee = Adaptation(Recogniser(backbone, None, Alphabet("abcdefgh")), Adapter(hra, "speaker", ""))
    return trainee, Batch(features, lengths, labels, tasks)


def test_parts_together_are_the_batch() -> None:
    """Loss, feasibility and gradients of a step are those of the whole batch at once."""
    trainee, batch = adaptation()
    set_threads(3)
    assert len(parts_of(batch.lengths)) == 3
    loss, gradients = trainee.gradients(batch, np.random.default_rng(0))
    whole, wanted = trainee.gradients_of(batch)
    assert loss.feasible.tolist() == whole.feasible.tolist() == [True, True, False, True, True, False]
    np.testing.assert_allclose(loss.utterances, whole.utterances, rtol=1e-5)
    np.testing.assert_allclose(loss.mean, whole.mean, rtol=1e-5)
    found, wanted = dict(leaves(gradients)), dict(leaves(wanted))
    assert found.keys() == wanted.keys()
    for name, g in wanted.items():
        assert np.abs(found[name] - g).max() <= 1e-4 * np.abs(g).max(), name  # sums in another order, in float32
        assert found[name].dtype == np.float32


def pretraining(dtype: type = np.float32) -> tuple[Pretraining, Batch]:
    _, batch = adaptation()
    recogniser = Recogniser(frozen_backbone(dtype), None, Alphabet("abcdefgh"))
    return Pretraining(recogniser, dropout=0.2), batch._replace(features=batch.features.astype(dtype))


def test_pretraining_in_parts_is_that_of_the_batch() -> None:
    """Loss, gradients and running statistics, with dropout, padding and utterances that are too short."""
    results = []
    for number in (1, 3):
        trainee, batch = pretraining(np.float64)
        set_threads(number)
        assert len(parts_of(batch.lengths, least=1)) == number
        loss, gradients = trainee.gradients(batch, np.random.default_rng(0))
        results.append((loss, dict(leaves((gradients, trainee.recogniser.model.statistics)))))
    (loss, found), (whole_loss, wanted) = reversed(results)
    assert loss.feasible.tolist() == whole_loss.feasible.tolist() == [True, True, False, True, True, False]
    np.testing.assert_allclose(loss.utterances, whole_loss.utterances, rtol=1e-11)
    np.testing.assert_allclose(loss.mean, whole_loss.mean, rtol=1e-11)
    assert found.keys() == wanted.keys()
    largest = max(np.abs(g).max() for g in wanted.values())
    for name, g in wanted.items():  # the biases before a norm have no gradient but for rounding
        assert np.abs(found[name] - g).max() <= 1e-11 * max(np.abs(g).max(), 1e-3 * largest), name


def test_pretraining_gives_the_same_bits_again() -> None:
    set_threads(2)
    bits = []
    for _ in range(4):
        trainee, batch = pretraining()
        loss, gradients = trainee.gradients(batch, np.random.default_rng(0))
        tree = (loss.mean, gradients, trainee.recogniser.model.statistics)
        bits.append([leaf.tobytes() for _, leaf in leaves(tree)])
    assert bits == bits[:1] * 4


def test_an_adaptation_computes_layers_again_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    trainee, batch = adaptation()
    seen = []

    def spied(*given: Any, recompute: bool) -> Any:
        seen.append(recompute)
        return forward(*given, recompute=recompute)

    monkeypatch.setattr("minihra.trainees.forward", spied)
    gradients = []
    for recompute in (False, True):
        _, found = replace(trainee, recompute=recompute).gradients(batch, np.random.default_rng(0))
        gradients.append([leaf.tobytes() for _, leaf in leaves(found)])
    half = len(seen) // 2
    assert seen == [False] * half + [True] * half and gradients[0] == gradients[1]


def test_recordings_are_recognised_in_parts_as_alone() -> None:
    """Each with the head of its own task, and in the order in which they were given."""
    trainee, batch = adaptation()
    hra, recogniser = trainee.adapter.hra, trainee.recogniser._replace(features=SimpleNamespace(hop=0.01))
    features = [row[: max(1, length)] for row, length in zip(batch.features, batch.lengths, strict=True)]
    set_threads(3)
    assert len(parts_of([len(one) for one in features])) == 3
    together = logits_of(recogniser, features, hra, batch.tasks)
    for logits, one, task in zip(together, features, batch.tasks, strict=True):
        (alone_logits,) = logits_of(recogniser, [one], hra, [task])
        np.testing.assert_allclose(logits, alone_logits, rtol=1e-4, atol=1e-4)


def test_the_same_threads_give_the_same_bits() -> None:
    """And two what one gives; others add more parts."""
    trainee, batch = adaptation()

    def bits() -> list[bytes]:
        loss, gradients = trainee.gradients(batch, np.random.default_rng(0))
        return [loss.mean.tobytes(), *(leaf.tobytes() for _, leaf in leaves(gradients))]

    found = {}
    for number in (1, 2, 3, 1, 2, 3):
        set_threads(number)
        assert found.setdefault(number, bits()) == bits()
    assert found[1] == found[2] != found[3]


def test_a_little_batch_gives_what_one_thread_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bits of it, as the threads share nothing; a larger single part has several threads."""
    seen = []

    def spied(*given: Any, **how: Any) -> Any:
        seen.append(alone())
        return forward(*given, **how)

    monkeypatch.setattr("minihra.trainees.forward", spied)
    monkeypatch.setattr("minihra.evaluate.infer", lambda *given: (seen.append(alone()), infer(*given))[1])
    (adapting, batch), (pretraining_, _) = adaptation(), pretraining()
    little = batch._replace(lengths=batch.lengths // 4, features=batch.features[:, :225])
    features = [row[: max(1, n)] for row, n in zip(little.features, little.lengths, strict=True)]
    statistics = pretraining_.recogniser.model.statistics
    assert is_little(little.lengths, 64) and not is_little(little.lengths, 96)
    hop, bits = SimpleNamespace(hop=0.01), []
    for number in (1, 2, 3):
        set_threads(number)
        pretraining_._take(statistics)
        trees = [one.gradients(little, np.random.default_rng(0)) for one in (adapting, pretraining_)]
        logits = logits_of(adapting.recogniser._replace(features=hop), features, adapting.adapter.hra, batch.tasks)
        bits.append([leaf.tobytes() for _, leaf in leaves((tuple(trees), tuple(logits)))])
    assert bits == bits[:1] * 3 and seen == [True] * 9
    monkeypatch.setattr("minihra.parts.LITTLE", 1)
    for one in (adapting, pretraining_):
        one.gradients(little, np.random.default_rng(0))
    logits_of(adapting.recogniser._replace(features=hop), features, adapting.adapter.hra, batch.tasks)
    assert seen[9:] == [False] * 3


def test_two_users_at_once() -> None:
    """Two Python threads may call the library together, each with a model of its own."""
    set_threads(2)

    def losses() -> list[float]:
        (adapted, batch), (pretrained, _) = adaptation(), pretraining()
        return [one.gradients(batch, np.random.default_rng(0))[0].mean for one in (adapted, pretrained)]

    wanted, found = losses(), []

    def user() -> None:
        found.extend(losses() for _ in range(3))

    users = [threading.Thread(target=user) for _ in range(2)]
    for one in users:
        one.start()
    for one in users:
        one.join()
    assert found == [wanted] * 6
    assert blas_threads() == {2}


@pytest.mark.parametrize("frozen", [True, False], ids=["adaptation", "pre-training"])
def test_threads_share_a_single_recording(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows: as many threads give the same bits each time, to two users at once, too, and others round otherwise."""
    pytest.importorskip("numba", reason="the twins for the CPU need numba")
    shared: Counter[str] = Counter()

    def spied(name: str, loop: Callable) -> Callable:
        return lambda *arrays: (shared.update([name]), loop(*arrays))

    for name in ("_shared_product", "_shared_turned_product"):
        monkeypatch.setattr(twins_in("product"), name, spied(name, getattr(twins_in("product"), name)))
    model = replace(initial_conformer(ConformerConfig(labels=9, mels=16, width=48, layers=2), seed=1), frozen=frozen)
    rng, hra = np.random.default_rng(0), HRA(48, 32, seed=2)
    hra.add_task("ann")
    hra.p = map_leaves(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), hra.p)
    features, lengths, labels = rng.standard_normal((1, 640, 16), np.float32), np.array([640]), pack_labels([[1, 2]], 9)

    def step() -> dict[str, Array]:
        edit = hra.edit(["ann"]) if frozen else None
        training = None if frozen else model.draw_dropout(0.0, 1, 640, rng)
        logits, cache = forward(model, features, lengths, edit, training)
        gradients = backward(ctc_loss(logits, cache.context.valid, labels)[1], cache)
        return {"logits": logits, **dict(leaves(gradients.adapter if frozen else gradients.backbone))}

    def many(found: list[dict[str, Array]]) -> None:
        found.extend(step() for _ in range(3))

    set_threads(1)
    wanted = step()
    assert not shared
    for number in (2, 3):
        set_threads(number)
        first, found = step(), []
        assert shared["_shared_product"] > 10 and shared["_shared_turned_product"] > 2
        users = [threading.Thread(target=many, args=[found]) for _ in range(2)]
        for one in users:
            one.start()
        for one in users:
            one.join()
        for name, array in wanted.items():
            assert np.abs(first[name] - array).max() <= 1e-4 * np.abs(array).max(), name
            assert [one[name].tobytes() for one in found] == [first[name].tobytes()] * 6, name
