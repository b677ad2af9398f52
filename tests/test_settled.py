"""A model whose weights nobody moves: what depends on them alone is computed once, and nothing else changes."""

import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.conformer import Conformer
from minihra.blocks.initial import initial_conformer
from minihra.cases import numbers
from minihra.evaluate import logits_of
from minihra.layers.relative_attention import Projections, RelativePositionParams, relative_positions
from minihra.model import backward, forward
from minihra.ops import references, relative_attention_backward, relative_attention_forward, twins_in
from minihra.recogniser import Adapter, Recogniser
from minihra.trainees import Adaptation
from minihra.tree import leaves, map_leaves

needs_twins = pytest.mark.skipif(twins_in("attention") is None, reason="the twins for the CPU need numba")


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames the positions had each time that they were projected."""
    frames, twins = [], twins_in("attention")
    project = twins.project
    monkeypatch.setattr(twins, "project", lambda positions, p, T: (frames.append(T), project(positions, p, T))[1])
    return frames


def attended(T: int, p: RelativePositionParams, kept: Projections | None, **how: Any) -> list[Array]:
    """What attention to T frames and its backward give, and r, which lies between them."""
    (A, D), dtype = p.u.shape, p.u.dtype
    q, k, value, dy = (numbers(2, T, A, D, k=n).astype(dtype) for n in range(4))
    positions, valid = relative_positions(T, len(p.W), dtype), np.arange(T) < np.array([[T], [T - T // 3]])
    y, cache = relative_attention_forward(q, k, value, positions, valid, p, kept=kept, **{"params": False, **how})
    *gradients, dp = relative_attention_backward(dy, cache)
    return [y, cache.r, *gradients, *(dp or ())]


def positions_of(A: int, D: int, dtype: type = np.float32) -> RelativePositionParams:
    return RelativePositionParams(*(numbers(*s, k=5).astype(dtype) for s in ((A * D, A * D), (A, D), (A, D))))


@needs_twins
@pytest.mark.parametrize("heads", [(4, 24), (4, 36), (6, 19), (8, 32)], ids=str)
@pytest.mark.parametrize("alone", [True, False])
def test_kept_positions_have_the_bits_of_new_ones(
    heads: tuple[int, int], alone: bool, projected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever utterances came before, and of any remainder of tiles; those that BLAS projects are not kept."""
    monkeypatch.setattr(twins_in("product"), "alone", lambda: alone)
    monkeypatch.setattr(twins_in("product"), "threads", lambda: 2)
    p, kept, (A, D) = positions_of(*heads), Projections(), heads
    lengths = [50, 16, 17, 33, 131, 48, 97, 130, 200, 131, 1, 5, 15, 64]
    for T in lengths:
        for found, wanted in zip(attended(T, p, kept), attended(T, p, None), strict=True):
            assert found.shape == wanted.shape and found.tobytes() == wanted.tobytes(), T
    longest, due = 0, []
    for T in lengths:
        tiles = T >= 16 and (alone or A * D * (A * D // 2) * T > 2**18)
        due += [T, T] if not tiles or longest < T else [T]
        longest = max(longest, T) if tiles else longest
    assert projected == due


@needs_twins
def test_what_is_not_kept(projected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions of weights that train, or of an utterance that is too long; others stay until W is another array."""
    monkeypatch.setattr(twins_in("product"), "alone", lambda: True)
    monkeypatch.setattr(twins_in("attention"), "MOST_FRAMES", 60)
    p, kept = positions_of(4, 24), Projections()
    for T, how, again in ((40, {"params": True}, True), (61, {}, True), (60, {}, False), (50, {}, False)):
        attended(T, p, kept, **how)
        projected.clear()
        attended(T, p, kept, **how)
        assert projected == [T] * again
    other = p._replace(W=p.W + 1)
    found, wanted = attended(50, other, kept), attended(50, other, None)
    assert [a.tobytes() for a in found] == [a.tobytes() for a in wanted]


@needs_twins
def test_a_matrix_lives_as_long_as_its_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or another one could have its id."""
    monkeypatch.setattr(twins_in("product"), "alone", lambda: True)
    p, kept = positions_of(4, 24), Projections()
    attended(50, p, kept)
    W = weakref.ref(p.W)
    del p
    assert W() is not None
    del kept
    assert W() is None


def test_the_reference_keeps_nothing() -> None:
    p, kept = positions_of(4, 3, np.float64), Projections()
    with references():
        for T in (9, 5):
            for found, wanted in zip(attended(T, p, kept), attended(T, p, None), strict=True):
                assert found.tobytes() == wanted.tobytes()
    assert not kept._kept


def model_and_adapter() -> tuple[Conformer, HRA]:
    model = replace(initial_conformer(ConformerConfig(labels=9, mels=16, width=96, layers=2), seed=1), frozen=True)
    rng, hra = np.random.default_rng(0), HRA(96, 16, seed=2)
    hra.add_task("ann")
    hra.p = map_leaves(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), hra.p)
    return model, hra


@needs_twins
def test_a_settled_model_projects_once_for_each_layer(projected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins_in("product"), "alone", lambda: True)
    model, hra = model_and_adapter()
    settled = model.settled()
    assert settled.settled() is settled and model.kept is None
    for T in (400, 200, 390):
        features, lengths = numbers(2, T, 16, k=T).astype(np.float32), np.array([T, T - 90])
        outcomes = []
        for one in (settled, model):
            logits, cache = forward(one, features, lengths, hra.edit(["ann", "base"]))
            outcomes.append({"logits": logits, **dict(leaves(backward(np.ones_like(logits), cache).adapter))})
        for name, array in outcomes[1].items():
            assert outcomes[0][name].tobytes() == array.tobytes(), name
    assert projected == [100] * 4 + [50] * 2 + [98] * 2
    thawed = replace(settled, frozen=False)
    assert thawed.embed(features, lengths)[1].kept is None
    assert replace(settled, p=map_leaves(np.array, settled.p)).embed(features, lengths)[1].kept is settled.kept


def recogniser_of(model: Conformer) -> Recogniser:
    return Recogniser(model, SimpleNamespace(hop=0.01), SimpleNamespace(blank=0))


@needs_twins
def test_an_adaptation_settles_its_backbone() -> None:
    model, hra = model_and_adapter()
    trainee = Adaptation(recogniser_of(model), Adapter(hra, "speaker", ""))
    assert trainee.recogniser.model.kept is not None and trainee.recogniser.model.p is model.p


@needs_twins
def test_recognition_projects_once_and_sees_weights_that_moved_since(projected: list[int]) -> None:
    """As a training does between two validations, in place."""
    model, _ = model_and_adapter()
    features = [numbers(400, 16, k=n).astype(np.float32) for n in range(40)]  # two batches, in parts

    def logits() -> list[Array]:
        projected.clear()
        return logits_of(recogniser_of(model), features)

    first, times = logits(), len(projected)
    assert times <= 2 * model.depth  # in each of two parts, if both ask at the same time
    for layer in model.p.layers:
        layer.attention.position.W[...] *= -3
    second = logits()
    assert not any(np.allclose(a, b) for a, b in zip(first, second, strict=True))
    wanted = [forward(model, one[None], np.array([400]))[0][0] for one in features[:3]]
    for found, one in zip(second, wanted, strict=False):
        assert np.abs(found - one).max() <= 1e-4 * np.abs(one).max()
