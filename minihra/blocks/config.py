"""What a Conformer is: its sizes, and the values by which the open models of this kind differ.

Each value chooses a pair of layers or a number that one is given; the parameters themselves tell the rest.
"""

from dataclasses import dataclass, field
from typing import Any

from minihra.blocks.activation import ACTIVATIONS
from minihra.blocks.conformer_block import MACARON, STEPS, BlockForm, Weights
from minihra.blocks.limits import MOST, is_finite, is_whole, must_be_above, must_be_one_of, must_be_pair, must_be_whole
from minihra.blocks.self_attention import Attention
from minihra.blocks.stages import Stage
from minihra.layers.attention import Reach
from minihra.layers.norms import EPS

POSITIONS = ("none", "relative", "shaw", "rotary", "rotary_input")
CONV_NORMS = ("batch", "layer", "none")
PRECISIONS = ("float64", "float32")


@dataclass(frozen=True)
class Subsampling:
    """A front end of two-dimensional convolutions with a stride of 2 each (blocks/subsampling.py).

    Raises:
        ValueError: a size or the scale is impossible.
    """

    convs: int = 2  # each halves the frame rate
    channels: int | None = None  # None = C
    separable: bool = False  # all but the first one
    scale: float = 1.0  # of what it gives

    least = 1  # frames for which it gives one

    def __post_init__(self) -> None:
        must_be_whole("convs", self.convs, most=16)
        if self.channels is not None:
            must_be_whole("channels", self.channels)
        must_be_above("scale", self.scale, 0)

    @property
    def stride(self) -> int:
        """Frames of features for each frame that it gives."""
        return 2**self.convs

    def frames(self, n: int) -> int:
        """Return how many frames it gives for n."""
        return -(-n // self.stride)


@dataclass(frozen=True)
class Stages:
    """A front end of one-dimensional stages (blocks/stages.py)."""

    stages: tuple[Stage, ...]

    @property
    def stride(self) -> int:
        """Frames of features for each frame that it gives."""
        product = 1
        for stage in self.stages:
            product *= stage.stride
        return product

    @property
    def least(self) -> int:
        """The fewest frames of features for which it gives one."""
        n = 1
        for stage in reversed(self.stages):
            if not stage.linear:
                n = max(1, (n - 1) * stage.stride + stage.kernel - 2 * stage.pad)
        return n

    def frames(self, n: int) -> int:
        """Return how many frames it gives for n."""
        for stage in self.stages:
            n = stage.frames(n)
        return n


@dataclass(frozen=True)
class ConformerConfig:
    """Sizes and kinds of a Conformer.

    Raises:
        ValueError: a size, a kind or a number is impossible.
    """

    labels: int  # V, with the blank
    mels: int = 40  # F: mel bins, or whatever else a frame of features holds
    width: int = 96  # C
    layers: int = 4  # L
    heads: int = 4  # A
    kernel: int = 15  # K
    inner: int | None = None  # width of the feed-forward modules; None = 4 C
    conv_norm: str = "batch"  # the convolution module's inner norm: "batch", "layer" or "none"
    causal: bool = False  # the convolution module sees no later frame
    activation: str = "swish"  # of the feed-forward and convolution modules
    position: str = "relative"  # how attention learns of positions: see blocks/self_attention.py
    reach: Reach = None  # frames that attention sees to the left and right, after subsampling
    shaw: tuple[int, int] = (64, 8)  # the longest distances to the left and right with a vector of their own
    rotary_base: float = 10000.0
    precision: str = "float64"  # in which sinusoids are computed; open models were trained with "float32" ones
    exponential: bool = False  # how the frequencies of relative positions are computed: see relative_attention.py
    bias: bool = True  # of the linear maps of attention and feed-forward modules
    conv_bias: bool = True  # of the pointwise maps and the depthwise kernel
    norm_bias: bool = True  # of the layer norms
    eps: float = EPS  # of the blocks' layer norms
    weights: Weights = MACARON  # (a, w) of each residual step x = a x + w u
    out_norm: float | None = None  # eps of a layer norm between the last block and the readout; None = there is none
    front_end: Subsampling | Stages = field(default_factory=Subsampling)

    def __post_init__(self) -> None:
        for size in ("labels", "mels", "width", "heads", "kernel"):
            must_be_whole(size, getattr(self, size))
        must_be_whole("layers", self.layers, most=1000)
        if self.inner is not None:
            must_be_whole("inner", self.inner)
        for name, known in (
            ("conv_norm", CONV_NORMS),
            ("position", POSITIONS),
            ("activation", tuple(ACTIVATIONS)),
            ("precision", PRECISIONS),
        ):
            must_be_one_of(name, getattr(self, name), known)
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads = {self.heads}, got {self.width}")
        turned = self.width // self.heads if self.position.startswith("rotary") else self.width
        if self.position not in ("none", "shaw") and turned % 2:
            raise ValueError(f"position {self.position!r} needs an even width (of each head, if rotary), got {turned}")
        if self.reach is not None:
            must_be_pair("reach", self.reach, "whole numbers of at least 0, or None", is_reach)
        must_be_pair("shaw", self.shaw, f"whole numbers from 0 to {MOST}", lambda n: is_whole(n, 0) and n <= MOST)
        must_be_above("rotary_base", self.rotary_base, 1)
        must_be_above("eps", self.eps, 0)
        if self.out_norm is not None:
            must_be_above("out_norm, an eps,", self.out_norm, 0)
        if not isinstance(self.weights, tuple) or len(self.weights) != len(STEPS):
            raise ValueError(f"weights must be a pair for each of {', '.join(STEPS)}, got {self.weights}")
        for step, pair in zip(STEPS, self.weights, strict=True):
            must_be_pair(f"weights of {step}", pair, "finite numbers", is_finite)

    @property
    def feed_forward(self) -> int:
        """The inner width of the feed-forward modules."""
        return 4 * self.width if self.inner is None else self.inner

    @property
    def form(self) -> BlockForm:
        """What the blocks are to be told beside their parameters."""
        attention = Attention(
            self.heads,
            self.position,
            self.reach,
            self.shaw[0],
            self.rotary_base,
            self.precision,
            self.exponential,
        )
        return BlockForm(attention, self.causal, self.activation, self.eps, self.weights)


def is_reach(value: Any) -> bool:
    """Whether a value says how far attention sees to one side: None = all."""
    return value is None or is_whole(value, 0)


def config_from_json(content: dict[str, Any]) -> ConformerConfig:
    """Return the configuration that `dataclasses.asdict` and JSON made `content` of.

    Raises:
        ValueError, TypeError, KeyError: it is damaged.
    """
    front = content["front_end"]
    if "stages" in front:
        front_end: Subsampling | Stages = Stages(tuple(Stage(**stage) for stage in front["stages"]))
    else:
        front_end = Subsampling(**front)
    return ConformerConfig(**{key: as_tuples(value) for key, value in content.items()} | {"front_end": front_end})


def as_tuples(value: Any) -> Any:
    """Return a value with tuples in place of JSON's lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, (list, tuple)) else value
