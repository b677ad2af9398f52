"""The light GRU cell. Ravanelli et al. 2018, arXiv 1803.10225, section III; without its batch norm (our ablation).

    z = sigmoid(x W_z + b_z + h U_z)            no reset gate, and relu for tanh
    n = relu(x W_n + b_n + h U_n)
    h_next = z * h + (1 - z) * n

W = [W_z, W_n], U and b likewise. The paper writes the candidate n as h with a tilde.
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.layers.activations import sigmoid


class LiGRUParams(NamedTuple):
    """Parameters of the light GRU cell."""

    W: Array  # (C, 2H)
    U: Array  # (H, 2H)
    b: Array  # (2H,)


class LiGRUCache(NamedTuple):
    """What `li_gru_backward` reads."""

    x: Array | None  # (N, C)  None when the parameters are frozen
    h: Array  # (N, H)
    z: Array  # (N, H)
    n: Array  # (N, H)
    p: LiGRUParams


def li_gru_forward(x: Array, h: Array, p: LiGRUParams, *, params: bool = True) -> tuple[Array, LiGRUCache]:
    """Step from h (N, H) to h_next (N, H) on x (N, C)."""
    H = h.shape[1]
    a = x @ p.W + h @ p.U + p.b  # (1)
    z, n = sigmoid(a[:, :H]), array_module(x).maximum(a[:, H:], 0)  # (2) (3)
    return z * h + (1 - z) * n, LiGRUCache(x if params else None, h, z, n, p)  # (4)


def li_gru_backward(dh_next: Array, cache: LiGRUCache) -> tuple[Array, Array, LiGRUParams | None]:
    """Return dx (N, C), dh (N, H) and dp for dh_next (N, H)."""
    x, h, z, n, p = cache
    da_z = dh_next * (h - n) * z * (1 - z)  # (4) (2)
    da_n = dh_next * (1 - z) * (n > 0)  # (4) (3)
    da = array_module(dh_next).concatenate([da_z, da_n], axis=1)
    dx, dh = da @ p.W.T, dh_next * z + da @ p.U.T  # (1) (4)
    if x is None:
        return dx, dh, None
    return dx, dh, LiGRUParams(x.T @ da, h.T @ da, da.sum(0))  # (1)
