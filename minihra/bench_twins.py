"""The twins against their references, on the tiny inputs of cases.py, before `minihra bench` times anything."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.blocks.subsampling import subsample
from minihra.cases import layer_cases
from minihra.device import to_host
from minihra.ops import CUDA_TWINS, PAIRS, TWINS, UNPAIRED, draw_keep, references, twins_in
from minihra.optim import AdamW, clip_by_global_norm
from minihra.threads import share
from minihra.tree import leaves, map_leaves

ALLOWED = 1e-5  # between a twin and its reference, of the largest element


def check_twins(xp: ModuleType = np) -> dict[str, float]:
    """Return, for each case of a function with a twin, the largest error of the twin in float32.

    With the array module of a GPU it is the GPU's twins, beside the references on the CPU.

    Raises:
        ValueError: one is above what is allowed.
    """
    twins, folder = (TWINS, "cpu") if xp is np else (CUDA_TWINS, "cuda")
    errors = {}
    for case in layer_cases():
        pair = case.name.partition(",")[0]
        if pair not in twins or twins_in(twins[pair], folder) is None:
            continue
        arguments = map_leaves(single, {**case.arguments, **case.constants})
        with references():
            wanted = results_of(pair, arguments)
        there = map_leaves(lambda leaf: xp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, arguments)
        errors[case.name] = largest_error(to_host(tuple(results_of(pair, there))), wanted)
    for name, run in unpaired_runs().items() if xp is np else ():
        if twins_in(UNPAIRED[name]) is not None:
            with references():
                wanted = run()
            found = [*share([run, run]), run()]  # some twins are for a thread of its own, others for several
            errors[name] = max(largest_error(one, wanted) for one in found)
    for name, error in errors.items():
        if not error <= ALLOWED:
            raise ValueError(f"{name}: the twin is off by {error:.1e}, allowed are {ALLOWED:g}")
    return errors


def unpaired_runs() -> dict[str, Callable[[], Sequence[np.ndarray]]]:
    """Return what runs each function of `UNPAIRED`, by name."""
    rng = np.random.default_rng(0)
    front_end = initial_conformer(ConformerConfig(labels=2, width=16, layers=1, mels=21), seed=0).p.front_end
    features, valid = rng.standard_normal((2, 30, 21), np.float32), np.arange(30) < [[30], [17]]
    shapes = {"a": (600, 450), "b": (5,), "c": (450, 610)}  # large enough for several threads
    params, gradients = ({name: rng.random(s, np.float32) for name, s in shapes.items()} for _ in range(2))

    def moved(limit: float | None = None) -> Sequence[np.ndarray]:
        its, optimiser = map_leaves(np.array, params), AdamW(decay=0.1)
        for _ in range(3):
            if limit is None:
                optimiser.update(its, gradients, 1e-3)
            else:
                optimiser.clipped_update(its, gradients, 1e-3, limit)
        return [*its.values()]

    return {
        "adamw_update_leaves": moved,
        "clipped_adamw_leaves": lambda: moved(0.5),
        "clip_leaves": lambda: [*clip_by_global_norm(gradients, 0.5)[0].values()],
        "subsample": lambda: subsample(features, valid, front_end)[:1],
        "draw_keep": lambda: [draw_keep(features, np.random.default_rng(0), (300, 301), rate=0.1).astype(np.float32)],
    }


def largest_error(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Return the largest difference, of the largest element of each array."""
    return max(
        float(np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30))
        for a, b in zip(found, wanted, strict=True)
    )


def single(leaf: Any) -> Any:
    """Return an array of float64 in float32."""
    return leaf.astype(np.float32) if getattr(leaf, "dtype", None) == np.float64 else leaf


def results_of(pair: str, arguments: dict[str, Any]) -> list[np.ndarray]:
    """Return the output of a pair and its gradients."""
    y, *_, cache = PAIRS[pair].forward(**arguments)
    gradients = PAIRS[pair].backward(1 + y * y, cache)
    return [y, *(leaf for _, leaf in leaves(gradients if isinstance(gradients, tuple) else (gradients,)))]
