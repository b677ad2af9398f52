"""The twins for the GPU of the convolutions: what a thread makes at once, and the module of a frozen model."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from minihra.arrays import Array
from minihra.blocks.convolution import ConvolutionParams, convolution_backward, convolution_forward
from minihra.blocks.subsampling import SeparableConv2dParams, SubsamplingParams, subsample
from minihra.cases import filled, filled_statistics, linear, numbers
from minihra.kernels.cuda import conv, conv2d, convolution, subsampling
from minihra.layers.conv import DepthwiseConvParams
from minihra.layers.conv2d import Conv2dParams, DepthwiseConv2dParams
from minihra.layers.norms import BatchNormParams, LayerNormParams
from minihra.masks import valid_from_lengths
from minihra.ops import PAIRS, Pair
from minihra.tree import Tree, leaves, whole
from tests.cuda_twins import emulated, gpu_of_stand_ins
from tests.test_cuda_twins import back, moved
from tests.test_twins import TOLERANCE, as_tuple, assert_same, cast, named, reference_of

DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
ORDERS = ({"order": 1}, {"order": 2, "seed": 1}, {"checked": True})


def padded_input(*shape: int, valid: Array, dtype: type, k: int = 0) -> Array:
    """With NaN where nobody may read."""
    x = numbers(*shape, k=k).astype(dtype)
    x[~valid] = np.nan
    return x


def assert_equal(twin: Pair, reference: Pair, inputs: Tree, dy: Array, dtype: type, **how: Any) -> None:
    """Results, gradients and each other's caches, also in the reverse order of threads and in a checked build."""
    *wanted, wanted_cache = reference.forward(**inputs, **how)
    gradients, results = as_tuple(reference.backward(dy, wanted_cache)), []
    for way in ({}, *ORDERS):
        with emulated(threads=64 if "checked" in way else 10, **way):
            *outputs, cache = twin.forward(**inputs, **how)
            found = as_tuple(twin.backward(dy, cache))
            results.append([a.tobytes() for a in named((tuple(outputs), cache, found)).values()])
    assert all(result == results[0] for result in results)
    assert type(cache) is type(wanted_cache)
    assert named(cache).keys() == named(wanted_cache).keys()
    assert_same((tuple(outputs), cache), (tuple(wanted), wanted_cache), dtype)
    with emulated():
        crossed = as_tuple(twin.backward(dy, wanted_cache))
    for each in (found, crossed, as_tuple(reference.backward(dy, cache))):
        assert named(each).keys() == named(gradients).keys()
        assert_same(each, gradients, dtype)


def pairs(module: Any, name: str) -> tuple[Pair, Pair]:
    """A twin and its reference."""
    reference = Pair(*map(reference_of, PAIRS[name]))
    return Pair(*(getattr(module, f"{name}_{way}") for way in ("forward", "backward"))), reference


LENGTHS_AND_SIZES = [  # frames of the utterances, channels, frames of the kernel
    ([1], 1, 1),
    ([6], 3, 4),
    ([7, 0, 3], 3, 2),
    ([8, 8], 2, 8),
    ([9, 1], 5, 9),
    ([5, 2], 4, 32),
    ([23, 17], 33, 31),
    ([131, 64, 65], 2, 15),
]


@DTYPES
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize(("lengths", "C", "K"), LENGTHS_AND_SIZES, ids=str)
def test_depthwise(lengths: list[int], C: int, K: int, causal: bool, dtype: type) -> None:
    """Kernels longer than an utterance; a kernel that lies as PyTorch stores it; without bias; a mask with holes."""
    T = lengths[0]
    valid, holes = valid_from_lengths(lengths, T), numbers(len(lengths), T, k=7) > -0.3
    W, b = numbers(C, K, k=1).astype(dtype), numbers(C, k=2).astype(dtype)
    for mask, p, params in (
        (valid, DepthwiseConvParams(W.T, b), True),
        (valid, DepthwiseConvParams(W.T, None), False),
        (holes, DepthwiseConvParams(np.ascontiguousarray(W.T), None), True),
    ):
        x, dy = (padded_input(len(lengths), T, C, valid=mask, dtype=dtype, k=k) for k in (0, 3))
        inputs = {"x": x, "valid": mask, "p": p}
        assert_equal(*pairs(conv, "depthwise_conv"), inputs, dy, dtype, causal=causal, params=params)


def test_a_nan_reaches_as_far_as_the_kernel() -> None:
    """And not as far as the frames that a thread makes at once."""
    x, valid, p = np.ones((1, 40, 2)), np.ones((1, 40), bool), DepthwiseConvParams(numbers(5, 2), None)
    x[0, 19, 1] = np.nan
    with emulated():
        y, _ = conv.depthwise_conv_forward(x, valid, p)
    assert np.flatnonzero(np.isnan(y[0, :, 1])).tolist() == [17, 18, 19, 20, 21]
    assert np.isfinite(y[0, :, 0]).all()


def module_inputs(lengths: list[int], C: int, K: int, dtype: type, *, bias: bool = True) -> Tree:
    norm = LayerNormParams(np.empty(C), np.empty(C))
    depthwise = DepthwiseConvParams(numbers(K, C, k=12), numbers(C, k=13) if bias else None)
    inner = filled(BatchNormParams(np.empty(C), np.empty(C)), 16)
    p = ConvolutionParams(filled(norm, 1), linear(C, 2 * C, 5), depthwise, inner, linear(C, C, 18))
    valid = valid_from_lengths(lengths, lengths[0])
    x, statistics = numbers(len(lengths), lengths[0], C), filled_statistics(C, 3)
    return {"x": x.astype(dtype), "valid": valid, "statistics": cast(statistics, dtype), "p": cast(p, dtype)}


MODULE = Pair(convolution.convolution_forward, convolution.convolution_backward)
MODULE_REFERENCE = Pair(reference_of(convolution_forward), reference_of(convolution_backward))


@DTYPES
@pytest.mark.parametrize("causal", [False, True], ids=["", "causal"])
@pytest.mark.parametrize(("lengths", "C", "K"), LENGTHS_AND_SIZES[1:], ids=str)
def test_frozen_module(lengths: list[int], C: int, K: int, causal: bool, dtype: type) -> None:
    for bias in (True, False):
        inputs = module_inputs(lengths, C, K, dtype, bias=bias)
        du = numbers(*inputs["x"].shape, k=21).astype(dtype)
        assert_equal(MODULE, MODULE_REFERENCE, inputs, du, dtype, causal=causal, params=False, eps=1e-3)


def test_other_modules_are_left_to_the_reference() -> None:
    """Those that train, and those with another norm or activation; so are their caches."""
    inputs = module_inputs([9, 4], 4, 5, np.float32)
    layer = inputs["p"]._replace(inner_norm=LayerNormParams(*inputs["p"].inner_norm))
    none = inputs["p"]._replace(inner_norm=None)
    du = np.ones_like(inputs["x"])
    for changes in (
        {"params": True},
        {"params": False, "total": whole},
        {"params": True, "total": whole},
        {"params": False, "activation": "relu"},
        {"params": False, "p": layer},
        {"params": False, "p": none},
    ):
        assert MODULE.forward(**inputs | changes) is NotImplemented
        *_, cache = MODULE_REFERENCE.forward(**inputs | changes)
        assert MODULE.backward(du, cache) is NotImplemented


def test_the_switchboard_takes_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the others to the reference, made of twins."""
    inputs, middles = module_inputs([9, 4], 4, 5, np.float32), []
    du = np.ones_like(inputs["x"])

    def counted(function: Callable) -> Callable:
        def count(*arguments: Any) -> Any:
            middles.append(function.__name__)
            return function(*arguments)

        return count

    for name in ("middle_forward", "middle_backward"):
        monkeypatch.setattr(convolution, name, counted(getattr(convolution, name)))
    for params, used in ((False, ["middle_forward", "middle_backward"]), (True, [])):
        u, _, cache = convolution_forward(**inputs, params=params)
        wanted = u, *convolution_backward(du, cache)
        assert middles == []
        with gpu_of_stand_ins(threads=64):
            u, _, cache = convolution_forward(**moved(inputs), params=params)
            found = u, *convolution_backward(moved(du), cache)
        assert middles == used
        assert dict(leaves(found)).keys() == dict(leaves(wanted)).keys()
        assert_same(back(found), wanted, np.float32)
        middles.clear()


FRAMES_AND_SIZES = [  # frames of the utterances, frequencies, inputs, outputs
    ([1], 1, 1, 1),
    ([4, 0, 3], 5, 1, 7),
    ([5, 2], 4, 3, 2),
    ([8, 3], 7, 4, 33),
    ([2, 1], 6, 37, 4),
    ([19, 16, 7], 10, 1, 5),
    ([19, 16, 7], 10, 2, 3),
]


@DTYPES
@pytest.mark.parametrize("params", [True, False], ids=["", "frozen"])
@pytest.mark.parametrize(("lengths", "F", "I", "O"), FRAMES_AND_SIZES, ids=str)
def test_conv2d(lengths: list[int], F: int, I: int, O: int, params: bool, dtype: type) -> None:
    B, T = len(lengths), lengths[0]
    valid = np.repeat(valid_from_lengths(lengths, T), 2, axis=1)[:, ::2]  # with strides, as a convolution leaves it
    halves, F2 = valid[:, ::2], (F + 1) // 2
    W, single = numbers(O, I, 3, 3, k=1).astype(dtype), numbers(I, 3, 3, k=1).astype(dtype)  # as PyTorch stores them
    full = Conv2dParams(W.transpose(2, 3, 1, 0), numbers(O, k=2).astype(dtype))
    single = DepthwiseConv2dParams(single.transpose(1, 2, 0), numbers(I, k=2).astype(dtype))
    for name, p, channels in (("conv2d", full, O), ("depthwise_conv2d", single, I)):
        x = padded_input(B, T, F, I, valid=valid, dtype=dtype)
        dy = padded_input(B, halves.shape[1], F2, channels, valid=halves, dtype=dtype, k=5)
        inputs = {"x": x, "valid": valid, "p": p}
        for below in (True, False):
            assert_equal(*pairs(conv2d, name), inputs, dy, dtype, params=params, below=below)


FRONT_ENDS = [  # frames of the utterances, frequencies, channels of both convolutions, width
    ([1], 1, 1, 1, 2),
    ([2, 0, 1], 5, 3, 2, 3),
    ([5, 3], 4, 33, 4, 5),
    ([23, 18, 3], 21, 5, 17, 6),
    ([40, 40], 9, 70, 3, 2),
]


@DTYPES
@pytest.mark.parametrize(("lengths", "F", "I", "O", "C"), FRONT_ENDS, ids=str)
def test_frozen_front_end(lengths: list[int], F: int, I: int, O: int, C: int, dtype: type) -> None:
    """Taken by the switchboard; also with a mask that has holes, and one that lies with gaps."""
    T = lengths[0]
    convs = Conv2dParams(numbers(3, 3, 1, I, k=1), numbers(I, k=2)), Conv2dParams(numbers(3, 3, I, O, k=3), numbers(O))
    p = cast(SubsamplingParams(convs, linear(-(-F // 4) * O, C, 5)), dtype)
    valid, holes = valid_from_lengths(lengths, T), numbers(len(lengths), T, k=7) > -0.3
    for mask in (valid, holes, np.repeat(valid, 2, axis=1)[:, ::2]):
        features, results = padded_input(len(lengths), T, F, valid=mask, dtype=dtype), []
        for scale in (1.0, 1.5):
            wanted = reference_of(subsample)(features, mask, p, scale=scale)
            for way in ({}, *ORDERS):
                with (
                    gpu_of_stand_ins(threads=64, **way),
                    patch.object(subsampling, "of_patches", wraps=conv2d.of_patches) as taken,
                ):
                    found = back(subsample(*moved((features, mask, p)), scale=scale))
                assert taken.call_count == 1
                assert_same(found, wanted, dtype)
                results.append(found[0].tobytes())
            assert set(results) == {results[0]}
            results.clear()


def test_a_nan_of_a_real_frame_shows() -> None:
    features, valid = np.zeros((2, 9, 12)), np.ones((2, 9), bool)
    features[1, 4, 7] = np.nan
    convs = Conv2dParams(numbers(3, 3, 1, 3), numbers(3)), Conv2dParams(numbers(3, 3, 3, 4), numbers(4))
    with emulated():
        y, _ = subsampling.subsample(features, valid, SubsamplingParams(convs, linear(12, 5, 5)))
    assert np.isfinite(y[0]).all() and np.isnan(y[1, 1]).any()


def test_other_front_ends_are_left_to_the_reference() -> None:
    full, out = Conv2dParams(numbers(3, 3, 1, 2), numbers(2)), linear(8, 5, 5)
    again = Conv2dParams(numbers(3, 3, 2, 2), numbers(2))
    separable = SeparableConv2dParams(DepthwiseConv2dParams(numbers(3, 3, 2), numbers(2)), linear(2, 2, 3))
    for convs in ((full,), (full, again, again), (full, separable)):
        p = SubsamplingParams(convs, out)
        assert subsampling.subsample(np.zeros((1, 4, 8)), np.ones((1, 4), bool), p) is NotImplemented


@pytest.mark.parametrize("wrong", ["frequencies", "mask", "kernel", "bias", "second kernel", "second bias", "out"])
def test_a_front_end_that_does_not_fit_is_refused(wrong: str) -> None:
    """A kernel would read beyond an array."""
    first, second = Conv2dParams(numbers(3, 3, 1, 3), numbers(3)), Conv2dParams(numbers(3, 3, 3, 4), numbers(4))
    features, valid, p = (
        np.zeros((2, 9, 12)),
        np.ones((2, 9), bool),
        SubsamplingParams((first, second), linear(12, 5, 5)),
    )
    with emulated():
        subsampling.subsample(features, valid, p)
        match wrong:
            case "frequencies":
                features = features[..., :8]
            case "mask":
                valid = valid[:1]
            case "kernel":
                p = p._replace(convs=(first._replace(W=first.W[..., :2]), second))
            case "bias":
                p = p._replace(convs=(first._replace(b=first.b[:2]), second))
            case "second kernel":
                p = p._replace(convs=(first, second._replace(W=second.W[:, :, :2])))
            case "second bias":
                p = p._replace(convs=(first, second._replace(b=second.b[:3])))
            case "out":
                p = p._replace(out=p.out._replace(W=p.out.W[:8]))
        with pytest.raises((TypeError, ValueError)):
            subsampling.subsample(features, valid, p)


SHAPES = {  # of x, the kernel and its type
    "depthwise_conv": ((2, 6, 3), (3, 3), DepthwiseConvParams),
    "conv2d": ((2, 6, 5, 3), (3, 3, 3, 3), Conv2dParams),
    "depthwise_conv2d": ((2, 6, 5, 3), (3, 3, 3), DepthwiseConv2dParams),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    """A kernel, a bias or a mask of another size, or of another type; the kernels would read beyond an array."""
    shape, kernel, kind = SHAPES[name]
    x, valid, W, b = np.zeros(shape), np.ones((2, 6), bool), np.zeros(kernel), np.zeros(3)
    forward = pairs(conv if name == "depthwise_conv" else conv2d, name)[0].forward
    with emulated():
        forward(x, valid, kind(W, b))
        for wrong in (
            (x, valid[:1], kind(W, b)),
            (x, valid, kind(W[..., :2], b)),
            (x, valid, kind(W, b[:2])),
            (x, valid.astype(np.int32), kind(W, b)),
            (x.astype(np.float32), valid, kind(W, b)),
        ):
            with pytest.raises((TypeError, ValueError)):
                forward(*wrong)
