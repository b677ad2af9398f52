"""The porting guide's reader names, for mistakes that people make in a GRU, the array that its table says."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minihra.arrays import Array

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/porting.md").read_text(encoding="utf-8")


@cache
def reader() -> dict:
    """What the page's first snippet defines."""
    code = re.search(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE).group(1)
    namespace: dict = {}
    exec(compile(code.replace('"tests/golden"', repr(str(ROOT / "tests/golden"))), "porting.md", "exec"), namespace)
    return namespace


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def port(mistake: str, dtype: str) -> dict[str, Array]:
    """A GRU as a port would write it, with one mistake."""
    g = reader()["golden"]("gru", dtype)
    x, h, W, U, b, c = (g[f"arguments.{name}"] for name in ("x", "h", "p.W", "p.U", "p.b", "p.c"))
    dy = g["doutputs.0"]
    (xr, xz, xn), (Ur, Uz, Un) = np.split(x @ W + b, 3, axis=1), np.split(U, 3, axis=1)
    r, z = sigmoid(xr + h @ Ur), sigmoid(xz + h @ Uz)
    q = h @ Un + (0 if mistake == "c outside" else c)
    inner = (r * h) @ Un + c if mistake == "reset first" else r * q + (c if mistake == "c outside" else 0)
    n = np.tanh(xn + inner)
    y = z * n + (1 - z) * h if mistake == "swapped" else (1 - z) * n + z * h
    da_n = dy * (1 - z) * (1 - n * n)
    return {
        **{"cache.r": r, "cache.z": z, "cache.q": q, "cache.n": n, "outputs.0": y},
        "gradients.p.c": da_n.sum(0) if mistake == "dc" else (da_n * r).sum(0),
    }


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        ("none", None),
        ("c outside", "cache.q"),
        ("reset first", "cache.n"),
        ("swapped", "outputs.0"),
        ("dc", "gradients.p.c"),
    ],
)
def test_the_first_wrong_array_is_the_one_of_the_table(mistake: str, found: str | None, dtype: str) -> None:
    assert reader()["first_mismatch"](port(mistake, dtype), "gru", dtype) == found
    assert found is None or f"| GRU `{found}`" in PAGE
