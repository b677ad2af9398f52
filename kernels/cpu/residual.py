"""Twin of the residual step's forward: one pass."""

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import compiled, launch, must_have
from minihra.layers.residual import ResidualCache


@compiled
def _residual(x: Array, u: Array, a: float, w: float, y: Array) -> None:
    for i in range(x.size):
        y[i] = a * x[i] + w * u[i]


def residual_forward(x: Array, u: Array, *, weights: tuple[float, float]) -> tuple[Array, ResidualCache]:
    """Add the branch u (...) to x (...)."""
    xp, number = array_module(x), x.dtype.type
    must_have(x.shape, u)
    y = xp.empty(x.shape, x.dtype)
    launch(_residual, x.reshape(-1), u.reshape(-1), number(weights[0]), number(weights[1]), y.reshape(-1))
    return y, ResidualCache(weights)
