"""The optimiser's step over a tree, clipping and the schedule. Its equations are compared with torch in test_parity."""

import math
from itertools import pairwise

import numpy as np
import pytest

from minihra.layers.linear import LinearParams
from minihra.optim import AdamW, clip_by_global_norm, warmup_cosine
from minihra.tree import leaves


def params(dtype: type = np.float64) -> dict[str, LinearParams]:
    return {task: LinearParams(np.full((2, 3), 2, dtype), np.full(3, 2, dtype)) for task in ("ann", "bob")}


def test_the_step_writes_in_place_and_keeps_the_type() -> None:
    p = params(np.float32)
    arrays = dict(leaves(p))
    optimiser = AdamW(decay=0.1)
    optimiser.update(p, params(np.float32), lr=0.01)
    addresses = {name: (m, v) for name, (m, v, _) in optimiser.moments.items()}
    optimiser.update(p, params(np.float32), lr=0.01)
    assert all(leaf is arrays[name] and leaf.dtype == np.float32 for name, leaf in leaves(p))
    for name, (m, v, step) in optimiser.moments.items():
        assert m is addresses[name][0] and v is addresses[name][1]
        assert m.dtype == v.dtype == np.float32
        assert step == 2 and step.dtype == np.float64 and step.shape == ()


def test_the_first_step_is_the_learning_rate_in_the_direction_of_the_gradient() -> None:
    p = params()
    AdamW(eps=0).update(p, {"ann": LinearParams(np.full((2, 3), -5.0), np.full(3, 1e-6))}, lr=0.25)
    assert np.allclose(p["ann"].W, 2.25, rtol=1e-15) and np.allclose(p["ann"].b, 1.75, rtol=1e-15)


def test_decay_shrinks_matrices_and_not_vectors() -> None:
    p = params()
    AdamW(decay=0.5).update(p, {"ann": LinearParams(np.zeros((2, 3)), np.zeros(3))}, lr=0.1)
    assert np.allclose(p["ann"].W, 2 * (1 - 0.1 * 0.5), rtol=1e-15)
    assert (p["ann"].b == 2).all()


def test_a_leaf_without_a_gradient_keeps_value_moments_and_count() -> None:
    p, optimiser = params(), AdamW(decay=0.1)
    optimiser.update(p, params(), lr=0.1)
    kept = {name: array.copy() for name, array in leaves({"p": p["bob"], "m": optimiser.moments["bob.b"]})}
    optimiser.update(p, {"ann": params()["ann"], "bob": LinearParams(np.ones((2, 3)), None)}, lr=0.1)
    optimiser.update(p, {"ann": params()["ann"]}, lr=0.1)
    optimiser.update(p, None, lr=0.1)
    assert {name: int(m.step) for name, m in optimiser.moments.items()} == {
        "ann.W": 3,
        "ann.b": 3,
        "bob.W": 2,
        "bob.b": 1,
    }
    now = dict(leaves({"p": p["bob"], "m": optimiser.moments["bob.b"]}))
    assert {name for name in kept if not np.array_equal(now[name], kept[name])} == {"p.W"}


def test_a_gradient_of_what_is_no_parameter_is_an_error() -> None:
    with pytest.raises(ValueError, match="what is no parameter: eve"):
        AdamW().update(params(), {"eve": np.ones(3)}, lr=0.1)


def test_a_step_does_not_look_at_what_has_no_gradient() -> None:
    """A step of a thousand loaded tasks costs what one of those in the batch does."""

    class Loaded(dict):
        def __iter__(self) -> None:
            raise AssertionError("all tasks are looked at")

        items = keys = values = __iter__

    tasks = Loaded({"ann": {"W": np.ones((2, 2)), "b": np.ones(2)}, "bob": {"W": np.ones((2, 2)), "b": np.ones(2)}})
    AdamW().clipped_update(tasks, {"bob": {"W": np.ones((2, 2)), "b": None}}, lr=0.1, limit=1.0)
    assert (tasks["bob"]["W"] < 1).all() and (tasks["bob"]["b"] == 1).all() and (tasks["ann"]["W"] == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_scales_to_the_limit(dtype: type) -> None:
    grads = {"a": np.array([3.0, 0.0], dtype), "b": (np.array([4.0], dtype), None)}
    clipped, norm = clip_by_global_norm(grads, 2.5)
    assert norm == 5 and norm.dtype == dtype
    assert clipped["a"].tolist() == [1.5, 0.0] and clipped["b"][0].tolist() == [2.0] and clipped["b"][1] is None
    assert clipped["a"].dtype == dtype
    assert grads["a"].tolist() == [3.0, 0.0], "the argument was changed"


@pytest.mark.parametrize("values", [[3.0, -4.0], [0.3, 0.1], [0.0, 0.0]])
def test_clipping_moves_nothing_at_or_below_the_limit(values: list[float]) -> None:
    clipped, norm = clip_by_global_norm({"a": np.array(values)}, 5.0)
    assert clipped["a"].tolist() == values
    assert norm == pytest.approx(math.hypot(*values), rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_without_a_limit_moves_nothing(dtype: type) -> None:
    clipped, norm = clip_by_global_norm({"a": np.array([3e5, -4e5], dtype)}, math.inf)
    assert clipped["a"].tolist() == [3e5, -4e5] and norm == 5e5


@pytest.mark.parametrize("grads", [None, {"a": None}])
def test_clipping_takes_a_batch_without_gradients(grads: object) -> None:
    clipped, norm = clip_by_global_norm(grads, 1.0)
    assert clipped == grads and norm == 0


def test_clipping_shows_a_diverged_gradient() -> None:
    clipped, norm = clip_by_global_norm({"a": np.array([np.nan, 1.0])}, 1.0)
    assert np.isnan(norm) and np.isnan(clipped["a"]).all()


def test_the_schedule_climbs_to_its_peak_and_falls_to_zero() -> None:
    rates = [warmup_cosine(step, 20, peak=0.5, warmup=4) for step in range(21)]
    assert rates[:5] == [0.125, 0.25, 0.375, 0.5, 0.5]
    assert rates[12] == pytest.approx(0.25, rel=1e-15), "half-way down the cosine"
    assert all(a > b for a, b in pairwise(rates[4:]))
    assert rates[20] == 0 < rates[19] < 0.01


def test_a_schedule_without_warmup_starts_at_its_peak() -> None:
    assert warmup_cosine(0, 1, peak=0.5, warmup=0) == 0.5
    assert warmup_cosine(0, 10, peak=0.5, warmup=0) == 0.5


def test_a_schedule_of_warmup_alone_ends_at_its_peak() -> None:
    assert warmup_cosine(9, 10, peak=0.5, warmup=10) == 0.5
