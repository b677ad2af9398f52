"""The whole model once more in PyTorch: a Conformer with Hierarchical Recurrent Adapters, gradients by autograd.

It is written from the equations and not from the NumPy code, of which it imports nothing, so that agreement in the loss
and in every gradient is evidence. Parameters keep the names and the layout of the NumPy tree (a linear map is
y = x @ W + b), hence values and gradients compare one to one, without a conversion table.

Letters: B batch, T frames, F mel bins, C width, A heads, D = C/A, K kernel, H state, R bottleneck, L layers, V labels.
`valid` is bool (B, T), True = real frame.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Tree = dict[str, Any]  # nested dicts with tensors at the leaves
Reach = tuple[int | None, int | None]
Map = Callable[[Tensor], Tensor]
EPS = 1e-5


def unflatten(named: Mapping[str, Any], dtype: torch.dtype) -> Tree:
    """{"a.b.W": array} -> {"a": {"b": {"W": tensor}}}; the arrays are copied."""
    tree: Tree = {}
    for name, value in named.items():
        *path, leaf = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = torch.tensor(value, dtype=dtype)
    return tree


def valid_frames(lengths: Tensor, T: int) -> Tensor:
    """(B,) -> (B, T)."""
    return torch.arange(T, device=lengths.device) < lengths[:, None]


class Leaf(nn.Module):
    """A module whose parameters (or buffers) are the arrays of one node: W, b, g, ..."""

    def __init__(self, p: Tree, buffers: bool = False):
        super().__init__()
        for name, value in p.items():
            setattr(self, name, nn.Buffer(value) if buffers else nn.Parameter(value))


class Linear(Leaf):
    """(..., in) -> (..., out), W (in, out), b (out,) or absent."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.W.T, getattr(self, "b", None))


def linear_maps(p: Tree) -> nn.Module:
    """A tree of linear maps."""
    return Linear(p) if "W" in p else nn.ModuleDict({name: linear_maps(q) for name, q in p.items()})


class LayerNorm(Leaf):
    """(..., C) -> (..., C), g and b (C,)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.g.shape, self.g, self.b, EPS)


class BatchNorm(Leaf):
    """(B, T, C) -> (B, T, C) by running mean and var (C,); in training mode by those of the valid frames, padding 0.

    `valid` is None where there is no padding, so that nothing need be picked out.
    """

    def forward(self, x: Tensor, valid: Tensor | None, running: Leaf) -> Tensor:
        args = (running.mean, running.var, self.g, self.b)
        if not self.training:
            return F.batch_norm(x.flatten(0, 1), *args, eps=EPS).view_as(x)
        if valid is None:
            return F.batch_norm(x.flatten(0, 1), *args, training=True, momentum=0.1, eps=EPS).view_as(x)
        y = torch.zeros_like(x)
        y[valid] = F.batch_norm(x[valid], *args, training=True, momentum=0.1, eps=EPS)
        return y


class Conv2d(Leaf):
    """(B, in, T, F) -> (B, out, ceil(T/2), ceil(F/2)), 3 x 3, stride 2; W (3, 3, in, out) is [time, freq, in, out]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.W.permute(3, 2, 0, 1), self.b, stride=2, padding=1)


class DepthwiseConv1d(Leaf):
    """(B, T, C) -> (B, T, C), W (K, C), b (C,): cross-correlation over time, zeros outside, (K-1)//2 of them before."""

    def forward(self, x: Tensor) -> Tensor:
        K, C = self.W.shape
        x = F.pad(x.transpose(1, 2), ((K - 1) // 2, K // 2))
        return F.conv1d(x, self.W.T[:, None], self.b, groups=C).transpose(1, 2)


class Subsampling(nn.Module):
    """(B, T, F), lengths (B,) -> (B, T4, C), lengths (B,): two strided convolutions; n frames become ceil(n/4)."""

    def __init__(self, p: Tree):
        super().__init__()
        self.convs = nn.ModuleList(Conv2d(p["convs"][str(n)]) for n in range(len(p["convs"])))
        self.out = Linear(p["out"])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = x[:, None].masked_fill(~valid_frames(lengths, x.shape[1])[:, None, :, None], 0)  # clears NaN, too
        for conv in self.convs:
            x, lengths = conv(x).relu(), (lengths + 1) // 2
            x = x.masked_fill(~valid_frames(lengths, x.shape[2])[:, None, :, None], 0)
        return self.out(x.permute(0, 2, 3, 1).flatten(2)), lengths  # each frame as (frequency, channel)


class FeedForward(nn.Module):
    """(B, T, C) -> (B, T, C)."""

    def __init__(self, p: Tree):
        super().__init__()
        self.norm, self.up, self.down = LayerNorm(p["norm"]), Linear(p["up"]), Linear(p["down"])

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x))))


def position_table(x: Tensor) -> Tensor:
    """The sinusoids (2T-1, C) of the relative positions T-1, ..., -(T-1), for x (B, T, C)."""
    T, C = x.shape[1:]
    position = torch.arange(T - 1, -T, -1, dtype=torch.float64, device=x.device)
    angle = position[:, None] / 10000 ** (torch.arange(0, C, 2, device=x.device).double() / C)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :C].to(x.dtype)


def visible_keys(valid: Tensor, reach: Reach | None) -> Tensor:
    """(B, 1, T, T): True where query i may look at key j, i.e. j is valid and i - left <= j <= i + right."""
    T = valid.shape[1]
    left, right = (T if side is None else side for side in reach or (None, None))
    band = torch.ones(T, T, dtype=torch.bool, device=valid.device).triu(-left).tril(right)
    return band & valid[:, None, None, :]


def relative_shift(s: Tensor) -> Tensor:
    """(..., T, 2T-1) with columns T-1, ..., -(T-1) -> (..., T, T): out[i, j] is the column of position i - j."""
    *batch, T, n = s.shape
    return F.pad(s, (1, 0)).reshape(*batch, n + 1, T)[..., 1:, :].reshape(s.shape)[..., :T]


class RelativePosition(Linear):
    """W (C, C) maps the table of positions; u and v (A, D) are added to the queries."""


class Attention(nn.Module):
    """(B, T, C) -> (B, T, C): self-attention with the relative positions of Transformer-XL."""

    def __init__(self, p: Tree, heads: int):
        super().__init__()
        self.heads, self.norm = heads, LayerNorm(p["norm"])
        self.query, self.key, self.value = Linear(p["query"]), Linear(p["key"]), Linear(p["value"])
        self.position, self.out = RelativePosition(p["position"]), Linear(p["out"])

    def split(self, x: Tensor) -> Tensor:
        """(..., T, C) -> (..., A, T, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def forward(self, x: Tensor, table: Tensor, visible: Tensor) -> Tensor:
        x = self.norm(x)
        q, k, v, r = map(self.split, (self.query(x), self.key(x), self.value(x), self.position(table)))
        mask = relative_shift((q + self.position.v[:, None]) @ r.transpose(-2, -1)) / q.shape[-1] ** 0.5
        mask = mask.masked_fill(~visible, torch.finfo(x.dtype).min)  # finite: a query without keys stays finite, too
        y = F.scaled_dot_product_attention(q + self.position.u[:, None], k, v, attn_mask=mask)
        y = y.masked_fill(~visible.any(-1, keepdim=True), 0)
        return self.out(y.transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """(B, T, C) -> (B, T, C); the inner norm is a batch norm where there are running statistics for it."""

    def __init__(self, p: Tree, batch_norm: bool):
        super().__init__()
        self.norm, self.depthwise = LayerNorm(p["norm"]), DepthwiseConv1d(p["depthwise"])
        self.pointwise1, self.pointwise2 = Linear(p["pointwise1"]), Linear(p["pointwise2"])
        self.inner_norm = BatchNorm(p["inner_norm"]) if batch_norm else LayerNorm(p["inner_norm"])

    def forward(self, x: Tensor, valid: Tensor, unpadded: bool, running: Leaf | None) -> Tensor:
        x = self.depthwise(F.glu(self.pointwise1(self.norm(x))).masked_fill(~valid[..., None], 0))
        x = self.inner_norm(x) if running is None else self.inner_norm(x, None if unpadded else valid, running)
        return self.pointwise2(F.silu(x))


class Block(nn.Module):
    """(B, T, C) -> (B, T, C): one Conformer block."""

    def __init__(self, p: Tree, heads: int, batch_norm: bool):
        super().__init__()
        self.ffn1, self.ffn2, self.norm = FeedForward(p["ffn1"]), FeedForward(p["ffn2"]), LayerNorm(p["norm"])
        self.attention, self.conv = Attention(p["attention"], heads), Convolution(p["conv"], batch_norm)

    def forward(
        self, x: Tensor, valid: Tensor, unpadded: bool, table: Tensor, visible: Tensor, running: Leaf | None
    ) -> Tensor:
        x = x + 0.5 * self.ffn1(x)
        x = x + self.attention(x, table, visible)
        x = x + self.conv(x, valid, unpadded, running)
        return self.norm(x + 0.5 * self.ffn2(x))


class Cell(Leaf):
    """x (..., C), h (..., H) -> the next h (..., H); W (C, gates*H), U (H, gates*H), b (gates*H,), u and c (H,).

    The gates of li_gru are z, n. Those of gru are r, z, n, as in nn.GRUCell, of whose second bias c is the part for n.
    """

    def __init__(self, p: Tree, kind: str):
        super().__init__(p)
        self.kind, self.H = kind, self.W.shape[1] // {"gru": 3, "li_gru": 2, "rnn": 1, "indrnn": 1, "none": 1}[kind]

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        if self.kind == "gru":
            c = F.pad(self.c, (2 * self.H, 0))
            return torch.gru_cell(x.flatten(0, -2), h.flatten(0, -2), self.W.T, self.U.T, self.b, c).view_as(h)
        a = F.linear(x, self.W.T, self.b)
        if self.kind == "none":
            return a.relu()
        if self.kind == "indrnn":
            return (a + self.u * h).relu()
        if self.kind == "rnn":
            return (a + h @ self.U).tanh()
        z, n = (a + h @ self.U).chunk(2, dim=-1)
        return torch.lerp(n.relu(), h, z.sigmoid())  # z*h + (1-z)*n


def batched(maps: Sequence[Linear], which: Tensor) -> Map:
    """One linear map for each row: (rows, T, in) -> (rows, T, out), row i by maps[which[i]]."""
    W, b = torch.stack([m.W for m in maps])[which], torch.stack([m.b for m in maps])[which, None]
    return lambda x: torch.baddbmm(b, x, W)


def through(steps: Sequence[Map], x: Tensor) -> Tensor:
    """A head: one linear map, or two with relu between them."""
    return reduce(lambda y, step: step(y.relu()), steps[1:], steps[0](x))


class Plan(NamedTuple):
    """Which rows of a batch have which head; made once for a batch, as its indices go to where the model computes."""

    rows: Tensor  # those that are not "base"
    everyone: bool  # whether that is all of them
    present: tuple[str, ...]  # the distinct tasks
    places: tuple[Tensor, ...]  # "gather": the place of each row's task in present; "loop": rows by task, and back


Tasks = Sequence[str] | Plan | None


class Adapter(nn.Module):
    """One controller for all layers and one head a task: a linear map, or two with R features between them."""

    def __init__(self, p: Tree, cell: str, tasks: Sequence[str], heads_mode: str):
        super().__init__()
        self.controller = Cell(p["controller"], cell)
        self.heads = linear_maps({t: p["heads"][t] for t in tasks})
        self.heads_mode = heads_mode

    def places(self, tasks: Sequence[str], device: torch.device) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """`present` and `places` of a plan."""
        present = tuple(dict.fromkeys(tasks))
        if self.heads_mode == "gather":
            return present, (torch.tensor([present.index(t) for t in tasks], device=device),)
        rows = [torch.tensor([i for i, t in enumerate(tasks) if t == n], device=device) for n in present]
        return present, (*rows, torch.cat(rows).argsort())

    def choose(self, present: Sequence[str], places: Sequence[Tensor]) -> Map:
        """The heads of these rows as one map (rows, T, H) -> (rows, T, C), made once and used at all layers."""
        steps = [[q] if isinstance(q, Linear) else [q["up"], q["down"]] for q in (self.heads[t] for t in present)]
        if self.heads_mode == "gather":
            gathered = [batched(maps, places[0]) for maps in zip(*steps, strict=True)]
            return lambda h: through(gathered, h)
        *rows, back = places
        return lambda h: torch.cat([through(s, h[i]) for s, i in zip(steps, rows, strict=True)])[back]


class TorchHRA(nn.Module):
    """Backbone, adapter and loss, from the parameters of the NumPy tree by their dotted names.

    A frozen backbone runs as at inference also in training mode. `heads_mode` says how a batch of several tasks meets
    its heads: "gather" (stacked, one batched product) or "loop" (over the distinct tasks).
    """

    def __init__(
        self, named: Mapping[str, Any], *, heads: int, cell: str | None, tasks: tuple[str, ...],
        reach: Reach | None = None, blank: int = 0, dtype: torch.dtype = torch.float64,
        freeze_backbone: bool = True, heads_mode: str = "gather",
    ):  # fmt: skip
        super().__init__()
        if heads_mode not in ("gather", "loop"):
            raise ValueError(f"heads_mode is 'gather' or 'loop', not {heads_mode!r}")
        p = unflatten(named, dtype)
        self.reach, self.blank, self.freeze_backbone = reach, blank, freeze_backbone
        running, layers = p.get("statistics", {}), p["backbone"]["layers"]
        self.statistics = nn.ModuleList(Leaf(running[str(l)], buffers=True) for l in range(len(running)))
        blocks = nn.ModuleList(Block(layers[str(l)], heads, bool(running)) for l in range(len(layers)))
        entrance, readout = Subsampling(p["backbone"]["front_end"]), Linear(p["backbone"]["readout"]["linear"])
        self.backbone = nn.ModuleDict(
            {"front_end": entrance, "layers": blocks, "readout": nn.ModuleDict({"linear": readout})}
        )
        self.tasks = tuple(t for t in tasks if t != "base") if cell else ()
        self.adapter = Adapter(p["adapter"], cell, self.tasks, heads_mode) if cell else None
        if unused := set(named) - set(self.state_dict()):
            raise ValueError(f"parameters without a place: {sorted(unused)}")
        self.unpadded: bool | None = None  # of the batch; None: a step that trains the backbone looks
        self.backbone.requires_grad_(not freeze_backbone)
        self.train()

    def train(self, mode: bool = True) -> "TorchHRA":
        super().train(mode)
        self.backbone.train(mode and not self.freeze_backbone)
        return self

    def forward(self, features: Tensor, lengths: Tensor, tasks: Tasks = None) -> tuple[Tensor, Tensor]:
        """(B, T, F), (B,), one task a row (None: all "base") -> logits (B, T4, V), lengths (B,)."""
        weight = self.backbone["readout"]["linear"].W
        features = torch.as_tensor(features, dtype=weight.dtype, device=weight.device)
        x, lengths = self.backbone["front_end"](features, torch.as_tensor(lengths, device=weight.device))
        valid = valid_frames(lengths, x.shape[1])
        table, visible, unpadded = position_table(x), visible_keys(valid, self.reach), self.unpadded
        if unpadded is None:
            unpadded = self.backbone.training and bool(valid.all())
        plan = tasks if isinstance(tasks, Plan) else self.plan(["base"] * len(x) if tasks is None else tasks, len(x))
        if plan.present:
            head = self.adapter.choose(plan.present, plan.places)
            h = x.new_zeros(len(plan.rows), x.shape[1], self.adapter.controller.H)
        for l, block in enumerate(self.backbone["layers"]):
            x = block(x, valid, unpadded, table, visible, self.statistics[l] if self.statistics else None)
            if plan.present:
                h = self.adapter.controller(x if plan.everyone else x[plan.rows], h)
                x = x + head(h) if plan.everyone else x.index_add(0, plan.rows, head(h))
        return self.backbone["readout"]["linear"](x), lengths

    def plan(self, tasks: Sequence[str], size: int) -> Plan:
        """The plan of a batch of so many rows, one task a row."""
        if len(tasks) != size or not set(tasks) <= {"base", *self.tasks}:
            raise ValueError(f"expected {size} tasks out of {('base', *self.tasks)}, got {list(tasks)}")
        device = self.backbone["readout"]["linear"].W.device
        rows = [i for i, t in enumerate(tasks) if t != "base"]
        present, places = self.adapter.places([tasks[i] for i in rows], device) if rows else ((), ())
        return Plan(torch.tensor(rows, device=device), len(rows) == size, present, places)

    def loss(self, features: Tensor, lengths: Tensor, labels: list[list[int]], tasks: Tasks = None) -> Tensor:
        """CTC, the mean over the utterances whose labels fit into their frames (0 where there is none)."""
        logits, lengths = self(features, lengths, tasks)
        needed = [len(s) + sum(a == b for a, b in pairwise(s)) for s in labels]
        fits = lengths >= torch.tensor(needed, device=lengths.device)
        targets = torch.tensor([k for s in labels for k in s], dtype=torch.long, device=logits.device)
        sizes = torch.tensor([len(s) for s in labels], device=logits.device)
        scores = logits.log_softmax(-1).transpose(0, 1)
        losses = F.ctc_loss(scores, targets, lengths, sizes, self.blank, reduction="none", zero_infinity=True)
        return (losses * fits).sum() / fits.sum().clamp(min=1)

    def named_gradients(self) -> dict[str, Any]:
        """The gradient of every parameter that got one, as NumPy arrays under the dotted names."""
        return {name: p.grad.cpu().clone().numpy() for name, p in self.named_parameters() if p.grad is not None}


# The rival of `minihra bench --rival tests/torch_twin.py`: the same rows from the same arrays.

Run = Callable[[], Any]
STATE, RATE, BLANK, HOP = 64, 1e-4, 0, 160


def at_first_run(make: Callable[[], Run]) -> Run:
    """A run that is made when it first runs."""
    made: list[Run] = []

    def run() -> Any:
        if not made:
            made.append(make())
        return made[0]()

    return run


def compiled(name: str, make: Callable[[Callable], Run], device: str) -> dict[str, Run]:
    """What runs eagerly, and the same compiled as a whole, on a GPU also with CUDA graphs."""
    runs = {f"{name}, eager": make(lambda f: f), f"{name}, compiled": at_first_run(lambda: make(torch.compile))}
    if device == "cuda":
        runs[f"{name}, CUDA graphs"] = at_first_run(lambda: make(partial(torch.compile, mode="reduce-overhead")))
    return runs


def runs_of(row: Any, inputs: dict[str, Any], *, device: str = "cpu", tf32: bool = False) -> dict[str, Run]:
    """What PyTorch can do a row with, by name; all of it on as many threads as OMP_NUM_THREADS says."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if row.kind.startswith("heads"):
        return heads_runs(row, inputs, device)
    if row.kind == "ctc":
        return ctc_runs(inputs, device)
    if row.kind == "log-mel":
        return log_mel_runs(inputs)
    if row.kind.startswith("bandwidth"):
        return {}
    modes = ("gather",) if row.kind == "training" else ("gather", "loop")
    runs = {}
    for mode in modes:
        runs |= compiled(
            mode, lambda compile_, mode=mode: model_run(row, inputs, mode, device, whole(compile_)), device
        )
    if device == "cuda":
        make = partial(model_run, row, inputs, "gather", device, blocks_in_a_graph)
        runs["gather, blocks compiled, in one CUDA graph"] = at_first_run(make)
    return runs


def whole(compile_: Callable) -> Callable[..., None]:
    """How a model gets its forward compiled."""

    def prepare(model: TorchHRA, *_: Any) -> None:
        model.forward = compile_(model.forward)

    return prepare


def blocks_in_a_graph(model: TorchHRA, features: Tensor, lengths: Tensor, plan: Plan | None) -> None:
    """Compile the blocks, which takes seconds as they are alike, and record forward and backward of a batch.

    The graph is for batches of these sizes, lengths and tasks; `forward` then takes other features alone.
    """
    plan = plan or model.plan(["base"] * len(features), len(features))
    model.unpadded = bool((lengths == features.shape[1]).all())
    for block in model.backbone["layers"]:
        block.compile(dynamic=False)
    forward = model.forward

    class OfFeatures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, features: Tensor) -> Tensor:
            return forward(features, lengths, plan)[0]

    with torch.no_grad():
        shorter = forward(features, lengths, plan)[1]
    record = torch.cuda.make_graphed_callables if model.training else recorded
    run = record(OfFeatures(), (features,), allow_unused_input=True)
    model.forward = lambda features, *_: (run(features), shorter)


def recorded(run: Map, given: tuple[Tensor], **_: Any) -> Map:
    """A function without gradients as a CUDA graph."""
    (place,), stream, graph = (x.clone() for x in given), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(place)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            y = run(place)

    def replay(x: Tensor, run: Map = run) -> Tensor:  # `run` has what the graph reads
        place.copy_(x)
        graph.replay()
        return y

    return replay


def gpu_memory(reset: bool) -> int:
    """The most bytes that tensors have taken on the GPU since the last reset; after one, what they take."""
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


def model_run(row: Any, inputs: dict[str, Any], mode: str, device: str, prepare: Callable[..., None]) -> Run:
    """One step of adaptation or training, or an inference; features come from the host, as in a training."""
    named = {name: a for name, a in inputs.items() if name.startswith(("backbone.", "statistics.", "adapter."))}
    tasks = tuple(f"task{n}" for n in range(row.heads))
    training = row.kind == "training"
    model = TorchHRA(
        named, heads=4, cell=None if training else row.cell, tasks=tasks, dtype=torch.float32,
        freeze_backbone=not training, heads_mode=mode,
    ).to(device)  # fmt: skip
    features, lengths = torch.tensor(inputs["features"]), torch.tensor(inputs["lengths"], device=device)
    chosen = None if training else model.plan(inputs["tasks"], row.batch)
    if device == "cuda":
        features = features.pin_memory()

    def there() -> Tensor:
        return features.to(device, non_blocking=True)

    if row.kind == "inference":
        model.eval()
    prepare(model, there(), lengths, chosen)
    if row.kind == "inference":
        return torch.inference_mode()(lambda: float(model(there(), lengths, chosen)[0].mean()))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        loss = model.loss(there(), lengths, inputs["labels"], chosen)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return loss.item()

    return step


def heads_runs(row: Any, inputs: dict[str, Any], device: str) -> dict[str, Run]:
    """The heads of a batch with the sum onto the residual, or their backward: gathered, and in a loop over tasks."""
    named = {name.removeprefix("adapter."): a for name, a in inputs.items() if name.startswith("adapter.")}
    tree, runs = unflatten(named, torch.float32), {}
    order = sorted(range(row.batch), key=lambda i: list(dict.fromkeys(inputs["tasks"])).index(inputs["tasks"][i]))
    h, residual, do = (torch.tensor(inputs[name])[order].to(device) for name in ("h", "residual", "do"))
    tasks = [inputs["tasks"][i] for i in order]
    backward = row.kind == "heads backward"
    for mode in ("gather", "loop"):
        adapter = Adapter(tree, "gru", [f"task{n}" for n in range(row.heads)], mode).to(device)
        plan = adapter.places(tasks, h.device)

        def forward(h: Tensor, adapter: Adapter = adapter, plan: tuple = plan) -> Tensor:
            return adapter.choose(*plan)(h) + residual

        def make(compile_: Callable, forward: Callable = forward, adapter: Adapter = adapter) -> Run:
            run = compile_(forward)
            if not backward:
                return torch.no_grad()(lambda: run(h))
            x = h.clone().requires_grad_()
            o, parameters = run(x), list(adapter.heads.parameters())

            def back(o: Tensor = o, x: Tensor = x, parameters: list = parameters) -> Tensor:
                (dx, *_) = torch.autograd.grad(o, [x, *parameters], do, True, allow_unused=True)
                return dx

            return back

        eager_alone = backward or row.tasks > 64
        runs |= {f"{mode}, eager": make(lambda f: f)} if eager_alone else compiled(mode, make, device)
    return runs


def ctc_runs(inputs: dict[str, Any], device: str) -> dict[str, Run]:
    """CTC from logits to their gradient; on a GPU also that of cuDNN, which wants labels and lengths on the host."""
    logits = torch.tensor(inputs["logits"], device=device, requires_grad=True)
    B, T, _ = logits.shape
    labels = torch.tensor(inputs["labels"])

    def run(labels: Tensor, lengths: Tensor, sizes: Tensor) -> float:
        logits.grad = None
        scores = logits.log_softmax(-1).transpose(0, 1)
        loss = F.ctc_loss(scores, labels, lengths, sizes, BLANK, reduction="sum") / B
        loss.backward()
        return loss.item()

    lengths, sizes = torch.full((B,), T), torch.full((B,), labels.shape[1])
    runs = {"eager": partial(run, labels.to(device), lengths, sizes)}
    if device == "cuda":
        runs["cuDNN"] = partial(run, labels.flatten().int(), lengths.int(), sizes.int())
    return runs


def log_mel_runs(inputs: dict[str, Any]) -> dict[str, Run]:
    """Log-mel features of frames that are views of the samples, and from PyTorch's own short-time transform."""
    samples, window, filters = (torch.tensor(inputs[name]) for name in ("samples", "window", "filters"))
    W, n_fft = len(window), 2 * (len(filters) - 1)
    behind = F.pad(window, (0, n_fft - W))

    def features(spectrum: Tensor) -> float:
        """Of a spectrum (B, T, bins)."""
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ filters).clamp(min=1e-10).log().mean().item()

    def short_time() -> float:
        padded = F.pad(samples, (0, n_fft - W))
        spectrum = torch.stft(padded, n_fft, HOP, window=behind, center=False, return_complex=True)
        return features(spectrum.transpose(1, 2))

    runs = {
        "views, eager": lambda: features(torch.fft.rfft(samples.unfold(-1, W, HOP) * window, n_fft)),
        "short-time transform, eager": short_time,
    }
    return {name: torch.no_grad()(run) for name, run in runs.items()}
