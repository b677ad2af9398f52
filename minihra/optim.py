"""The optimiser's step over a tree, clipping, and learning-rate schedules.

A leaf without a gradient does not move: neither its value, nor its moments, nor its count of steps. So the head of a
task that is absent from a batch stays as it is.
"""

import math
from typing import NamedTuple

import numpy as np

from minihra.arrays import Array, array_module
from minihra.ops import adamw_update
from minihra.tree import Tree, global_norm, leaves, map_leaves


class Moments(NamedTuple):
    """AdamW's state of one leaf, changed in place."""

    m: Array  # (...)
    v: Array  # (...)
    step: Array  # ()  float64


class AdamW:
    """AdamW over the leaves of a tree, in place. Loshchilov and Hutter 2019, 1711.05101; equations in layers/adamw.py.

    `moments` holds the state by dotted name of leaf, for the caller to save. `decay` applies to leaves
    of two axes or more, so not to the biases and gains of a layer.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, decay: float = 0.0) -> None:
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay
        self.moments: dict[str, Moments] = {}

    def update(self, params: Tree, grads: Tree, lr: float) -> None:
        """Move every leaf of `params` that has a gradient in `grads` one step of learning rate `lr`.

        Raises:
            ValueError: there is a gradient of what is no parameter (which), as of a task that was removed.
        """
        named, gradients = dict(leaves(params)), dict(leaves(grads))
        if strangers := sorted(gradients.keys() - named.keys()):
            raise ValueError(f"gradients of what is no parameter: {', '.join(strangers)}")
        for name, g in gradients.items():
            p, xp = named[name], array_module(g)
            if name not in self.moments:
                self.moments[name] = Moments(xp.zeros_like(p), xp.zeros_like(p), xp.zeros((), np.float64))
            m, v, step = self.moments[name]
            step += 1
            adamw_update(
                p,
                g,
                m,
                v,
                step,
                xp.asarray(lr, np.float64),
                beta1=self.beta1,
                beta2=self.beta2,
                eps=self.eps,
                decay=self.decay if p.ndim > 1 else 0.0,
            )


def clip_by_global_norm(grads: Tree, limit: float) -> tuple[Tree, Array]:
    """Return `grads` scaled so that their global norm is at most `limit`, and the norm before."""
    norm = global_norm(grads)
    if next(leaves(grads), None) is None:  # no leaf at all, as for a batch of "base" rows
        return grads, norm
    scale = limit / array_module(norm).maximum(norm, limit)
    return map_leaves(lambda g: g * scale, grads), norm


def warmup_cosine(step: int, steps: int, *, peak: float, warmup: int) -> float:
    """Return the learning rate of `step` (0 ... steps-1): linear up to `peak` in `warmup` steps, then a cosine to 0."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def constant(step: int, steps: int, *, peak: float, warmup: int) -> float:
    """Return the learning rate of `step`: linear up to `peak` in `warmup` steps, then `peak`."""
    return peak * min(1.0, (step + 1) / max(1, warmup))
