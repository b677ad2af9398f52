"""The twins of mixed-task heads for the GPU: what the cases of the switchboard are too small for."""

from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement, pairwise
from typing import Any

import numpy as np
import pytest

from minihra.adapters.controller import group_tasks
from minihra.bench_rows import PATTERNS, tasks_by
from minihra.kernels.cuda import heads as twins
from minihra.kernels.cuda.launch import Source
from minihra.layers import heads as reference
from minihra.layers.heads import FFNHeadParams, HeadParams, Segments
from minihra.layers.linear import LinearParams
from minihra.tree import Tree, leaves, map_leaves
from tests.cuda_emulator import emulator
from tests.cuda_twins import emulated
from tests.test_nvrtc import log_of, nvrtc  # noqa: F401
from tests.test_twins import assert_same, named

KINDS = ("linear", "ffn")
ODD = (("ann", 0, 1), ("bob", 1, 1), ("eve", 1, 4), ("joe", 4, 5), ("zoe", 5, 5))
"""Segments of one row, of none, of several."""
EVEN = ((0, 1, 2, 3, 4), (1, 2, 3, 4, 5))
"""Where others begin and end."""


@pytest.fixture(autouse=True)
def no_tables() -> Iterator[None]:
    """A test finds no table of another, and leaves none."""
    twins.tables_of.cache_clear()
    yield
    twins.tables_of.cache_clear()


def head_of(kind: str, H: int, C: int, rng: np.random.Generator, R: int = 21, dtype: type = np.float32) -> HeadParams:
    def linear(I: int, O: int) -> LinearParams:
        return LinearParams(rng.standard_normal((I, O)).astype(dtype) / I, rng.standard_normal(O).astype(dtype))

    return linear(H, C) if kind == "linear" else FFNHeadParams(linear(H, R), linear(R, C))


class Inputs:
    """Of a batch: states, output gradients, and the heads of its tasks."""

    def __init__(
        self, kind: str, segments: Segments, T: int, H: int, C: int, dtype: type = np.float32, **sizes: int
    ) -> None:
        rng, B = np.random.default_rng(7), segments[-1][2]
        self.h = rng.standard_normal((B, T, H)).astype(dtype)
        self.do = rng.standard_normal((B, T, C)).astype(dtype)
        self.heads = {task: head_of(kind, H, C, rng, dtype=dtype, **sizes) for task, _, _ in segments}
        self.segments = segments


def both(module: Any, inputs: Inputs, params: bool = True) -> list[Tree]:
    """Output, cache, dh and the gradients of the heads."""
    o, cache = module.grouped_heads_forward(inputs.h, inputs.heads, segments=inputs.segments, params=params)
    return [o, cache, *module.grouped_heads_backward(inputs.do, cache)]


def bits(trees: Sequence[Tree]) -> list[bytes]:
    return [a.tobytes() for a in named(tuple(trees)).values()]


def assert_twin(inputs: Inputs, dtype: type = np.float32) -> None:
    """The same results, and each other's caches."""
    wanted = both(reference, inputs)
    with emulated():
        found = both(twins, inputs)
        crossed = twins.grouped_heads_backward(inputs.do, wanted[1])
    assert list(named(tuple(found))) == list(named(tuple(wanted)))
    assert_same(tuple(found), tuple(wanted), dtype)
    assert_same(crossed, tuple(wanted[2:]), dtype)
    assert_same(reference.grouped_heads_backward(inputs.do, found[1]), tuple(wanted[2:]), dtype)


@pytest.mark.parametrize("tasks", [1, 5, 70])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern: str, tasks: int) -> None:
    names = tasks_by(pattern, tasks, max(16, tasks), np.random.default_rng(3))
    segments = group_tasks(names, set(names)).segments
    for kind in KINDS:
        assert_twin(Inputs(kind, segments, 25 if tasks < 70 else 7, 11, 19))


@pytest.mark.parametrize("T", [1, 25, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(kind: str, T: int) -> None:
    assert_twin(Inputs(kind, ODD, T, 17, 35))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("H", "C", "R"), [(1, 1, 1), (2, 65, 3), (16, 48, 16), (17, 49, 15), (64, 144, 64), (65, 33, 31), (130, 7, 129)]
)
def test_widths(H: int, C: int, R: int, dtype: type) -> None:
    """Also those that are whole numbers of tiles and of steps, or one more, or less."""
    assert_twin(Inputs("ffn", (("ann", 0, 2), ("bob", 2, 3)), 35, H, C, dtype, R=R), dtype)


@pytest.mark.parametrize("columns", [4, 3, 2])
def test_each_width_of_a_tile(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "columns_for", lambda width, rows: columns)
    assert_twin(Inputs("ffn", ODD, 33, 70, 130, R=65))


def test_the_width_of_a_tile() -> None:
    few, many = 10, 1000
    assert [twins.columns_for(144, n) for n in (few, many)] == [3, 3]  # 48 is a third of it
    assert [twins.columns_for(64, n) for n in (few, many)] == [2, 4]
    assert [twins.columns_for(96, n) for n in (few, many)] == [2, 3]
    assert [twins.columns_for(512, n) for n in (few, many)] == [2, 4]
    assert twins.columns_for(1, many) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_slices(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of many frames are cut, those of few are not, and a task without frames has a gradient of zeros."""
    monkeypatch.setattr(twins, "LEAST", 13)
    monkeypatch.setattr(twins, "SLICES", 9)
    segments = (("ann", 0, 1), ("bob", 1, 1), ("eve", 1, 9), ("joe", 9, 10), ("zoe", 10, 12))
    inputs = Inputs(kind, segments, 21, 18, 50)
    assert_twin(inputs)
    with emulated():
        *_, dheads = both(twins, inputs)
    assert all(not leaf.any() for _, leaf in leaves(dheads["bob"]))
    assert twins.pieces(np.array([0, 5, 5, 12]), 3, fewest=1)[0].tolist() == [0, 0, 1, 2, 2, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_frozen(kind: str) -> None:
    inputs = Inputs(kind, ODD, 9, 17, 35)
    wanted = both(reference, inputs, params=False)
    with emulated():
        found = both(twins, inputs, params=False)
    assert_same(tuple(found), tuple(wanted), np.float32)
    assert named(found[3]) == named(wanted[3]) == {} and found[3].keys() == wanted[3].keys()
    assert list(named(found[1])) == list(named(wanted[1]))


def test_heads_with_and_without_bias() -> None:
    inputs = Inputs("linear", ODD, 9, 17, 35)
    inputs.heads |= {task: inputs.heads[task]._replace(b=None) for task in ("ann", "joe")}
    assert_twin(inputs)


def test_a_frame_that_is_not_a_number_spoils_its_own_task_alone() -> None:
    for kind in KINDS:
        inputs = Inputs(kind, ODD, 9, 17, 35)
        with emulated():
            sound = both(twins, inputs)
            inputs.h[0, 3], inputs.do[0, 3] = np.nan, np.nan
            o, _, dh, dheads = both(twins, inputs)
        rest = np.ones(o.shape[:2], bool)
        rest[0, 3] = False
        for found, before in ((o, sound[0]), (dh, sound[2])):
            assert np.array_equal(found[rest], before[rest]) and np.isnan(found[0, 3]).all()
        del dheads["ann"], sound[3]["ann"]
        assert bits([dheads]) == bits([sound[3]])


def test_states_and_gradients_that_do_not_lie_row_by_row() -> None:
    inputs = Inputs("ffn", ODD, 9, 17, 35)
    wanted = both(reference, inputs)
    inputs.h = np.ascontiguousarray(inputs.h.swapaxes(0, 1)).swapaxes(0, 1)
    inputs.do = np.repeat(inputs.do, 2, axis=2)[..., ::2]
    with emulated():
        assert_same(tuple(both(twins, inputs)), tuple(wanted), np.float32)


def test_a_batch_without_frames() -> None:
    inputs = Inputs("ffn", ODD, 0, 17, 35)
    with emulated():
        o, _, dh, dheads = both(twins, inputs)
    assert o.shape == (5, 0, 35) and dh.shape == (5, 0, 17)
    assert all(not leaf.any() for _, leaf in leaves(dheads))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_in_any_order_give_the_same_bits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins, "LEAST", 30)
    inputs, results = Inputs(kind, ODD, 70, 17, 50), []
    for order, seed in ((0, 0), (0, 0), (1, 0), (2, 1), (2, 2)):
        with emulated(order=order, seed=seed):
            results.append(bits(both(twins, inputs)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("columns", [3, 2])
def test_checked(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No race, no read of what nobody wrote, no access outside of an array."""
    monkeypatch.setattr(twins, "columns_for", lambda width, rows: columns)
    monkeypatch.setattr(twins, "LEAST", 30)
    with emulated(checked=True):
        both(twins, Inputs("ffn", ODD, 41, 17, 50, R=67))


REFUSED = {
    "two kinds": lambda heads, rng: {"bob": head_of("ffn", 17, 35, rng)},
    "a strided matrix": lambda heads, rng: {"bob": heads["bob"]._replace(W=np.asfortranarray(heads["bob"].W))},
    "a strided bias": lambda heads, rng: {"eve": heads["eve"]._replace(b=np.repeat(heads["eve"].b, 2)[::2])},
    "two sizes": lambda heads, rng: {"eve": head_of("linear", 17, 36, rng)},
    "two types": lambda heads, rng: {"eve": map_leaves(lambda a: a.astype(np.float64), heads["eve"])},
    "another type": lambda heads, rng: map_leaves(lambda a: a.astype(np.float64), heads),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_left_to_the_reference(why: str) -> None:
    inputs = Inputs("linear", ODD, 9, 17, 35)
    _, cache = reference.grouped_heads_forward(inputs.h, inputs.heads, segments=ODD)
    changed = inputs.heads | REFUSED[why](inputs.heads, np.random.default_rng(1))
    assert twins.grouped_heads_forward(inputs.h, changed, segments=ODD) is NotImplemented
    cache = cache._replace(heads={task: its._replace(p=changed[task]) for task, its in cache.heads.items()})
    if why == "two kinds":
        cache.heads["bob"] = reference.ffn_head_forward(inputs.h[1:1], changed["bob"])[1]
    assert twins.grouped_heads_backward(inputs.do, cache) is NotImplemented


def test_states_of_another_width_are_left_to_the_reference() -> None:
    inputs = Inputs("linear", ODD, 9, 17, 35)
    assert twins.grouped_heads_forward(inputs.h[..., :16], inputs.heads, segments=ODD) is NotImplemented


def test_segments_that_are_not_the_batch_are_left_to_the_reference() -> None:
    inputs = Inputs("linear", ODD, 9, 17, 35)
    with emulated():
        _, cache = twins.grouped_heads_forward(inputs.h, inputs.heads, segments=ODD)
    for segments in ((), ODD[:3], (*ODD[:3], ("joe", 3, 5)), ODD[2:]):
        assert twins.grouped_heads_forward(inputs.h, inputs.heads, segments=segments) is NotImplemented
        assert twins.grouped_heads_backward(inputs.do, cache._replace(segments=segments)) is NotImplemented


def test_a_batch_has_its_tables_once() -> None:
    """They are another batch's where frames, segments or heads differ; the values of parameters may change in place."""
    inputs = Inputs("linear", ODD, 9, 17, 35)
    with emulated():
        first = both(twins, inputs)
        for _ in range(3):  # layers
            both(twins, inputs)
        assert twins.tables_of.cache_info().misses == 1
        for leaf in inputs.heads["eve"]:
            np.multiply(leaf, 2, out=leaf)
        again = both(twins, inputs)
        assert twins.tables_of.cache_info().misses == 1
        assert_same(tuple(again), tuple(both(reference, inputs)), np.float32)
        assert not np.array_equal(first[0], again[0])
        inputs.heads["eve"] = map_leaves(np.copy, inputs.heads["ann"])
        assert_same(tuple(both(twins, inputs)), tuple(both(reference, inputs)), np.float32)
        inputs.h, inputs.do = inputs.h[:, :7], inputs.do[:, :7]
        assert_same(tuple(both(twins, inputs)), tuple(both(reference, inputs)), np.float32)
    assert twins.tables_of.cache_info().misses == 3


def test_tables_of_batches_of_a_size_have_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the segments are: a graph reads one batch's tables where it was recorded with another's."""
    monkeypatch.setattr(twins, "LEAST", 30)
    monkeypatch.setattr(twins, "SLICES", 5)
    head = head_of("linear", 2, 2, np.random.default_rng(1))
    for T in (1, 25, 64, 65, 100):
        shapes = set()
        for bounds in combinations_with_replacement(range(7), 2):
            edges = [0, *bounds, 6]
            segments = tuple((str(n), *edge) for n, edge in enumerate(pairwise(edges)))
            shapes.add(twins.packed_tables(dict.fromkeys("012", head), segments, T).shape)
        assert len(shapes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_tables_may_be_written_over(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph's are: the kernels then compute the other batch."""
    monkeypatch.setattr(twins, "LEAST", 20)
    one, other = (Inputs(kind, segments, 23, 17, 35) for segments in (ODD, tuple(zip("vwxyz", *EVEN, strict=True))))
    its = [twins.packed_tables(inputs.heads, inputs.segments, 23) for inputs in (other, one)]
    wanted = both(reference, other)
    maps = [leaf for _, leaf in leaves(other.heads)]
    its[1][...] = its[0]
    one.h, one.do = other.h, other.do
    with emulated(), emulator.known(*maps):
        o, _, dh, dheads = both(twins, one)
        assert_same((o, dh, tuple(dheads.values())), (wanted[0], wanted[2], tuple(wanted[3].values())), np.float32)
        again = twins.packed_tables(one.heads, ODD, 23)
    assert not np.shares_memory(again, its[1])
    assert twins.packed_tables({}, (), 23) is None


def test_gradients_are_arrays_of_their_own() -> None:
    """Views of one, of which none covers another: whoever adds to one in place changes no other."""
    inputs = Inputs("ffn", ODD, 9, 17, 35)
    with emulated():
        *_, dheads = both(twins, inputs)
    arrays = [leaf for _, leaf in leaves(dheads)]
    assert not any(np.shares_memory(a, b) for a, b in combinations(arrays, 2))
    assert all(a.flags.c_contiguous for a in arrays)


def test_views_are_joined_without_a_copy() -> None:
    x = np.arange(60.0).reshape(5, 4, 3)
    with emulated():
        joined = twins.whole([x[:0], x[:2], x[2:2], x[2:]], 5)
        copied = twins.whole([x[:2], x[2:].copy()], 5)
    assert np.array_equal(joined, x) and np.shares_memory(joined, x) and joined.flags.c_contiguous
    assert np.array_equal(copied, x) and not np.shares_memory(copied, x)


@pytest.mark.parametrize("columns", [3, 2])
def test_kernels_of_other_tiles_compile(columns: int, nvrtc: Any) -> None:  # noqa: F811
    """test_nvrtc.py compiles those of 4 columns."""
    text = Source("heads.cu").text
    assert log_of(nvrtc, text, "-arch=sm_80", "-DREAL=float", f"-DCOLUMNS={columns}") == (True, "")
