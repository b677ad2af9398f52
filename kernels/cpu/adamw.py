"""Twin of the optimiser's step: one pass."""

import math

from minihra.arrays import Array
from minihra.kernels.cpu.compiled import compiled, must_have


@compiled
def _adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    step: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    decay: float,
) -> None:
    number = p.dtype.type
    old1, new1, old2, new2, least = number(beta1), number(1 - beta1), number(beta2), number(1 - beta2), number(eps)
    first, second, shrink = number(lr / (1 - beta1**step)), number(1 / (1 - beta2**step)), number(1 - lr * decay)
    for i in range(p.size):
        m[i] = old1 * m[i] + new1 * g[i]
        v[i] = old2 * v[i] + new2 * (g[i] * g[i])
        p[i] = shrink * p[i] - first * m[i] / (math.sqrt(v[i] * second) + least)


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
) -> None:
    """Move p, m and v (...) in place, by the gradient g (...)."""
    must_have(p.shape, g, m, v)
    if not (p.flags.c_contiguous and m.flags.c_contiguous and v.flags.c_contiguous):
        return NotImplemented  # their rows would be copies
    flat = (array.reshape(-1) for array in (p, g, m, v))
    _adamw(*flat, float(step), float(lr), beta1, beta2, eps, decay)
    return None
