"""The one-dimensional front ends: a list of stages, each a map, a norm and an activation, where it has them.

    a = activation(norm(map(a)))

The map is linear or a strided convolution over time. Three of the open models differ only in their lists:

    wav2vec 2.0 (Baevski et al. 2020, 2006.11477, section 2)   seven convolutions of the waveform, 320 samples in one
    Wav2Vec2-BERT                                              a norm of two stacked frames, and a linear map
    LASR                                                       linear, two convolutions for 4 frames in one, linear

A convolution pads with zeros on both sides and keeps n frames of (n + 2 pad - K) // stride + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minihra.arrays import Array
from minihra.blocks.activation import ACTIVATIONS, ActivationCache, activation_backward
from minihra.blocks.limits import must_be_above, must_be_one_of, must_be_whole
from minihra.layers.conv import Conv1dCache, Conv1dParams
from minihra.layers.linear import LinearCache, LinearParams
from minihra.layers.norms import EPS, InstanceNormCache, InstanceNormParams, LayerNormCache, LayerNormParams
from minihra.masks import hide, strided
from minihra.ops import (
    conv1d_backward,
    conv1d_forward,
    instance_norm_backward,
    instance_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    linear_backward,
    linear_forward,
)

NORMS = {"layer": LayerNormParams, "instance": InstanceNormParams}
"""The parameters of each norm; "instance" is over the frames of an utterance, each channel on its own."""


@dataclass(frozen=True)
class Stage:
    """One stage of a front end.

    Raises:
        ValueError: a size, a kind or the eps is impossible.
    """

    width: int | None = None  # of what the map gives; None = no map
    kernel: int = 1  # 1 with a stride of 1 = a linear map
    stride: int = 1
    pad: int = 0
    bias: bool = True  # of the map
    norm: str | None = None  # of NORMS
    eps: float = EPS  # of the norm
    activation: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("kernel", self.kernel, 1), ("stride", self.stride, 1), ("pad", self.pad, 0)):
            must_be_whole(f"{name} of a stage", value, least)
        if self.width is not None:
            must_be_whole("width of a stage", self.width)
        must_be_one_of("norm of a stage", self.norm, (None, *NORMS))
        must_be_one_of("activation of a stage", self.activation, (None, *ACTIVATIONS))
        must_be_above("eps of a stage", self.eps, 0)

    @property
    def linear(self) -> bool:
        """Whether the map is linear."""
        return self.kernel == 1 and self.stride == 1

    def frames(self, n: int) -> int:
        """Return how many frames it makes of n."""
        return n if self.linear else max(0, (n + 2 * self.pad - self.kernel) // self.stride + 1)


class StageParams(NamedTuple):
    """Parameters of a stage."""

    map: LinearParams | Conv1dParams | None  # (I, O) or (K, I, O)
    norm: LayerNormParams | InstanceNormParams | None  # (O,)


class StageCache(NamedTuple):
    """What the backward of a stage reads."""

    map: LinearCache | Conv1dCache | None
    norm: LayerNormCache | InstanceNormCache | None
    activation: ActivationCache | None


class StagesCache(NamedTuple):
    """What `stages_backward` reads."""

    stages: tuple[StageCache, ...]
    valid: Array  # (B, T)


BACKWARD = {
    LinearCache: linear_backward,
    Conv1dCache: conv1d_backward,
    LayerNormCache: layer_norm_backward,
    InstanceNormCache: instance_norm_backward,
    type(None): lambda dy, cache: (dy, None),
}


def stages_forward(
    features: Array, valid: Array, p: tuple[StageParams, ...], *, stages: Sequence[Stage], params: bool = True
) -> tuple[Array, Array, StagesCache]:
    """Map features (B, T, F) to x (B, T', C). Returns x, its mask (B, T') and the cache."""
    a, real, caches = hide(features, valid), valid, []  # (1)
    for stage, q in zip(stages, p, strict=True):
        mapped = norm = bend = None
        match q.map:
            case LinearParams():
                a, mapped = linear_forward(a, q.map, params=params)  # (2)
            case Conv1dParams():
                a, mapped = conv1d_forward(a, real, q.map, stride=stage.stride, pad=stage.pad, params=params)  # (2)
                real = strided(real, stage.kernel, stage.stride, stage.pad)
        match q.norm:
            case LayerNormParams():
                a, norm = layer_norm_forward(a, q.norm, eps=stage.eps, params=params)  # (3)
            case InstanceNormParams():
                a, norm = instance_norm_forward(a, real, q.norm, eps=stage.eps, params=params)  # (3)
        if stage.activation is not None:
            a, bend = ACTIVATIONS[stage.activation].forward(a)  # (4)
        caches.append(StageCache(mapped, norm, bend))
    return a, real, StagesCache(tuple(caches), valid)


def stages_backward(dx: Array, cache: StagesCache) -> tuple[Array, tuple[StageParams, ...] | None]:
    """Return dfeatures (B, T, F), 0 on padded frames, and dp for dx (B, T', C)."""
    da, dp = dx, []
    for stage in reversed(cache.stages):
        if stage.activation is not None:
            da = activation_backward(da, stage.activation)  # (4)
        da, dnorm = BACKWARD[type(stage.norm)](da, stage.norm)  # (3)
        da, dmap = BACKWARD[type(stage.map)](da, stage.map)  # (2)
        dp.append(StageParams(dmap, dnorm))
    frozen = all(q.map is None and q.norm is None for q in dp)
    return hide(da, cache.valid), None if frozen else tuple(reversed(dp))  # (1)
