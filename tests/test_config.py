"""Configurations of a Conformer: what is impossible is refused with the name and the value."""

from typing import Any

import pytest

from minihra.blocks.config import ConformerConfig, Stages, Subsampling
from minihra.blocks.conformer_block import MACARON
from minihra.blocks.stages import Stage

NAN, INF = float("nan"), float("inf")
IMPOSSIBLE: list[tuple[str, Any, str]] = [
    ("labels", 0, "labels must be a whole number of at least 1, got 0"),
    ("width", 96.0, "width must be a whole number of at least 1, got 96.0"),
    ("layers", True, "layers must be a whole number of at least 1, got True"),
    ("layers", 1001, "layers must be at most 1000, got 1001"),
    ("inner", -1, "inner must be a whole number of at least 1, got -1"),
    ("kernel", 10**30, f"kernel must be at most 1000000, got {10**30}"),
    ("heads", 5, "width must be a multiple of heads = 5, got 96"),
    ("activation", "tanh", "activation must be one of swish, "),
    ("eps", 0, "eps must be a finite number above 0, got 0"),
    ("eps", -1e-5, "eps must be a finite number above 0, got -1e-05"),
    ("eps", NAN, "eps must be a finite number above 0, got nan"),
    ("eps", INF, "eps must be a finite number above 0, got inf"),
    ("eps", "1e-5", "eps must be a finite number above 0, got '1e-5'"),
    ("eps", None, "eps must be a finite number above 0, got None"),
    ("out_norm", 0.0, "out_norm, an eps, must be a finite number above 0, got 0.0"),
    ("out_norm", True, "out_norm, an eps, must be a finite number above 0, got True"),
    ("rotary_base", 1, "rotary_base must be a finite number above 1, got 1"),
    ("rotary_base", INF, "rotary_base must be a finite number above 1, got inf"),
    ("rotary_base", 10**400, "rotary_base must be a finite number above 1, got 1000"),
    ("shaw", (64, -1), "shaw must be a pair of whole numbers from 0 to 1000000, got (64, -1)"),
    ("shaw", (64,), "shaw must be a pair of whole numbers"),
    ("shaw", (64, 8.0), "shaw must be a pair of whole numbers"),
    ("shaw", None, "shaw must be a pair of whole numbers"),
    ("reach", (1,), "reach must be a pair of whole numbers of at least 0, or None, got (1,)"),
    ("reach", (-1, None), "reach must be a pair of whole numbers"),
    ("reach", (0, 1.5), "reach must be a pair of whole numbers"),
    ("reach", 3, "reach must be a pair of whole numbers"),
    ("weights", MACARON[:3], "weights must be a pair for each of ffn1, attention, conv, ffn2, got"),
    ("weights", None, "weights must be a pair for each of"),
    ("weights", (*MACARON[:3], (1.0, NAN)), "weights of ffn2 must be a pair of finite numbers, got (1.0, nan)"),
    ("weights", ((1.0,), *MACARON[1:]), "weights of ffn1 must be a pair of finite numbers, got (1.0,)"),
    ("weights", ("ab", *MACARON[1:]), "weights of ffn1 must be a pair of finite numbers, got 'ab'"),
]


@pytest.mark.parametrize(("setting", "value", "message"), IMPOSSIBLE)
def test_impossible_values_are_named(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        ConformerConfig(**{"labels": 5, setting: value})
    assert str(caught.value).startswith(message)


def test_what_is_possible_is_taken() -> None:
    for reach in (None, (None, None), (0, 0), (None, 0), (7, None)):
        assert ConformerConfig(5, reach=reach).reach == reach
    assert ConformerConfig(5, shaw=(0, 0), weights=((1, 0),) * 4, out_norm=1e-6, rotary_base=2).out_norm == 1e-6


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("width", 0, "width of a stage must be a whole number of at least 1, got 0"),
        ("kernel", 0, "kernel of a stage must be a whole number of at least 1, got 0"),
        ("stride", 0, "stride of a stage must be a whole number of at least 1, got 0"),
        ("pad", -1, "pad of a stage must be a whole number of at least 0, got -1"),
        ("norm", "batch", "norm of a stage must be one of None, layer, instance, got 'batch'"),
        ("activation", "tanh", "activation of a stage must be one of None, "),
        ("eps", 0.0, "eps of a stage must be a finite number above 0, got 0.0"),
        ("eps", NAN, "eps of a stage must be a finite number above 0, got nan"),
    ],
)
def test_impossible_stages_are_named(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Stages((Stage(**{setting: value}),))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("convs", 0, "convs must be a whole number of at least 1, got 0"),
        ("convs", 1000, "convs must be at most 16, got 1000"),
        ("channels", -1, "channels must be a whole number of at least 1, got -1"),
        ("scale", INF, "scale must be a finite number above 0, got inf"),
    ],
)
def test_impossible_subsamplings_are_named(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Subsampling(**{setting: value})
    assert str(caught.value).startswith(message)
