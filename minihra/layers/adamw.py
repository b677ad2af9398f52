"""One AdamW update of one leaf. Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2, as in torch.optim.AdamW.

m = beta1 m + (1 - beta1) g
v = beta2 v + (1 - beta2) g^2
p = p - lr (decay p + (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps))
"""

from minihra.arrays import Array, array_module


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
    """Move p, m and v (...) in place, by the gradient g (...).

    `step` (1 at the first update) and `lr` are 0-d float64 arrays: the corrections 1 - beta^step lose half their digits
    in float32, and a captured GPU graph can read them anew.
    """
    xp = array_module(p)
    first = (lr / (1 - beta1**step)).astype(p.dtype)
    second = (1 / (1 - beta2**step)).astype(p.dtype)
    shrink = (1 - lr * decay).astype(p.dtype)
    m[...] = beta1 * m + (1 - beta1) * g  # (1)
    v[...] = beta2 * v + (1 - beta2) * (g * g)  # (2)
    p[...] = shrink * p - first * m / (xp.sqrt(v * second) + eps)  # (3)
