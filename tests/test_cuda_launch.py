"""What a kernel's text says of its arguments is compared with what it is given, before every start."""

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from minihra.kernels.cuda import launch
from minihra.kernels.cuda.launch import Grid, Source, parameters_of, per_block, per_element, per_warp, size_of

KERNELS = Source("norms.cu")
GOOD = {
    "dy": np.ones((3, 5), np.float32),
    "normal": np.ones((3, 5), np.float32),
    "scale": np.ones((3, 1), np.float32),
    "g": np.ones(5, np.float32),
    "dx": np.empty((3, 5), np.float32),
    "N": 3,
    "C": 5,
}


@pytest.fixture(autouse=True)
def started() -> Iterator[list[tuple[Any, ...]]]:
    """What is started, of which nothing is compiled."""
    calls: list[tuple[Any, ...]] = []

    def compiled(text: str, definitions: tuple[str, ...], kernel: str) -> Any:
        return lambda *given, **named: calls.append((definitions, kernel, *given, named))

    with patch.object(launch, "compiled", compiled):
        yield calls


def run(**changes: Any) -> None:
    KERNELS.run("layer_norm_backward", Grid((2,), (64,), 8), **(GOOD | changes))


def test_arguments_come_in_the_order_of_the_text(started: list[tuple[Any, ...]]) -> None:
    run()
    ((definitions, kernel, blocks, threads, given, named),) = started
    assert (definitions, kernel, blocks, threads) == (("-DREAL=float",), "layer_norm_backward", (2,), (64,))
    assert named == {"shared_mem": 8}
    assert all(a is GOOD[name] for a, name in zip(given, ("dy", "normal", "scale", "g", "dx"), strict=False))
    assert [(type(n), n) for n in given[5:]] == [(np.int32, 3), (np.int32, 5)]


def test_all_numbers_have_the_type_of_the_arrays(started: list[tuple[Any, ...]]) -> None:
    arrays = {name: a.astype(float) for name, a in GOOD.items() if isinstance(a, np.ndarray)}
    run(**arrays)
    assert started[0][0] == ("-DREAL=double",)
    both = {"x": arrays["dy"], "y": arrays["dx"], "normal": arrays["normal"], "scale": arrays["scale"]}
    how = {**both, "u": None, "g": arrays["g"], "b": None, "N": 3, "C": 5, "a": 1.0, "w": 0.0, "eps": 1e-5}
    KERNELS.run("layer_norm_forward", per_warp(3), **how)
    given = started[1][4]
    assert type(given[-1]) is np.float64
    assert [(type(given[i]), given[i]) for i in (1, 3)] == [(int, 0)] * 2  # neither u nor a bias


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"dy": np.ones((3, 5))}, TypeError, "normal must have type float64, got float32"),
        ({"g": np.ones(5)}, TypeError, "layer_norm_backward: g must have type float32, got float64"),
        ({"g": np.ones(10, np.float32)[::2]}, ValueError, "g must be contiguous, got shape"),
        ({"dx": np.empty((5, 3), np.float32).T}, ValueError, "dx must be contiguous"),
        ({"g": np.ones(6, np.float32)}, ValueError, r"g must have 5 elements, those of \(C\), got shape \(6,\)"),
        ({"dy": np.ones((4, 5), np.float32)}, ValueError, r"dy must have 15 elements, those of \(N, C\)"),
        ({"N": 2}, ValueError, r"dy must have 10 elements"),
        ({"b": None}, TypeError, "missing or unknown arguments: b"),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], error: type[Exception], says: str, started: list[tuple[Any, ...]]
) -> None:
    with pytest.raises(error, match=says):
        run(**changes)
    assert started == []


def test_an_argument_may_not_be_left_out() -> None:
    with pytest.raises(TypeError, match="missing or unknown arguments: C"):
        KERNELS.run("layer_norm_backward", per_warp(3), **{name: a for name, a in GOOD.items() if name != "C"})


def test_the_text_of_a_kernel() -> None:
    found = parameters_of(
        "\n    const REAL* __restrict__ x,  // (N, 2*C)  more\n    bool* y,\n    long long N, REAL eps"
    )
    assert list(found) == ["x", "y", "N", "eps"]
    assert found["x"] == ("REAL", True, ("N", "2*C")) and found["y"] == ("bool", True, None)
    assert found["N"] == ("long long", False, None) and found["eps"] == ("REAL", False, None)
    with pytest.raises(ValueError, match="not understood as a parameter of a kernel: 'float x'"):
        parameters_of("float x")


@pytest.mark.parametrize(("letters", "value"), [("N", 3), ("2*T-1", 9), ("T+K-1", 8), ("10", 10), ("2*N*T", 30)])
def test_sizes_in_letters(letters: str, value: int) -> None:
    assert size_of(letters, {"N": 3, "T": 5, "K": 4}) == value


def test_every_array_of_every_kernel_has_a_shape() -> None:
    for path in sorted((launch.Path(launch.__file__).parent).glob("*.cu")):
        source = Source(path.name)
        assert len(source.kernels) == source.text.count("__global__"), path.name
        for kernel, parameters in source.kernels.items():
            for name, parameter in parameters.items():
                assert not parameter.is_array or parameter.shape is not None, (kernel, name)
                for letters in parameter.shape or ():
                    size_of(letters, dict.fromkeys(parameters, 1))


def test_grids() -> None:
    assert per_element(0) == Grid((1,), (256,)) and per_element(257).blocks == (2,)
    assert per_warp(9) == Grid((2,), (256,)) and per_block(0, 32) == Grid((1,), (32,))
    assert per_element(1 << 40).blocks == per_warp(1 << 40).blocks == (launch.MOST_BLOCKS,)
