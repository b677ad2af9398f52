"""Initial values: the documented distributions, and the documented zeros and ones."""

import numpy as np
import pytest

from minihra.adapters.hra import HRA
from minihra.adapters.parts import CELLS
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.tree import leaves


def assert_variance(leaf: Array, variance: float, name: str) -> None:
    """Mean 0 and this variance, to five standard errors."""
    assert abs(leaf.mean()) < 5 * (variance / leaf.size) ** 0.5, name
    assert abs(leaf.var() / variance - 1) < 5 * (2 / leaf.size) ** 0.5, name


@pytest.mark.parametrize("cell", CELLS)
def test_controller(cell: str) -> None:
    for name, leaf in leaves(HRA(60, 40, cell=cell).p.controller):
        if name == "u":
            assert 0 <= leaf.min() < 0.2 < 0.8 < leaf.max() <= 1
        elif name in ("W", "U"):
            assert_variance(leaf, 1 / len(leaf), name)
        else:
            assert (leaf == 0).all(), name


def test_heads_end_in_zeros() -> None:
    linear, ffn = HRA(60, 40), HRA(60, 40, head="ffn")
    for hra in (linear, ffn):
        hra.add_task("ann")
        hra.add_task("bob")
    assert all((leaf == 0).all() for _, leaf in leaves(linear.p.heads))
    assert all((leaf == 0).all() for head in ffn.p.heads.values() for _, leaf in leaves(head.down))
    ann, bob = (ffn.p.heads[task].up.W for task in ("ann", "bob"))
    assert_variance(ann, 1 / 40, "up")
    assert (ann != bob).all()


def test_seed_and_type_are_obeyed() -> None:
    one, same, other = (HRA(8, 4, seed=seed, dtype=np.float64).p.controller.W for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert one.dtype == np.float64
    assert {leaf.dtype.name for _, leaf in leaves(initial_conformer(ConformerConfig(labels=5), 0).p)} == {"float32"}


@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
def test_conformer(conv_norm: str) -> None:
    backbone = initial_conformer(ConformerConfig(labels=40, layers=1, conv_norm=conv_norm), seed=0)
    assert not backbone.frozen
    for name, leaf in leaves(backbone.p):
        last = name.rpartition(".")[2]
        if last == "W":
            relu_follows = name in ("front_end.convs.0.W", "front_end.convs.1.W")
            fan_in = leaf.size // leaf.shape[-1] if "depthwise" not in name else len(leaf)
            assert_variance(leaf, (2 if relu_follows else 1) / fan_in, name)
        else:
            assert (leaf == (1 if last == "g" else 0)).all(), name
    statistics = backbone.statistics[0]
    if conv_norm == "layer":
        assert statistics is None
    else:
        assert (statistics.mean == 0).all() and (statistics.var == 1).all()
