"""Rungs 2 and 3: every backward is the derivative of its forward, and a backward that is not would be found."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minihra.adapters import hra
from minihra.adapters.controller import HRAParams
from minihra.arrays import Array
from minihra.cases import Case, distance_to_kink, linear, numbers
from minihra.cli import main
from minihra.gradcheck import H_STEP, Row, gradient_check, table
from minihra.layers.linear import LinearParams, linear_backward, linear_forward
from minihra.layers.log_mel import log_mel_backward
from minihra.layers.relative_attention import RelativePositionParams
from minihra.masks import hide, strided
from minihra.model_cases import all_cases
from minihra.ops import PAIRS, Pair
from minihra.tree import Tree, from_leaves, leaves, map_leaves

CASES = {case.name: case for case in all_cases()}


def check(case: Case, backward: Callable | None = None, seed: int = 0) -> list[Row]:
    return gradient_check(
        case.pair.forward,
        backward or case.pair.backward,
        case.arguments,
        constants=dict(case.constants),
        outputs=case.outputs,
        seed=seed,
    )


def output_gradients(case: Case) -> list[Array]:
    *outputs, _ = case.pair.forward(**case.arguments, **case.constants)
    return [numbers(*y.shape, k=40 + n) for n, y in enumerate(outputs[: case.outputs])]


def as_tuple(gradients: Any) -> tuple[Tree, ...]:
    return gradients if type(gradients) is tuple else (gradients,)


# Rung 2


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_backward_is_the_derivative(name: str, seed: int) -> None:
    rows = check(CASES[name], seed=seed)
    assert all(row.ok for row in rows), f"\n{table(rows)}"


@pytest.mark.parametrize("name", CASES)
def test_every_argument_has_a_gradient(name: str) -> None:
    """A gradient that is zero throughout would pass any check of a function that does not move: none is, but that of
    the state into the cell without recurrence, and those of the task that is not in the batch."""
    case = CASES[name]
    *_, cache = case.pair.forward(**case.arguments, **case.constants)
    given = as_tuple(case.pair.backward(*output_gradients(case), cache))
    for (argument, tree), gradient in zip(case.arguments.items(), given, strict=True):
        found = dict(leaves(gradient, argument))
        for leaf, _ in leaves(tree, argument):
            absent = ".eve." in leaf or (argument == "h" and ("no_recurrence" in name or "none" in name))
            assert (leaf not in found) if absent else np.abs(found[leaf]).max() > 0, leaf


@pytest.mark.parametrize("name", CASES)
def test_kinks_are_far_from_the_steps(name: str) -> None:
    case = CASES[name]
    *_, cache = case.pair.forward(**case.arguments, **case.constants)
    assert distance_to_kink(cache) > 2 * H_STEP


def test_every_pair_has_a_case() -> None:
    assert {name.partition(",")[0] for name in CASES} >= PAIRS.keys()


def test_command_checks_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in CASES if not re.search(rf"^{re.escape(name)} ", printed, re.MULTILINE)] == []
    assert printed.endswith(f"all {len(CASES)} checks passed\n")


# Rung 3: the mistakes that people make. Each takes the pair's right backward, and returns a wrong one.

Backward = Callable[..., Any]
FAULTS: dict[str, tuple[str, Callable[[Backward], Backward]]] = {}


def fault(case: str) -> Callable:
    """Register a mistake in the backward of a case."""

    def register(spoil: Callable[[Backward], Backward]) -> Callable:
        FAULTS[spoil.__name__] = (case, spoil)
        return spoil

    return register


@fault("linear")
def bias_gradient_is_a_mean(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dx, dp = right(dy, cache)
        return dx, dp._replace(b=dp.b / len(dy))

    return wrong


@fault("sigmoid")
def factor_of_the_sigmoid_is_forgotten(right: Backward) -> Backward:
    return lambda dy, cache: dy * cache.y


@fault("swish")
def step_is_taken_for_half(right: Backward) -> Backward:
    return lambda dy, cache: right(0.5 * dy, cache)


@fault("glu")
def halves_are_swapped(right: Backward) -> Backward:
    return lambda dy, cache: np.roll(right(dy, cache), dy.shape[-1], axis=-1)


@fault("gelu")
def density_of_the_tanh_approximation(right: Backward) -> Backward:
    """The derivative of the approximate GELU is close, and wrong."""

    def wrong(dy: Array, cache: Any) -> Array:
        x, a = cache.x, np.sqrt(2 / np.pi)
        t = np.tanh(a * (x + 0.044715 * x**3))
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * a * (1 + 3 * 0.044715 * x * x))

    return wrong


@fault("layer_norm")
def mean_counts_as_a_constant(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dnormal = dy * cache.p.g
        through_scale = cache.normal * (dnormal * cache.normal).mean(-1, keepdims=True)
        return (dnormal - through_scale) * cache.scale, right(dy, cache)[1]

    return wrong


@fault("layer_norm")
def variance_counts_as_a_constant(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dnormal = dy * cache.p.g
        return (dnormal - dnormal.mean(-1, keepdims=True)) * cache.scale, right(dy, cache)[1]

    return wrong


@fault("batch_norm")
def padded_frames_are_counted(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        normal, scale, valid, _, p, _ = cache
        dx, dp = right(dy, cache)
        dx = (dy * p.g - p.g * (dp.b + normal * dp.g) / valid.size) * scale * valid[:, :, None]
        return dx, dp

    return wrong


@fault("masked_softmax")
def softmax_without_its_normaliser(right: Backward) -> Backward:
    return lambda dy, cache: cache.y * dy


@fault("instance_norm")
def frames_of_the_batch_are_taken_for_those_of_the_utterance(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        normal, scale, valid, p, _ = cache
        dnormal = dy * valid[:, :, None] * p.g
        means = (dnormal.mean(1, keepdims=True) + normal * (dnormal * normal).mean(1, keepdims=True)) * valid[
            :, :, None
        ]
        return (dnormal - means) * scale, right(dy, cache)[1]

    return wrong


@fault("attention")
def scores_are_not_scaled_on_the_way_back(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dq, dk, dvalue = right(dy, cache)
        root = cache.q.shape[3] ** 0.5
        return root * dq, root * dk, dvalue

    return wrong


@fault("attention")
def query_and_key_change_places(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dq, dk, dvalue = right(dy, cache)
        return dk, dq, dvalue

    return wrong


@fault("shaw_attention")
def distances_are_counted_backwards(right: Backward) -> Backward:
    """As where row m is taken for i - j = m - left."""
    return lambda dy, cache: right(dy, cache._replace(rows=cache.rows[::-1]))


@fault("shaw_attention")
def distances_beyond_the_ends_are_forgotten(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        first = np.concatenate([[True], cache.rows[1:] != cache.rows[:-1]])  # of the positions that share a row
        return right(dy, cache._replace(rows=np.where(first, cache.rows, -1)))

    return wrong


@fault("rotary")
def the_turn_is_not_turned_back(right: Backward) -> Backward:
    return lambda dy, cache: right(dy, cache._replace(table=cache.table._replace(sin=-cache.table.sin)))


@fault("relative_attention")
def relative_shift_is_off_by_one(right: Backward) -> Backward:
    return lambda dy, cache: right(dy, cache._replace(positions=np.roll(cache.positions, 1, axis=0)))


@fault("relative_attention")
def both_biases_get_the_whole_gradient_of_the_query(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dq, dk, dvalue, dp = right(dy, cache)
        return dq, dk, dvalue, RelativePositionParams(dp.W, dp.u + dp.v, dp.u + dp.v)

    return wrong


@fault("depthwise_conv")
def kernel_gradient_runs_backwards(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dx, dp = right(dy, cache)
        return dx, dp._replace(W=dp.W[::-1])

    return wrong


@fault("depthwise_conv, even kernel")
def padding_is_symmetric_under_an_even_kernel(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dx, dp = right(dy, cache)
        return np.roll(dx, 1, axis=1) * cache.valid[:, :, None], dp

    return wrong


@fault("depthwise_conv, causal")
def padding_is_symmetric_under_a_causal_kernel(right: Backward) -> Backward:
    return lambda dy, cache: right(dy, cache._replace(left=(len(cache.p.W) - 1) // 2))


@fault("conv1d")
def windows_that_overlap_are_not_added(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        padded, valid, stride, pad, p = cache
        dpadded, T2 = np.zeros_like(padded), dy.shape[1]
        rows = hide(dy, strided(valid, len(p.W), stride, pad))
        for k, W in enumerate(p.W):
            dpadded[:, k : k + stride * T2 : stride] = rows @ W.T
        return hide(dpadded[:, pad : pad + valid.shape[1]], valid), right(dy, cache)[1]

    return wrong


@fault("depthwise_conv2d")
def kernel_is_turned_round(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        turned = cache.p._replace(W=cache.p.W[::-1, ::-1])
        return right(dy, cache._replace(p=turned))[0], right(dy, cache)[1]

    return wrong


@fault("conv2d")
def time_and_frequency_are_swapped(right: Backward) -> Backward:
    def wrong(dy: Array, cache: Any) -> Any:
        dx, dp = right(dy, cache)
        return dx, dp._replace(W=dp.W.swapaxes(0, 1))

    return wrong


@fault("residual")
def weights_are_swapped(right: Backward) -> Backward:
    return lambda dy, cache: right(dy, cache)[::-1]


@fault("dropout")
def kept_elements_are_not_scaled(right: Backward) -> Backward:
    return lambda dy, cache: dy * cache.keep


@fault("gru")
def update_gate_forgets_the_old_state(right: Backward) -> Backward:
    def wrong(dh_next: Array, cache: Any) -> Any:
        dx, dh, dp = right(dh_next, cache)
        return dx, dh - dh_next * cache.z, dp

    return wrong


@fault("gru")
def bias_inside_the_reset_is_taken_for_one_outside(right: Backward) -> Backward:
    def wrong(dh_next: Array, cache: Any) -> Any:
        dx, dh, dp = right(dh_next, cache)
        return dx, dh, dp._replace(c=dp.b[-cache.h.shape[1] :])

    return wrong


@fault("gru")
def gates_stand_in_another_order(right: Backward) -> Backward:
    def wrong(dh_next: Array, cache: Any) -> Any:
        dx, dh, dp = right(dh_next, cache)
        r, z, n = np.split(dp.W, 3, axis=1)
        return dx, dh, dp._replace(W=np.concatenate([z, r, n], axis=1))

    return wrong


@fault("indrnn")
def recurrent_weight_is_left_out(right: Backward) -> Backward:
    def wrong(dh_next: Array, cache: Any) -> Any:
        dx, _, dp = right(dh_next, cache)
        return dx, dh_next * cache.positive, dp

    return wrong


@fault("rnn")
def tanh_is_differentiated_as_a_sigmoid(right: Backward) -> Backward:
    return lambda dh_next, cache: right(dh_next * cache.h_next / (1 + cache.h_next), cache)


@fault("grouped_heads, ffn")
def heads_of_two_tasks_change_places(right: Backward) -> Backward:
    def wrong(do: Array, cache: Any) -> Any:
        dh, dheads = right(do, cache)
        return dh, {"ann": dheads["bob"], "bob": dheads["ann"]}

    return wrong


@fault("ctc")
def softmax_is_left_out_of_ctc(right: Backward) -> Backward:
    """As where a gradient at log-probabilities is taken for one at logits."""

    def wrong(dloss: Array, cache: Any) -> Array:
        return right(dloss, cache) - np.exp(cache.log_y) * (dloss[:, None, None] * cache.valid[:, :, None])

    return wrong


@fault("ctc")
def equal_labels_may_be_skipped_between(right: Backward) -> Backward:
    def wrong(dloss: Array, cache: Any) -> Array:
        skip = np.zeros_like(cache.skip)
        skip[:, 3::2] = True
        return right(dloss, cache._replace(skip=skip))

    return wrong


@fault("log_mel")
def bins_of_the_spectrum_count_twice(right: Backward) -> Backward:
    """The inverse real transform counts every bin but the first and the last twice, its transpose once."""

    def wrong(dy: Array, cache: Any) -> Array:
        filters = cache.filters.copy()
        filters[1:-1] *= 2
        return log_mel_backward(dy, cache._replace(filters=filters))

    return wrong


@fault("conformer_block")
def half_step_is_a_whole_one(right: Backward) -> Backward:
    def wrong(dx: Array, cache: Any) -> Any:
        dx, dp = right(dx, cache)
        return dx, dp._replace(ffn2=map_leaves(lambda leaf: 2 * leaf, dp.ffn2))

    return wrong


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str) -> None:
    case_name, spoil = FAULTS[name]
    case = CASES[case_name]
    assert not all(row.ok for row in check(case, spoil(case.pair.backward)))


def without_the_controller_above(right: Backward) -> Backward:
    """Depth is cut: each layer's state gets no gradient from the layer above."""
    return lambda du, dh_next, cache: right(du, None, cache)


def without_what_the_controller_reads(right: Backward) -> Backward:
    """The controller's gradient of x is forgotten; only the residual path stays."""

    def wrong(du: Array, dh_next: Array, cache: Any) -> Any:
        dx, dh, dp = right(du, dh_next, cache)
        return np.zeros_like(dx), dh, dp

    return wrong


def with_heads_of_the_top_layer_alone(right: Backward) -> Backward:
    """A head is shared by all layers; here only the last one counts."""

    def wrong(du: Array, dh_next: Array | None, cache: Any) -> Any:
        dx, dh, dp = right(du, dh_next, cache)
        return dx, dh, dp if dh_next is None else HRAParams(dp.controller, {})

    return wrong


@pytest.mark.parametrize(
    "spoil",
    [without_the_controller_above, without_what_the_controller_reads, with_heads_of_the_top_layer_alone],
    ids=lambda spoil: spoil.__name__,
)
@pytest.mark.parametrize("cell", ["gru", "indrnn"])
def test_fault_in_the_walk_down_the_depth_is_found(
    spoil: Callable[[Backward], Backward], cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hra, "depth_step_backward", spoil(hra.depth_step_backward))
    assert not all(row.ok for row in check(CASES[f"hra to ctc, {cell}, linear"]))


def cases_and_arguments() -> list[tuple[str, int]]:
    places = [(name, n) for name, case in CASES.items() for n in range(len(case.arguments))]
    without_gradient = {("no_recurrence", 1), ("depth_step, none, linear", 1), ("depth_step, none, ffn", 1)}
    return [place for place in places if place not in without_gradient]


def spoiled(case: Case, n: int, change: Callable[[Tree], Tree]) -> Backward:
    """The case's backward with `change` made to its n-th gradient."""

    def wrong(*args: Any) -> tuple:
        gradients = list(as_tuple(case.pair.backward(*args)))
        gradients[n] = change(gradients[n])
        return tuple(gradients)

    return wrong


@pytest.mark.parametrize(("name", "n"), cases_and_arguments())
def test_a_millionth_too_large_is_found(name: str, n: int) -> None:
    case = CASES[name]
    wrong = spoiled(case, n, lambda gradient: map_leaves(lambda leaf: leaf * (1 + 1e-6), gradient))
    assert not all(row.ok for row in check(case, wrong))


@pytest.mark.parametrize(("name", "n"), cases_and_arguments())
def test_a_single_element_that_is_wrong_is_found(name: str, n: int) -> None:
    """The largest element, off by a millionth of the gradient's norm."""

    def change(gradient: Tree) -> Tree:
        named = dict(leaves(gradient))
        norm = sum(float((leaf * leaf).sum()) for leaf in named.values()) ** 0.5
        largest = max(named, key=lambda leaf: np.abs(named[leaf]).max())
        moved = named[largest].copy()
        moved.flat[np.abs(moved).argmax()] += 1e-6 * norm
        return from_leaves(gradient, {**named, largest: moved})

    case = CASES[name]
    assert not all(row.ok for row in check(case, spoiled(case, n, change)))


def test_command_names_the_pair_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gru = PAIRS["gru"]
    _, spoil = FAULTS["update_gate_forgets_the_old_state"]
    monkeypatch.setitem(PAIRS, "gru", Pair(gru.forward, spoil(gru.backward)))
    assert main(["check"]) == 1
    printed = capsys.readouterr()
    assert re.search(r"^gru .* FAILS$", printed.out, re.MULTILINE)
    assert "1 of" in printed.err
    assert "own gradient" in printed.err


# What the check refuses


X, P = numbers(5, 4), linear(4, 3, 1)


def checked(backward: Backward, **arguments: Tree) -> list[Row]:
    return gradient_check(linear_forward, backward, arguments or {"x": X, "p": P})


def test_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p\.W is float32; a gradient check needs float64"):
        checked(linear_backward, x=X, p=P._replace(W=P.W.astype(np.float32)))


def test_another_number_of_gradients_is_refused() -> None:
    with pytest.raises(ValueError, match="1 gradients for 2 arguments"):
        checked(lambda dy, cache: linear_backward(dy, cache)[0])


def test_a_gradient_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gradient of p\.b has shape \(1, 3\), not \(3,\)"):
        checked(lambda dy, cache: (dy @ P.W.T, LinearParams(X.T @ dy, dy.sum(0, keepdims=True))))


def test_a_gradient_of_what_is_no_argument_is_refused() -> None:
    with pytest.raises(ValueError, match=r"what is no argument: p\.b"):
        gradient_check(lambda x, p: linear_forward(x, P), linear_backward, {"x": X, "p": P._replace(b=None)})


def test_an_absent_gradient_counts_as_zero() -> None:
    rows = checked(lambda dy, cache: (linear_backward(dy, cache)[0], None))
    assert [row.argument for row in rows if not row.ok] == ["p", "all"]
    assert [row.direction for row in rows if row.argument == "p"] == ["random"]  # a zero gradient has no direction


def test_nan_does_not_pass() -> None:
    rows = checked(lambda dy, cache: map_leaves(lambda leaf: leaf * np.nan, linear_backward(dy, cache)))
    assert not any(row.ok for row in rows)


@pytest.mark.parametrize("outputs", [0, 2])
def test_another_number_of_outputs_is_refused(outputs: int) -> None:
    with pytest.raises(ValueError, match=f"{outputs} outputs .* returns 1"):
        gradient_check(linear_forward, linear_backward, {"x": X, "p": P}, outputs=outputs)


def test_a_function_that_is_zero_has_a_gradient_of_zero() -> None:
    rows = gradient_check(lambda x: (0 * x, None), lambda dy, cache: 0 * dy, {"x": X})
    assert all(row.ok for row in rows)
    assert all(row.error == 0 for row in rows)


def test_a_gradient_of_zero_for_a_function_that_moves_is_found() -> None:
    rows = gradient_check(lambda x: (x - X, None), lambda dy, cache: 0 * dy, {"x": X})
    assert not any(row.ok for row in rows)
