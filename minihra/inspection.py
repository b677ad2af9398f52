"""`minihra inspect`: what a backbone is, what of it can be used, and how much memory it takes.

Of an open checkpoint it reads the headers of the tensors and none of them. A backbone of our own and the file of hama
are read whole.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NamedTuple, TypeVar

from minihra.adapters.accounting import count_hra
from minihra.blocks.config import ConformerConfig, Subsampling
from minihra.blocks.conformer_block import MACARON, STEPS
from minihra.blocks.parameters import conformer_shapes
from minihra.evaluate import PIECE
from minihra.loaders.backbone import Source, open_backbone
from minihra.loaders.tensors import StoredTensor
from minihra.memory import BYTES, AdapterShape, Memory, memory_of_inference, memory_of_step
from minihra.speech.features import Features
from minihra.speech.tokenizers import Tokenizer
from minihra.tree import count

TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
POSITIONS = {
    "none": "no positions",
    "relative": "relative positions",
    "shaw": "a key for each distance (Shaw)",
    "rotary": "rotary positions",
    "rotary_input": "rotary positions, before the maps",
}
NORMS = {"batch": "batch norm", "layer": "layer norm", "none": "no norm"}
Part = TypeVar("Part")


class Inspection(NamedTuple):
    """What there is to know of a backbone; what is None could not be made, and `faults` says why."""

    source: Source
    tensors: dict[str, StoredTensor] | None
    features: Features | None
    tokenizer: Tokenizer | None
    faults: dict[str, str]  # by "weights", "features" or "tokenizer"
    inference: Memory | None
    step: Memory | None

    @property
    def frame_rate(self) -> float | None:
        """Frames of output in a second."""
        return None if self.features is None else 1 / (self.features.hop * self.source.config.front_end.stride)


def inspect_backbone(
    name: str,
    seconds: float = 10.0,
    batch: int = 1,
    adapter: AdapterShape | None = None,
    recompute: bool = False,
) -> Inspection:
    """Return what there is to know of the backbone that `name` stands for.

    The memory is that of `batch` recordings of so many seconds, and of adapting an HRA of the shape `adapter`, with
    `recompute` as `minihra adapt --recompute` does.

    Raises:
        ValueError: there is no such backbone, or it is of an unknown kind; or no such recordings or adapter.
    """
    adapter = AdapterShape() if adapter is None else adapter
    if batch < 1 or not 0 < seconds < float("inf"):
        raise ValueError(f"--batch must be at least 1 and --seconds above 0, got {batch} and {seconds}")
    source, faults = open_backbone(name), {}
    count_hra(
        source.config.width,
        adapter.state_size,
        1,
        cell=adapter.controller,
        head=adapter.head,
        bottleneck=adapter.bottleneck,
    )

    def part(what: str, make: Callable[[], Part]) -> Part | None:
        try:
            return make()
        except (ValueError, OSError) as error:
            faults[what] = str(error)
            return None

    tensors, features = part("weights", source.tensors), part("features", source.features)
    tokenizer, inference, step = part("tokenizer", source.tokenizer), None, None
    if features is not None:
        if source.config.front_end.frames(round(seconds / features.hop)) < 1:
            raise ValueError(f"--seconds {seconds:g} is less than one frame of this model")
        inference = memory_of_inference(source.config, features.hop, batch, seconds)
        step = memory_of_step(source.config, features.hop, adapter, batch, seconds, recompute)
    return Inspection(source, tensors, features, tokenizer, faults, inference, step)


def stored_bytes(tensors: dict[str, StoredTensor]) -> dict[str, int]:
    """Return the bytes on disk of each type of tensor."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[TYPES.get(tensor.type, tensor.type)] += tensor.bytes
    return dict(sizes)


def size(n: float) -> str:
    """Return bytes in words."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB" if n < 1e8 else f"{n / 1e6:.0f} MB"


def kind_of(config: ConformerConfig) -> str:
    """Return how the blocks compute, in words."""
    words = [
        POSITIONS[config.position],
        f"{'causal ' * config.causal}convolution with {NORMS[config.conv_norm]}",
        config.activation,
    ]
    if config.reach is not None:
        left, right = ("all" if n is None else n for n in config.reach)
        words.append(f"attention sees {left} frames back and {right} ahead")
    if config.weights != MACARON:
        steps = (f"{step} {a:g} x + {w:g} u" for step, (a, w) in zip(STEPS, config.weights, strict=True))
        words.append(f"residual steps {', '.join(steps)}")
    if not config.bias:
        words.append("no biases in attention and feed-forward")
    return "; ".join(words)


def front_end_of(config: ConformerConfig) -> str:
    """Return what the front end is, in words."""
    front = config.front_end
    if isinstance(front, Subsampling):
        what = f"{front.convs} 3x3 convolution{'s' * (front.convs > 1)} of {front.channels or config.width} channels"
        what += ", the later ones separable" * (front.separable and front.convs > 1)
    else:
        what = ", ".join(
            f"{'linear' if stage.linear else f'convolution over {stage.kernel}'} to {stage.width}"
            for stage in front.stages
            if stage.width is not None
        )
    return f"{what}; {front.stride} frames of features in one" if front.stride > 1 else what


def memory_line(memory: Memory, keeps: bool) -> str:
    """Return what a task takes, in words."""
    adapter = f" + {size(memory.adapter)} adapter and optimiser" * bool(memory.adapter)
    kept = f" (of which {size(memory.kept)} kept for the backward)" * keeps
    return f"{size(memory.total)} = {size(memory.weights)} weights{adapter} + {size(memory.working)} at work{kept}"


def usable_for(found: Inspection) -> dict[str, bool]:
    """Return which uses have all that they take."""
    logits = "weights" not in found.faults and "features" not in found.faults
    return {"logits": logits, "inference": logits and found.tokenizer is not None, "adaptation": not found.faults}


def lines_of(found: Inspection, seconds: float, batch: int, adapter: AdapterShape) -> list[tuple[str, str]]:
    """Return the report for people as (heading, text)."""
    config, features, tokenizer = found.source.config, found.features, found.tokenizer
    number = count(conformer_shapes(config)[0])
    parameters = f"{number:,}; {size(BYTES * number)} in memory, as float32"
    if found.tensors is not None:
        stored = ", ".join(f"{kind} {size(n)}" for kind, n in stored_bytes(found.tensors).items())
        parameters = f"{number:,}; stored as {stored}; {size(BYTES * number)} in memory, as float32"
    lines = [
        ("family", found.source.family),
        ("place", found.source.place),
        (
            "size",
            f"{config.layers} layers of width {config.width}; {config.heads} heads, "
            f"feed-forward {config.feed_forward}, kernel {config.kernel}",
        ),
        ("kind", kind_of(config)),
        ("front end", front_end_of(config)),
        ("parameters", parameters),
    ]
    if features is not None:
        lines.append(("features", f"{features.describe()}, of sound at {features.sample_rate} Hz"))
        lines.append(("frame rate", f"{1 / features.hop:g} Hz in, {found.frame_rate:g} Hz out"))
    if tokenizer is not None:
        what = f"{tokenizer.describe()}; {len(tokenizer)} labels, blank {tokenizer.blank}"
        lines.append(("tokenizer", what))
    lines += [(f"no {what}", why) for what, why in found.faults.items()]
    uses = usable_for(found)
    if all(uses.values()):
        lines.append(("usable for", "transcribe, eval and adapt"))
    else:
        lines.append(("usable for", "logits from Python alone" if uses["logits"] else "nothing"))
        lines.append(("not for", f"transcribe, eval and adapt: they take the {' and the '.join(found.faults)}"))
    if found.inference is not None and found.step is not None:
        what = f"{batch} recording{'s' * (batch > 1)} of {seconds:g} s"
        shape = f"{adapter.controller} of {adapter.state_size}, {adapter.head} head"
        pieces = f", in pieces of {PIECE:g} s" * (seconds > PIECE)
        lines += [
            (f"memory to recognise {what}{pieces}", memory_line(found.inference, keeps=False)),
            (f"memory of a step of adaptation on {what} (HRA: {shape})", memory_line(found.step, keeps=True)),
        ]
    return lines


def as_json(found: Inspection) -> dict[str, Any]:
    """Return the report as one JSON object; what is not known is null."""
    config, features, tokenizer = found.source.config, found.features, found.tokenizer
    number = count(conformer_shapes(config)[0])
    return {
        "family": found.source.family,
        "place": found.source.place,
        "config": {**asdict(config), "inner": config.feed_forward},
        "parameters": {
            "count": number,
            "float32_bytes": BYTES * number,
            "stored_bytes": None if found.tensors is None else stored_bytes(found.tensors),
        },
        "features": features
        and {
            "text": features.describe(),
            "sample_rate": features.sample_rate,
            "width": features.mels,
            "hop": features.hop,
        },
        "frame_rate": found.frame_rate,
        "tokenizer": None
        if tokenizer is None
        else {"text": tokenizer.describe(), "labels": len(tokenizer), "blank": tokenizer.blank, "unit": tokenizer.unit},
        "faults": found.faults,
        "usable_for": usable_for(found),
        "memory": {
            task: memory and {**memory._asdict(), "total": memory.total}
            for task, memory in (("inference", found.inference), ("adaptation_step", found.step))
        },
    }


def run_inspect(arguments: argparse.Namespace) -> None:
    """Print what a backbone is."""
    adapter = AdapterShape(arguments.state_size, arguments.controller, arguments.head, arguments.bottleneck)
    found = inspect_backbone(arguments.backbone, arguments.seconds, arguments.batch, adapter, arguments.recompute)
    if arguments.json:
        print(json.dumps(as_json(found), ensure_ascii=False))
        return
    for heading, text in lines_of(found, arguments.seconds, arguments.batch, adapter):
        print(f"{heading}\n{'':<12}{text}" if len(heading) > 11 else f"{heading:<12}{text}")
