"""The linear map on the GPU, its kernel run on the CPU: layouts, sizes at the borders of warps, refusals."""

from collections.abc import Iterator

import numpy as np
import pytest

from minihra.kernels.cuda import linear
from minihra.layers.linear import LinearParams, linear_backward, linear_forward
from minihra.tree import leaves
from tests.cuda_twins import emulated


@pytest.fixture(autouse=True)
def on_cpu() -> Iterator[None]:
    with emulated():
        yield


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def same(x: np.ndarray, dy: np.ndarray, p: LinearParams) -> None:
    wanted, wanted_cache = linear_forward(x, p)
    y, cache = linear.linear_forward(x, p)
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    assert cache.x is x and cache.p is p
    dx, dp = linear_backward(dy, wanted_cache)
    found_dx, found_dp = linear.linear_backward(dy, cache)
    np.testing.assert_allclose(found_dx, dx, atol=1e-12)
    for (name, found), (_, gradient) in zip(leaves(found_dp), leaves(dp), strict=True):
        np.testing.assert_allclose(found, gradient, atol=1e-11, err_msg=name)
        assert found.shape == gradient.shape
    assert (found_dp.b is None) == (p.b is None)


@pytest.mark.parametrize(("N", "I", "O"), [(1, 1, 1), (9, 31, 33), (130, 3, 64), (65, 2, 1), (0, 3, 4)])
def test_sizes(N: int, I: int, O: int) -> None:
    for b in (random(O), None):
        same(random(N, I), random(N, O), LinearParams(random(I, O), b))


def test_layouts() -> None:
    W = random(5, 8)
    for stored in (np.ascontiguousarray(W.T).T, np.concatenate([W, W], 1)[:, :8], np.concatenate([W, W])[::2]):
        stored.flags.writeable = False
        p = LinearParams(stored, random(8))
        same(random(2, 3, 5), random(2, 3, 8), p)
        same(random(3, 2, 5).swapaxes(0, 1), random(3, 2, 8).swapaxes(0, 1), p)
        same(random(4, 10)[:, :5], random(4, 16)[:, ::2], p)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="no product of the shapes"):
        linear.linear_forward(random(3, 4), LinearParams(random(5, 6), None))
    with pytest.raises(ValueError, match="b must have 6 elements"):
        linear.linear_forward(random(3, 5), LinearParams(random(5, 6), random(1)))
    with pytest.raises(ValueError, match="b must be contiguous"):
        linear.linear_forward(random(3, 5), LinearParams(random(5, 6), random(12)[::2]))
    with pytest.raises(TypeError, match="float32, float64"):
        linear.linear_forward(random(3, 5).astype("float32"), LinearParams(random(5, 6), None))
