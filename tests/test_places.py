"""Threads that have met on a processor keep apart; who called is free again afterwards, and so are helpers later."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minihra import places
from minihra import threads as module
from minihra.ops import twins_in
from minihra.places import Place, anywhere, have_met, here, must_keep_apart, places_of, staying
from minihra.threads import set_threads, share, threads, together

pytestmark = pytest.mark.skipif(here() is None, reason="threads can be told where to run on Linux alone")
RUNNING = places.running
needs_two = pytest.mark.skipif(here() is None or len(anywhere()) < 2, reason="needs two processors")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody else wants to run, and no threads have met."""
    before, number = anywhere(), threads()
    monkeypatch.setattr(places, "running", lambda: 1)
    monkeypatch.setattr(places._State, "until", 0.0)
    yield
    assert anywhere() == before
    set_threads(number)


def test_who_has_met_keeps_apart_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(places, "time", SimpleNamespace(perf_counter=lambda: now))
    assert not must_keep_apart()
    have_met()
    assert must_keep_apart()
    now += places.HOLDS - 0.1
    assert must_keep_apart()
    now += 0.2
    assert not must_keep_apart()
    monkeypatch.setattr(places, "running", lambda: os.cpu_count() + 1)
    have_met()
    assert not must_keep_apart()


def test_what_runs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            np.linalg.inv(np.eye(200))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    counts = [RUNNING() for _ in range(200)]
    stop.set()
    for worker in workers:
        worker.join()
    assert min(counts) >= 1 and max(counts) >= 2
    monkeypatch.setattr(places, "Path", lambda _: Path("/nowhere"))
    assert RUNNING() == np.inf


def test_each_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "anywhere", lambda: frozenset({1, 2, 5, 6, 9}))
    assert places_of(2, 5) == [{5}, {1, 2, 6, 9}]
    assert places_of(3, 5) == [{5}, {1, 6}, {2, 9}]
    assert places_of(5, 1) == [{1}, {2}, {5}, {6}, {9}]
    for number, first in ((1, 5), (6, 5), (2, 3), (2, None)):
        assert places_of(number, first) is None


def test_who_stays_may_be_anywhere_afterwards() -> None:
    before = anywhere()
    one = frozenset({max(before)})
    with staying(one):
        assert anywhere() == one and here() == max(before)
    assert anywhere() == before
    with pytest.raises(KeyError), staying(one):
        raise KeyError
    assert anywhere() == before
    with staying(None):
        assert anywhere() == before


def seen_by(run: Callable[[list], Any], number: int) -> list[Place]:
    """Where each of so many tasks may run, which all run at the same time."""
    barrier = threading.Barrier(number, timeout=20)

    def look(*_: Any) -> Place:
        barrier.wait()
        return anywhere()

    return run([look] * number)


@needs_two
@pytest.mark.parametrize("run", [share, together])
def test_tasks_keep_apart(run: Callable[[list], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they have been told to, and nowhere else."""
    monkeypatch.setattr(module, "have_met", lambda: None)  # as they may, in fact
    set_threads(2)
    free = anywhere()
    for met in (False, True, True, False):
        places._State.until = np.inf if met else 0.0
        first, second = seen_by(run, 2)
        if met:
            assert len(first) == 1 or len(second) == 1
            assert not first & second and first | second == free
        else:
            assert first == second == free
        assert anywhere() == free


@needs_two
@pytest.mark.parametrize("run", [share, together])
def test_who_meets_is_noted(run: Callable[[list], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that finds itself where the caller is, and goes elsewhere; or a task where another one began."""
    set_threads(2)
    one = min(anywhere())
    for file in (module, places):
        monkeypatch.setattr(file, "here", lambda: one)
    seen = seen_by(run, 2)
    assert must_keep_apart()
    assert (anywhere() - {one} in seen) == (run is share)


@needs_two
@pytest.mark.parametrize("run", [share, together])
def test_tasks_are_watched(run: Callable[[list], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin on processors of their own, and each is found elsewhere in the end."""
    set_threads(2)
    numbers, caller, home = count(10_000), threading.current_thread(), min(anywhere())
    monkeypatch.setattr(module, "here", lambda: home if threading.current_thread() is caller else next(numbers))
    still = iter([0] * 8)
    monkeypatch.setattr(places, "here", lambda: next(still))
    seen_by(run, 2)
    assert not must_keep_apart()
    monkeypatch.setattr(places, "here", lambda: next(numbers))
    seen_by(run, 2)
    assert must_keep_apart()


@needs_two
def test_who_is_moved_has_met(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = iter((0, 1, 1, 1))
    monkeypatch.setattr(places, "here", lambda: next(numbers))
    with places.watched(None):
        pass
    assert not must_keep_apart()
    with places.watched([frozenset({0}), frozenset({1})]):
        pass
    assert not must_keep_apart()
    numbers = iter((0, 1))
    with places.watched([frozenset({0}), frozenset({1})]):
        pass
    assert must_keep_apart()


def openmp_or_skip() -> ModuleType:
    openmp = pytest.importorskip("minihra.kernels.cpu.openmp", reason="the twins for the CPU need numba")
    if not openmp.OPENMP:
        pytest.skip("Numba has no OpenMP here")
    return openmp


@needs_two
def test_helpers_of_openmp_go_where_the_caller_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are found beside it; when nobody need keep apart any longer they are free again."""
    openmp, free, sent = openmp_or_skip(), anywhere(), []
    meet, team = openmp.meet, openmp._Team()

    def confined(place: Place) -> int:
        threads = [os.sched_getaffinity(int(one)) for one in os.listdir("/proc/self/task")]
        return threads.count({*place})

    def spied(number: int, its: Sequence[Place] = ()) -> list[int]:
        sent.append([*its])
        found = meet(number, its)
        return found if its else beside

    monkeypatch.setattr(openmp, "meet", spied)
    beside = [0, 1]
    team.look(2)
    assert sent == [[]] and team.places is None and not must_keep_apart()
    meet(2, [free, free])
    before, beside = [confined(frozenset({one})) for one in range(max(free) + 1)], [1, 1]
    team.look(2)
    assert len(team.places[1]) > 1 or confined(team.places[1]) == before[min(team.places[1])] + 1
    assert must_keep_apart() and team.home() == team.places[0] and sent[1:] == [[], team.places]
    with staying(team.home()):
        caller, helper = meet(2)
        assert {caller} == team.home() and helper in team.places[1]
    team.look(2)
    assert len(sent) == 3
    places._State.until, beside = 0.0, [0, 1]
    team.look(2)
    assert sent[3:] == [[free, free], []] and team.places is None


@needs_two
def test_a_loop_runs_at_home_and_leaves_the_caller_free(monkeypatch: pytest.MonkeyPatch) -> None:
    openmp, seen, home = openmp_or_skip(), [], frozenset({max(anywhere())})

    def loop(*arguments: int) -> None:
        seen.append((anywhere(), arguments))

    monkeypatch.setattr(openmp, "compile_loop", lambda *_, **__: loop)
    shared = openmp.compiled_for_threads(lambda x, y: None)
    for its_home in (home, None):
        monkeypatch.setattr(openmp, "_TEAM", SimpleNamespace(home=lambda its_home=its_home: its_home))
        shared(1, 2)
    assert seen == [(home, (1, 2)), (anywhere(), (1, 2))]


def test_where_threads_cannot_be_told_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError

    assert places.may_move()
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_setaffinity", forbidden)
        assert not places.may_move()
        patch.delattr(os, "sched_setaffinity")
        assert not places.may_move()
    set_threads(2)
    with monkeypatch.context() as patch:
        patch.setattr(places, "_getcpu", None)
        patch.setattr(places._State, "until", np.inf)
        for name in ("sched_setaffinity", "sched_getaffinity"):
            patch.delattr(os, name)
        assert here() is None and share([lambda: 1, lambda: 2]) == [1, 2]
        assert together([lambda total: total(np.ones(1))[0]] * 2) == [2, 2]
        if (file := twins_in("product")) is not None:
            patch.setattr(twins_in("openmp"), "_TEAM", twins_in("openmp")._Team())
            x, W = np.ones((96, 64), np.float32), np.ones((64, 64), np.float32)
            assert (file.product(x, W) == 64).all()
