"""Twin of the optimiser's step: one pass."""

import math

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch, must_have


@compiled
def _adamw(
    p: Array, g: Array, m: Array, v: Array, factors: tuple[float, ...], p_new: Array, m_new: Array, v_new: Array
) -> None:
    old1, new1, old2, new2, first, second, eps, shrink = factors
    for i in range(p.size):
        m_new[i] = old1 * m[i] + new1 * g[i]
        v_new[i] = old2 * v[i] + new2 * (g[i] * g[i])
        p_new[i] = shrink * p[i] - first * m_new[i] / (math.sqrt(v_new[i] * second) + eps)


def adamw_update(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: Array,
    lr: Array,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    decay: float = 0.0,
) -> tuple[Array, Array, Array]:
    """Return the new p, m, v (...) for the gradient g (...)."""
    xp, number = array_module(p), p.dtype.type
    must_have(p.shape, g, m, v)
    factors = beta1, 1 - beta1, beta2, 1 - beta2, lr / (1 - beta1**step), 1 / (1 - beta2**step), eps, 1 - lr * decay
    new = [xp.empty(p.shape, p.dtype) for _ in range(3)]
    flat = [xp.ascontiguousarray(array).reshape(-1) for array in (p, g, m, v)]
    launch(_adamw, *flat, tuple(number(factor) for factor in factors), *(array.reshape(-1) for array in new))
    return tuple(new)
