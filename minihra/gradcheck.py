"""The gradient check: is a hand-written backward the derivative of its forward? Public, for us and for ports.

For one random dy the backward claims that a small move e of an argument x changes L = sum(y dy) by sum(e dx). Central
differences measure the change,

    (L(x + h e) - L(x - h e)) / 2h = sum(e dx) + O(h^2)

along a random unit direction e of every argument, along the direction of its own gradient dx / |dx|, and along one
joint random direction of all arguments. It passes when the two differ by at most `tolerance` times the gradient's
norm plus the round-off floor 1e-14 sum |y dy| / h. Use float64 and tiny shapes; dy is random because ones prove
nothing (the gradient of sum(softmax) is 0). One direction sees a single wrong element: it enters the sum.

    rows = gradient_check(gru_forward, gru_backward, {"x": x, "h": h, "p": p})
    assert all(row.ok for row in rows), table(rows)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minihra.tree import Tree, from_leaves, leaves, map_leaves

H_STEP = 1e-5
TOLERANCE = 1e-8
FLOOR = 1e-14
TINY = np.finfo(np.float64).tiny


class Row(NamedTuple):
    """One direction of a gradient check."""

    argument: str  # its name, or "all"
    direction: str  # "random", "own gradient" or "joint"
    analytic: float
    numeric: float
    error: float  # |analytic - numeric|, as a share of what is allowed
    ok: bool


def gradient_check(
    forward: Callable[..., tuple],
    backward: Callable[..., Any],
    arguments: dict[str, Tree],
    *,
    constants: dict[str, Any] | None = None,
    outputs: int = 1,
    seed: int = 0,
    h: float = H_STEP,
    tolerance: float = TOLERANCE,
) -> list[Row]:
    """Compare a backward with central differences of its forward.

    `forward(**arguments, **constants)` returns its outputs and then the cache; the first `outputs` of them are
    differentiated. `backward(*doutputs, cache)` returns the gradients of the arguments, in the order of `arguments`.
    Arguments are float64 arrays or trees of them; a gradient tree may lack entries, which count as zero.

    Raises:
        ValueError: an argument is not float64, the forward has fewer outputs than `outputs`, the backward returns
            another number of gradients than there are arguments, or a gradient has another shape than its argument.
    """
    constants = constants or {}
    for name, tree in arguments.items():
        for leaf_name, leaf in leaves(tree, name):
            if leaf.dtype != np.float64:
                raise ValueError(f"{leaf_name} is {leaf.dtype}; a gradient check needs float64")
    rng = np.random.default_rng(seed)
    *ys, cache = forward(**arguments, **constants)
    if not 1 <= outputs <= len(ys):
        raise ValueError(f"{outputs} outputs are to be differentiated, but forward returns {len(ys)} before its cache")
    dys = [rng.standard_normal(y.shape) for y in ys[:outputs]]
    gradients = _as_sequence(backward(*dys, cache))
    if len(gradients) != len(arguments):
        raise ValueError(f"backward returned {len(gradients)} gradients for {len(arguments)} arguments")
    dargs = {
        name: _filled(tree, gradient, name) for (name, tree), gradient in zip(arguments.items(), gradients, strict=True)
    }
    floor = FLOOR * sum(float(np.abs(y * dy).sum()) for y, dy in zip(ys, dys, strict=False)) / h

    def change(moves: dict[str, Tree]) -> float:
        def loss(sign: int) -> float:
            moved = {
                name: _moved(tree, moves[name], sign * h) if name in moves else tree for name, tree in arguments.items()
            }
            return sum(float((y * dy).sum()) for y, dy in zip(forward(**moved, **constants), dys, strict=False))

        return (loss(1) - loss(-1)) / (2 * h)

    def row(argument: str, direction: str, moves: dict[str, Tree]) -> Row:
        analytic = sum(_inner(move, dargs[name]) for name, move in moves.items())
        numeric = change(moves)
        norm = sum(_inner(dargs[name], dargs[name]) for name in moves) ** 0.5
        allowed = max(tolerance * norm + floor, TINY)  # where output and gradient are 0, nothing may differ
        error = abs(analytic - numeric) / allowed
        return Row(argument, direction, analytic, numeric, error, bool(error <= 1))

    rows = []
    for name, tree in arguments.items():
        rows.append(row(name, "random", {name: _unit(map_leaves(lambda a: rng.standard_normal(a.shape), tree))}))
        if _inner(dargs[name], dargs[name]) > 0:
            rows.append(row(name, "own gradient", {name: _unit(dargs[name])}))
    joint = {name: _unit(map_leaves(lambda a: rng.standard_normal(a.shape), tree)) for name, tree in arguments.items()}
    return [*rows, row("all", "joint", joint)]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, for messages."""
    head = f"{'argument':<14} {'direction':<13} {'analytic':>15} {'numeric':>15} {'error/allowed':>14}"
    lines = [
        f"{r.argument:<14} {r.direction:<13} {r.analytic:>15.8e} {r.numeric:>15.8e} {r.error:>14.2e}"
        f"{'' if r.ok else '  FAILS'}"
        for r in rows
    ]
    return "\n".join([head, *lines])


def _as_sequence(gradients: Any) -> Sequence[Tree]:
    """Return what a backward returned as a sequence: a bare array, or one NamedTuple, is one gradient."""
    plain_tuple = isinstance(gradients, (tuple, list)) and not hasattr(gradients, "_fields")
    return gradients if plain_tuple else (gradients,)


def _filled(tree: Tree, gradient: Tree, name: str) -> Tree:
    """Return `gradient` as a tree like `tree`, with zeros where it has no entry."""
    named = dict(leaves(gradient, name))
    for leaf_name, leaf in leaves(tree, name):
        if leaf_name in named and named[leaf_name].shape != leaf.shape:
            raise ValueError(f"the gradient of {leaf_name} has shape {named[leaf_name].shape}, not {leaf.shape}")
    unknown = named.keys() - dict(leaves(tree, name)).keys()
    if unknown:
        raise ValueError(f"gradients of what is no argument: {', '.join(sorted(unknown))}")
    return from_leaves(tree, {n: named.get(n, np.zeros(leaf.shape)) for n, leaf in leaves(tree, name)}, name)


def _inner(a: Tree, b: Tree) -> float:
    """Return the inner product of two trees of the same leaves."""
    return sum(float((x * y).sum()) for (_, x), (_, y) in zip(leaves(a), leaves(b), strict=True))


def _unit(tree: Tree) -> Tree:
    """Return `tree` scaled to norm 1."""
    norm = _inner(tree, tree) ** 0.5
    return map_leaves(lambda leaf: leaf / norm, tree)


def _moved(tree: Tree, direction: Tree, by: float) -> Tree:
    """Return tree + by * direction."""
    return map_leaves(lambda leaf, move: leaf + by * move, tree, direction)
