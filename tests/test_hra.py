"""What HRA promises: it begins as the backbone, leaves "base" rows and absent tasks alone, and trains only itself."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from minihra.adapters.controller import group_tasks
from minihra.adapters.hra import HRA, HRAEdit
from minihra.adapters.parts import CELLS, HEADS
from minihra.blocks.initial import initial_conformer
from minihra.layers.conv import DepthwiseConvCache
from minihra.layers.conv2d import Conv2dCache
from minihra.layers.linear import LinearCache
from minihra.layers.norms import LayerNormCache, RunningNormCache
from minihra.layers.relative_attention import RelativeAttentionCache
from minihra.model import LayerInput, backward, ctc_loss, forward, pack_labels
from minihra.model_cases import BOTTLENECK, CONFIG, STATE, TASKS, tiny_conformer
from minihra.ops import ctc_forward
from minihra.optim import AdamW, clip_by_global_norm
from minihra.tree import children, count, leaves
from tests.tiny import Batch, batch, bits, frozen_backbone, gradients_of, logits_of, new_hra, trained_hra

every_cell = pytest.mark.parametrize("cell", CELLS)
every_head = pytest.mark.parametrize("head", HEADS)


def train(hra: HRA, steps: int, tasks: tuple[str, ...] = TASKS, optimiser: AdamW | None = None, **how: Any) -> AdamW:
    """Train `hra` on the batch of tests/tiny.py, with clipping and decay, as an adaptation does."""
    optimiser = optimiser or AdamW(decay=0.1)
    backbone, given = frozen_backbone(hra.dtype), batch(hra.dtype)
    for _ in range(steps):
        _, grads = gradients_of(backbone, given, hra, tasks, **how)
        optimiser.update(hra.p, clip_by_global_norm(grads.adapter, 0.5)[0], lr=0.02)
    return optimiser


# The frozen model


@every_cell
@every_head
def test_an_untrained_hra_is_the_backbone_to_the_bit(cell: str, head: str) -> None:
    backbone, given = frozen_backbone(), batch()
    assert logits_of(backbone, given, new_hra(cell, head)).tobytes() == logits_of(backbone, given).tobytes()


@every_cell
@every_head
def test_base_rows_of_a_mixed_batch_are_the_backbone_to_the_bit(cell: str, head: str) -> None:
    backbone, given = frozen_backbone(), batch()
    tasks = ("base", "bob", "ann", "base", "base")
    adapted, plain = logits_of(backbone, given, trained_hra(cell, head), tasks), logits_of(backbone, given)
    same = [a.tobytes() == b.tobytes() for a, b in zip(adapted, plain, strict=True)]
    assert same == [True, False, False, True, True]


def test_a_batch_of_base_rows_costs_nothing() -> None:
    backbone, given, hra = frozen_backbone(), batch(), trained_hra()
    tasks = ("base",) * len(TASKS)
    assert hra.edit(tasks) is None
    assert gradients_of(backbone, given, hra, tasks)[1] == (None, None)


def test_a_row_depends_on_its_own_task_only() -> None:
    """The order of the tasks, in the batch and in the adapter, changes nothing but the place of the rows."""
    backbone, given, hra = frozen_backbone(np.float64), batch(np.float64), trained_hra(dtype=np.float64)
    order = [4, 2, 0, 3, 1]
    shuffled = Batch(given.features[order], given.lengths[order], given.labels)
    hra_shuffled = new_hra(dtype=np.float64, tasks=("eve", "bob", "ann"))
    hra_shuffled.p = hra.p._replace(heads=dict(reversed(hra.p.heads.items())))
    expected = logits_of(backbone, given, hra)[order]
    found = logits_of(backbone, shuffled, hra_shuffled, [TASKS[i] for i in order])
    assert np.abs(found - expected).max() < 1e-13 * np.abs(expected).max()


# Names of tasks


def test_an_unknown_task_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"row 1: unknown task 'zoe'; known: base, ann, bob, eve$"):
        new_hra().edit(("ann", "zoe"))


@pytest.mark.parametrize("tasks", [TASKS[:4], (*TASKS, "ann")])
def test_another_number_of_tasks_than_rows_is_an_error(tasks: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=f"{len(tasks)} tasks were given for a batch of 5 rows"):
        logits_of(frozen_backbone(), batch(), trained_hra(), tasks)


def test_an_adapter_for_another_width_is_an_error() -> None:
    hra = HRA(CONFIG.width + 2, STATE)
    hra.add_task("ann")
    with pytest.raises(ValueError, match="for layers of width 10, but layer 1 has 8"):
        logits_of(frozen_backbone(), batch(), hra, ["ann"] * 5)


def test_tasks_are_added_and_removed_in_order() -> None:
    hra = new_hra(tasks=())
    assert hra.task_names == ()
    for task in ("bob", "ann", "eve"):
        hra.add_task(task)
    hra.remove_task("ann")
    hra.add_task("ann")
    assert hra.task_names == ("bob", "eve", "ann")
    hra.remove_task("eve")
    with pytest.raises(ValueError, match="unknown task 'eve'; known: base, bob, ann"):
        hra.edit(("eve",))


@pytest.mark.parametrize(
    ("name", "message"),
    [("ann", "'ann' exists already; known: ann, bob, eve"), ("base", "'base'"), ("", "''"), (5, "a text, got 5")],
)
def test_names_that_no_task_can_have(name: str, message: str) -> None:
    hra = trained_hra()
    before = bits(hra.p)
    with pytest.raises(ValueError, match=message):
        hra.add_task(name)
    assert bits(hra.p) == before


def test_removing_an_unknown_task_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown task 'zoe'; known: ann, bob, eve"):
        new_hra().remove_task("zoe")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "lstm"}, "unknown cell 'lstm'; known: gru, indrnn, rnn, li_gru, none"),
        ({"head": "cubic"}, "unknown head 'cubic'; known: linear, ffn"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"state_size": -1}, "state_size must be at least 1, got -1"),
        ({"head": "ffn", "bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        ({"bottleneck": 4}, "a linear head has no bottleneck"),
    ],
)
def test_impossible_adapters_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HRA(**{"width": 4, "state_size": 3, **arguments})


# What trains


@every_cell
@every_head
def test_only_tasks_of_the_batch_have_a_gradient(cell: str, head: str) -> None:
    hra = trained_hra(cell, head)
    _, grads = gradients_of(frozen_backbone(), batch(), hra)
    assert grads.backbone is None
    assert type(grads.adapter) is type(hra.p) and type(grads.adapter.controller) is type(hra.p.controller)
    assert set(grads.adapter.heads) == {"ann", "bob"}
    wanted = {name: leaf.shape for name, leaf in leaves(hra.p) if ".eve." not in name}
    assert {name: leaf.shape for name, leaf in leaves(grads.adapter)} == wanted
    assert all(np.abs(leaf).max() > 0 for _, leaf in leaves(grads.adapter))


def test_absent_tasks_do_not_move() -> None:
    hra, eve = trained_hra(), {"heads.eve.W", "heads.eve.b"}
    optimiser = train(hra, 2, ("eve", "bob", "ann", "ann", "eve"))
    weights, moments = bits(hra.p), {name: bits(m) for name, m in optimiser.moments.items()}
    train(hra, 3, TASKS, optimiser)
    assert {name for name, leaf in bits(hra.p).items() if leaf == weights[name]} == eve
    assert {name for name, m in optimiser.moments.items() if bits(m) == moments[name]} == eve
    assert {name: int(m.step) for name, m in optimiser.moments.items()} == {
        name: 2 if name in eve else 5 for name in weights
    }


@every_cell
@every_head
def test_a_task_added_to_a_frozen_controller_leaves_the_old_ones_alone(cell: str, head: str) -> None:
    hra, backbone, given = trained_hra(cell, head), frozen_backbone(), batch()
    old_outputs, old = logits_of(backbone, given, hra).tobytes(), bits(hra.p)
    hra.add_task("zoe")
    new = logits_of(backbone, given, hra, ("zoe",) * 5)
    optimiser = train(hra, 4, ("zoe", "base", "zoe", "zoe", "zoe"), train_controller=False)
    assert set(optimiser.moments) == {f"heads.zoe.{name}" for name, _ in leaves(hra.p.heads["zoe"])}
    assert {name: leaf for name, leaf in bits(hra.p).items() if name in old} == old
    assert logits_of(backbone, given, hra).tobytes() == old_outputs
    assert not np.array_equal(logits_of(backbone, given, hra, ("zoe",) * 5), new)


def test_a_frozen_controller_changes_no_gradient_of_the_heads() -> None:
    backbone, given, hra = frozen_backbone(), batch(), trained_hra()
    heads = gradients_of(backbone, given, hra)[1].adapter.heads
    frozen = gradients_of(backbone, given, hra, train_controller=False)[1].adapter
    assert frozen.controller is None
    assert bits(frozen.heads) == bits(heads)


def test_the_backbone_is_the_same_to_the_bit_after_training() -> None:
    """Its arrays are read-only beside that: nothing may even try to write them."""
    backbone, given, hra, optimiser = tiny_conformer(), batch(np.float64), trained_hra(dtype=np.float64), AdamW()
    before = bits((backbone.p, backbone.statistics))
    for _ in range(3):
        _, grads = gradients_of(backbone, given, hra)
        optimiser.update(hra.p, grads.adapter, lr=0.1)
    assert bits((backbone.p, backbone.statistics)) == before
    train(hra, 1)


def test_same_seed_same_bits() -> None:
    def trained(seed: int) -> dict[str, bytes]:
        hra = new_hra(head="ffn", seed=seed)
        train(hra, 3)
        return bits(hra.p)

    assert trained(5) == trained(5)
    assert trained(5) != trained(6)


@every_cell
@every_head
def test_count_parameters_is_the_real_size(cell: str, head: str) -> None:
    hra = new_hra(cell, head, tasks=("ann", "bob"))
    counted = hra.count_parameters(backbone=1000)
    assert counted.shared == count(hra.p.controller)
    assert counted.per_task == count(hra.p.heads["bob"])
    assert (counted.tasks, counted.total) == (2, count(hra.p))
    assert counted.share == counted.total / 1000
    assert hra.count_parameters().share is None
    assert (hra.bottleneck, count(hra.p.heads["ann"])) == {
        "linear": (STATE, (STATE + 1) * CONFIG.width),
        "ffn": (BOTTLENECK, (STATE + 1) * BOTTLENECK + (BOTTLENECK + 1) * CONFIG.width),
    }[head]


# What the caches hold


def nodes(cache: Any, path: str = "cache") -> Iterator[tuple[str, Any]]:
    """Every node of a cache, with what edits cached; the parameters and the adapter in it are not the cache's own."""
    yield path, cache
    for name, child in children(cache):
        if name not in ("p", "backbone") and not isinstance(child, HRAEdit):
            yield from nodes(child, f"{path}.{name}")


ONLY_FOR_DP = {  # the field that only dp needs
    LinearCache: "x",
    DepthwiseConvCache: "padded",
    Conv2dCache: "x",
    RelativeAttentionCache: "positions",
    RunningNormCache: "normal",
}


@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
def test_frozen_parts_cache_nothing_for_their_weights(conv_norm: str) -> None:
    given = batch()
    for frozen in (True, False):
        backbone = frozen_backbone(conv_norm=conv_norm)
        backbone.frozen = frozen
        _, cache = forward(backbone, given.features, given.lengths, trained_hra().edit(TASKS))
        of_backbone = [(path, node) for path, node in nodes(cache) if ".edit." not in path]
        kept = {
            type(node)
            for _, node in of_backbone
            if type(node) in ONLY_FOR_DP and getattr(node, ONLY_FOR_DP[type(node)]) is not None
        }
        kept |= {LayerNormCache for _, node in of_backbone if isinstance(node, LayerNormCache) and node.params}
        wanted = {LayerNormCache, *ONLY_FOR_DP} - ({RunningNormCache} if conv_norm == "layer" else set())
        assert kept == (set() if frozen else wanted)


@pytest.mark.parametrize(
    ("tasks", "in_order"),
    [(["bob", "bob", "ann"], True), (["bob", "ann", "bob"], False), (["bob", "base"], False), (["base", "bob"], False)],
)
def test_a_batch_that_stands_by_task_is_not_gathered(tasks: list[str], in_order: bool) -> None:
    assert group_tasks(tasks, ("ann", "bob")).in_order == in_order


def test_no_backward_makes_the_gradient_of_the_features() -> None:
    given, backbone = batch(), frozen_backbone()
    backbone.frozen = False
    _, cache = forward(backbone, given.features, given.lengths)
    assert [conv.below for conv in cache.embed.convs] == [False, True]


def test_nothing_is_kept_below_the_first_layers_output() -> None:
    given = batch()
    _, cache = forward(frozen_backbone(), given.features, given.lengths, trained_hra().edit(TASKS))
    first, *others = cache.layers
    assert cache.embed is None
    assert first.norm is None and all(step[:3] == (None, None, None) for step in first.steps)
    assert all(layer.norm is not None and all(step.branch is not None for step in layer.steps) for layer in others)


@pytest.mark.parametrize("tasks", [TASKS, ["base"] * len(TASKS)], ids=["tasks", "base"])
def test_layers_that_are_computed_again_give_the_same_bits(tasks: list[str]) -> None:
    given, hra, found = batch(), trained_hra(), []
    for recompute in (False, True):
        edit = hra.edit(tasks)
        logits, cache = forward(frozen_backbone(), given.features, given.lengths, edit, recompute=recompute)
        found.append([a.tobytes() for _, a in leaves((logits, backward(np.ones_like(logits), cache)))])
        assert all(isinstance(layer, LayerInput) == recompute for layer in cache.layers)
    assert found[0] == found[1]


def test_a_frozen_backbone_without_adapter_keeps_no_layer() -> None:
    given = batch()
    _, cache = forward(frozen_backbone(), given.features, given.lengths)
    assert all(layer.norm is None and layer.edit is None for layer in cache.layers)
    assert all(step[:3] == (None, None, None) for layer in cache.layers for step in layer.steps)


def test_heads_are_met_without_a_copy() -> None:
    given, hra = batch(), trained_hra()
    _, cache = forward(frozen_backbone(), given.features, given.lengths, hra.edit(TASKS))
    groupings = {id(layer.edit.cache.groups.rows) for layer in cache.layers}
    assert len(groupings) == 1, "rows are grouped once for all layers"
    for layer in cache.layers:
        heads = layer.edit.cache.heads.heads
        assert set(heads) == {"ann", "bob"}
        assert all(heads[task].p is hra.p.heads[task] for task in heads)


@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
@every_cell
@every_head
def test_float32_stays_float32(cell: str, head: str, conv_norm: str) -> None:
    """Also in a step that trains everything, with batch statistics and dropout."""
    given, hra = batch(), trained_hra(cell, head)
    backbone = frozen_backbone(conv_norm=conv_norm)
    for frozen in (True, False):
        backbone.frozen = frozen
        training = None if frozen else backbone.draw_dropout(0.2, *given.features.shape[:2], np.random.default_rng(0))
        logits, cache = forward(backbone, given.features, given.lengths, hra.edit(TASKS), training)
        _, ctc_cache = ctc_forward(logits, cache.context.valid, *given.labels)
        loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
        grads = backward(dlogits, cache)
        clipped, _ = clip_by_global_norm(grads, 1e-3)
        seen = [*nodes(cache), *nodes((logits, ctc_cache, loss, dlogits, grads, clipped), "results")]
        floats = {path: node.dtype for path, node in seen if getattr(node, "dtype", np.dtype(bool)).kind == "f"}
        assert len(floats) > 70, "this walk misses most of the cache"
        assert {path for path, dtype in floats.items() if dtype != np.float32} == set()


# Whole runs


def random_utterances(mels: int, labels: int, seed: int) -> Batch:
    """Four utterances of noise with labels that fit."""
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(1, labels, 4).tolist() for _ in range(4)]
    lengths = np.array([48, 44, 40, 36])
    return Batch(rng.standard_normal((4, 48, mels)).astype(np.float32), lengths, pack_labels(sequences, labels))


def test_hra_overfits_four_utterances_through_a_frozen_backbone() -> None:
    backbone, given = initial_conformer(CONFIG, seed=0), random_utterances(CONFIG.mels, CONFIG.labels, 0)
    backbone.frozen = True
    hra, optimiser, tasks, losses = HRA(CONFIG.width, 32), AdamW(), ("ann", "bob", "bob", "ann"), []
    hra.add_task("ann"), hra.add_task("bob")
    for _ in range(250):
        loss, grads = gradients_of(backbone, given, hra, tasks)
        optimiser.update(hra.p, clip_by_global_norm(grads.adapter, 5.0)[0], lr=0.01)
        losses.append(float(loss.mean))
    assert losses[-1] < losses[0] / 10, losses[::25]


def test_the_conformer_overfits_four_utterances() -> None:
    backbone, given = initial_conformer(CONFIG, seed=0), random_utterances(CONFIG.mels, CONFIG.labels, 0)
    optimiser, rng, losses = AdamW(), np.random.default_rng(0), []
    for _ in range(150):
        training = backbone.draw_dropout(0.0, *given.features.shape[:2], rng)
        logits, cache = forward(backbone, given.features, given.lengths, None, training)
        loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
        optimiser.update(backbone.p, clip_by_global_norm(backward(dlogits, cache).backbone, 5.0)[0], lr=0.01)
        losses.append(float(loss.mean))
    assert losses[-1] < losses[0] / 10, losses[::25]
