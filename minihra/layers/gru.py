"""The GRU cell. Cho et al. 2014, arXiv 1406.1078v1; reset-after form (gate order r, z, n), as in torch.nn.GRUCell.

    r = sigmoid(x W_r + b_r + h U_r)            N = B*T frames, C = width of x, H = width of the state
    z = sigmoid(x W_z + b_z + h U_z)
    n = tanh(x W_n + b_n + r * (h U_n + c))
    h_next = (1 - z) * n + z * h

The three gates stand side by side: W = [W_r, W_z, W_n], U and b likewise. The paper resets h before its product with
U_n; resetting after it makes that product one with the other two.
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.layers.activations import sigmoid


class GRUParams(NamedTuple):
    """Parameters of the GRU cell."""

    W: Array  # (C, 3H)
    U: Array  # (H, 3H)
    b: Array  # (3H,)
    c: Array  # (H,)


class GRUCache(NamedTuple):
    """What `gru_backward` reads."""

    x: Array | None  # (N, C)  None when the parameters are frozen
    h: Array  # (N, H)
    r: Array  # (N, H)
    z: Array  # (N, H)
    n: Array  # (N, H)
    q: Array  # (N, H)  h U_n + c
    p: GRUParams


def gru_forward(x: Array, h: Array, p: GRUParams, *, params: bool = True) -> tuple[Array, GRUCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    xp, H = array_module(x), h.shape[1]
    a, g = x @ p.W + p.b, h @ p.U  # (1) (2)
    r = sigmoid(a[:, :H] + g[:, :H])  # (3)
    z = sigmoid(a[:, H : 2 * H] + g[:, H : 2 * H])  # (4)
    q = g[:, 2 * H :] + p.c  # (5)
    n = xp.tanh(a[:, 2 * H :] + r * q)  # (6)
    return (1 - z) * n + z * h, GRUCache(x if params else None, h, r, z, n, q, p)  # (7)


def gru_backward(dh_next: Array, cache: GRUCache) -> tuple[Array, Array, GRUParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, r, z, n, q, p = cache
    xp = array_module(dh_next)
    da_n = dh_next * (1 - z) * (1 - n * n)  # (7) (6)
    da_r, dq = da_n * q * r * (1 - r), da_n * r  # (6) (3)
    da_z = dh_next * (h - n) * z * (1 - z)  # (7) (4)
    da = xp.concatenate([da_r, da_z, da_n], axis=1)
    dg = xp.concatenate([da_r, da_z, dq], axis=1)
    dx = da @ p.W.T  # (1)
    dh = dh_next * z + dg @ p.U.T  # (7) (2)
    if x is None:
        return dx, dh, None
    return dx, dh, GRUParams(x.T @ da, h.T @ dg, da.sum(0), dq.sum(0))  # (1) (2) (5)
