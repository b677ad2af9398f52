"""The optimiser's step over a tree, clipping, and learning-rate schedules.

A leaf without a gradient does not move: neither its value, nor its moments, nor its count of steps. So the head of a
task that is absent from a batch stays as it is.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from minihra.arrays import Array, array_module
from minihra.ops import adamw_update, hot
from minihra.tree import Tree, from_leaves, global_norm, leaves, leaves_beside


class Moments(NamedTuple):
    """AdamW's state of one leaf, changed in place."""

    m: Array  # (...)
    v: Array  # (...)
    step: Array  # ()  float64


@hot
def adamw_update_leaves(
    ps: list[Array],
    gs: list[Array],
    moments: list[Moments],
    lr: Array,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decays: list[float],
) -> None:
    """Count a step of each leaf p (...), and move it, by its gradient g (...), and its moments in place."""
    for p, g, its_moments, decay in zip(ps, gs, moments, decays, strict=True):
        m, v, step = its_moments
        step += 1
        adamw_update(p, g, m, v, step, lr, beta1=beta1, beta2=beta2, eps=eps, decay=decay)


class AdamW:
    """AdamW over the leaves of a tree, in place. Loshchilov and Hutter 2019, 1711.05101; equations in layers/adamw.py.

    `moments` holds the state by dotted name of leaf, for the caller to save. `decay` applies to leaves
    of two axes or more, so not to the biases and gains of a layer.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, decay: float = 0.0) -> None:
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay
        self.moments: dict[str, Moments] = {}

    def update(self, params: Tree, grads: Tree, lr: float | Array) -> None:
        """Move every leaf of `params` that has a gradient in `grads` one step of learning rate `lr`.

        Raises:
            ValueError: there is a gradient of what is no parameter (which), as of a task that was removed.
        """
        if moving := self._moving(params, grads):
            ps, gs, moments, how = moving
            adamw_update_leaves(ps, gs, moments, array_module(gs[0]).asarray(lr, np.float64), **how)

    def clipped_update(self, params: Tree, grads: Tree, lr: float | Array, limit: float) -> Array:
        """Do as `update` with gradients of a global norm of at most `limit`, and return their norm before.

        Raises:
            ValueError: as `update` does.
        """
        if not (moving := self._moving(params, grads)):
            return global_norm(grads)
        ps, gs, moments, how = moving
        return clipped_adamw_leaves(ps, gs, moments, array_module(gs[0]).asarray(lr, np.float64), limit, **how)

    def _moving(
        self, params: Tree, grads: Tree
    ) -> tuple[list[Array], list[Array], list[Moments], dict[str, Any]] | None:
        """Return the leaves that have a gradient, their gradients and moments, and the settings; None if none has."""
        moving = list(leaves_beside(grads, params))
        if strangers := sorted(name for name, _, p in moving if p is None):
            raise ValueError(f"gradients of what is no parameter: {', '.join(strangers)}")
        if not moving:
            return None
        for name, g, p in moving:
            if name not in self.moments:
                xp = array_module(g)
                self.moments[name] = Moments(xp.zeros_like(p), xp.zeros_like(p), xp.zeros((), np.float64))
        names, gs, ps = map(list, zip(*moving, strict=True))
        decays = [self.decay if p.ndim > 1 else 0.0 for p in ps]
        how = {"beta1": self.beta1, "beta2": self.beta2, "eps": self.eps, "decays": decays}
        return ps, gs, [self.moments[name] for name in names], how


@hot
def clip_leaves(gs: list[Array], limit: float) -> tuple[list[Array], Array]:
    """Return `gs` scaled so that their norm over all is at most `limit`, and the norm before."""
    norm = global_norm(tuple(gs))
    limit = min(limit, np.finfo(norm.dtype).max)  # there is none if it is infinity, which divided by itself is not 1
    scale = limit / array_module(norm).maximum(norm, limit)
    return [g * scale for g in gs], norm


@hot
def clipped_adamw_leaves(
    ps: list[Array],
    gs: list[Array],
    moments: list[Moments],
    lr: Array,
    limit: float,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    decays: list[float],
) -> Array:
    """Do as `adamw_update_leaves` with what `clip_leaves` makes of the gradients, and return their norm before."""
    clipped, norm = clip_leaves(gs, limit)
    adamw_update_leaves(ps, clipped, moments, lr, beta1=beta1, beta2=beta2, eps=eps, decays=decays)
    return norm


def clip_by_global_norm(grads: Tree, limit: float) -> tuple[Tree, Array]:
    """Return `grads` scaled so that their global norm is at most `limit`, and the norm before."""
    named = dict(leaves(grads))
    if not named:  # as for a batch of "base" rows
        return grads, global_norm(grads)
    clipped, norm = clip_leaves(list(named.values()), limit)
    return from_leaves(grads, dict(zip(named, clipped, strict=True))), norm


def warmup_cosine(step: int, steps: int, *, peak: float, warmup: int) -> float:
    """Return the learning rate of `step` (0 ... steps-1): linear up to `peak` in `warmup` steps, then a cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def constant(step: int, steps: int, *, peak: float, warmup: int) -> float:
    """Return the learning rate of `step`: linear up to `peak` in `warmup` steps, then `peak`."""
    return peak * min(1.0, (step + 1) / max(1, warmup))
