"""Parity with PyTorch, float64: the whole model with autograd of tests/torch_twin.py, single pairs with torch.nn."""

# ruff: noqa: E402  (without PyTorch the rest of this file cannot be imported)

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with PyTorch needs the extra: pip install 'minihra[parity]'")

import torch.nn.functional as F  # noqa: N812

from minihra.adapters.hra import HRA
from minihra.adapters.parts import CELLS, HEADS
from minihra.arrays import Array
from minihra.blocks.conformer import Conformer
from minihra.blocks.protocol import Training
from minihra.layers.conv import Conv1dParams, DepthwiseConvParams
from minihra.layers.conv2d import Conv2dParams, DepthwiseConv2dParams
from minihra.layers.gru import GRUParams
from minihra.layers.linear import LinearParams
from minihra.layers.norms import BatchNormParams, BatchStatistics, InstanceNormParams, LayerNormParams
from minihra.masks import valid_from_lengths
from minihra.model import backward, ctc_loss, forward, pack_labels
from minihra.model_cases import CONFIG, LABELS, TASKS
from minihra.ops import (
    attention_backward,
    attention_forward,
    batch_norm_backward,
    batch_norm_forward,
    conv1d_backward,
    conv1d_forward,
    conv2d_backward,
    conv2d_forward,
    ctc_backward,
    ctc_forward,
    depthwise_conv2d_backward,
    depthwise_conv2d_forward,
    depthwise_conv_backward,
    depthwise_conv_forward,
    gelu_backward,
    gelu_forward,
    gru_backward,
    gru_forward,
    instance_norm_backward,
    instance_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from minihra.optim import AdamW
from minihra.tree import leaves, map_leaves
from tests.tiny import batch, frozen_backbone, trained_hra
from tests.torch_twin import TorchHRA

TOLERANCE = 1e-12  # 1e-10 is what the library claims


def close(found: Array, expected: Array, name: str, tolerance: float = TOLERANCE) -> None:
    """Check that the largest difference is a rounding of the largest element."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, name
    error, largest = np.abs(found - expected).max(initial=0), np.abs(expected).max(initial=0)
    assert error <= tolerance * largest, f"{name}: off by {error:.1e} of {largest:.1e}"


def autograd(function: Callable, dy: Array, *arrays: Array) -> tuple[Array, list[Array]]:
    """Return the output of a function of tensors, and the gradient of each array for dy."""
    tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
    y = function(*tensors)
    y.backward(torch.tensor(dy))
    return y.detach().numpy(), [tensor.grad.numpy() for tensor in tensors]


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


# The whole model


def both_models(
    backbone: Conformer, hra: HRA | None, training: Training | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Run both models on the ragged batch of tests/tiny.py, whose padding holds NaN; return everything of each by name:
    the loss, all gradients and, of a training step, the new running statistics."""
    given = batch(np.float64)
    valid = valid_from_lengths(given.lengths, given.features.shape[1])
    features = np.where(valid[..., None], given.features, np.nan)
    logits, cache = forward(backbone, features, given.lengths, hra and hra.edit(TASKS), training)
    loss, dlogits = ctc_loss(logits, cache.context.valid, given.labels)
    assert loss.feasible.tolist() == [True, True, True, True, False]
    ours = {"loss": loss.mean, **dict(leaves(backward(dlogits, cache)._asdict()))}

    parameters = {"backbone": backbone.p, "adapter": hra and hra.p, "statistics": backbone.statistics}
    twin = TorchHRA(
        dict(leaves(parameters)),
        heads=CONFIG.heads,
        cell=hra and hra.cell,
        tasks=hra.task_names if hra else (),
        reach=backbone.config.reach,
        freeze_backbone=backbone.frozen,
    )
    twin.train(training is not None)
    its_loss = twin.loss(torch.tensor(features), torch.tensor(given.lengths), list(map(list, LABELS)), hra and TASKS)
    its_loss.backward()
    theirs = {"loss": its_loss.item(), **twin.named_gradients()}
    if training is not None:
        ours |= dict(leaves(tuple(layer.statistics for layer in cache.layers), "statistics"))
        theirs |= {f"statistics.{name}": value.numpy() for name, value in twin.statistics.state_dict().items()}
    return ours, theirs


@pytest.mark.parametrize(
    ("cell", "head", "changes"),
    [
        *((cell, head, {}) for cell in CELLS for head in HEADS),
        ("gru", "linear", {"conv_norm": "layer"}),
        ("gru", "linear", {"reach": (2, 1)}),
        ("indrnn", "ffn", {"reach": (None, 0), "conv_norm": "layer"}),
    ],
)
def test_loss_and_every_gradient_of_hra(cell: str, head: str, changes: dict[str, Any]) -> None:
    hra = trained_hra(cell, head, dtype=np.float64)
    ours, theirs = both_models(frozen_backbone(np.float64, **changes), hra)
    assert ours.keys() == theirs.keys() == {"loss", *(f"adapter.{n}" for n, _ in leaves(hra.p) if ".eve." not in n)}
    for name, value in ours.items():
        close(value, theirs[name], name)


@pytest.mark.parametrize("with_hra", [False, True])
@pytest.mark.parametrize("conv_norm", ["batch", "layer"])
@pytest.mark.parametrize("train", [True, False])
def test_loss_and_every_gradient_of_an_unfrozen_conformer(train: bool, conv_norm: str, with_hra: bool) -> None:
    """A step of pre-training without dropout (`train`: with batch statistics), and training together with an HRA."""
    backbone = frozen_backbone(np.float64, conv_norm=conv_norm)
    backbone.frozen = False
    hra = trained_hra(dtype=np.float64) if with_hra else None
    ours, theirs = both_models(backbone, hra, Training(None, 0.0) if train else None)
    assert ours.keys() == theirs.keys()
    assert {f"backbone.{name}" for name, _ in leaves(backbone.p)} < ours.keys()
    assert ("statistics.2.var" in ours) == (train and conv_norm == "batch")
    # A constant added to all keys, or to all inputs of a batch norm, changes nothing: these gradients are rounding.
    zero = {f"backbone.layers.{l}.attention.key.b" for l in range(CONFIG.layers)}
    if train and conv_norm == "batch":
        zero |= {f"backbone.layers.{l}.conv.depthwise.b" for l in range(CONFIG.layers)}
    for name, value in ours.items():
        if name in zero:
            assert max(np.abs(value).max(), np.abs(theirs[name]).max()) < 1e-12, name
        else:
            close(value, theirs[name], name)


# Single pairs


def test_gru_is_torchs_cell() -> None:
    C, H = 5, 4
    torch.manual_seed(0)
    cell = torch.nn.GRUCell(C, H, dtype=torch.float64)
    W, U, b_x, b_h = (p.detach().numpy() for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh))
    b = b_x + np.concatenate([b_h[: 2 * H], np.zeros(H)])  # of torch's second bias only the part for n is its own
    x, h, dy = normal(3, C), normal(3, H), normal(3, H, seed=1)
    expected, (dx, dh) = autograd(cell, dy, x, h)
    y, cache = gru_forward(x, h, GRUParams(W.T, U.T, b, b_h[2 * H :]))
    found = gru_backward(dy, cache)
    close(y, expected, "h_next"), close(found[0], dx, "dx"), close(found[1], dh, "dh")
    close(found[2].W, cell.weight_ih.grad.T, "dW"), close(found[2].U, cell.weight_hh.grad.T, "dU")
    close(found[2].b, cell.bias_ih.grad, "db"), close(found[2].c, cell.bias_hh.grad[2 * H :], "dc")


UTTERANCES = (  # (frames, labels), labels counted without the blank
    (9, [0, 1, 2, 3]),
    (9, [0, 0, 1]),
    (5, [2, 2, 2]),  # just long enough: two blanks between three labels
    (4, [2, 2, 2]),  # infeasible
    (3, [0, 1, 2, 3]),  # infeasible
    (7, []),
    (1, [3]),
    (1, []),
    (1, [1, 2]),  # infeasible
    (0, []),
    (0, [1]),  # infeasible
)
INFEASIBLE = {3, 4, 8, 10}


def compare_ctc(
    logits: Array, lengths: Sequence[int], sequences: list[list[int]], blank: int, tolerance: float = TOLERANCE
) -> Array:
    """Compare losses and gradients at the logits; return which utterances are feasible."""
    B, T, V = logits.shape
    labels, dloss = pack_labels(sequences, V, blank), normal(B, seed=1)

    def torchs(tensor: torch.Tensor) -> torch.Tensor:
        targets = torch.tensor([label for sequence in sequences for label in sequence], dtype=torch.long)
        sizes = [torch.tensor(n, dtype=torch.long) for n in (list(lengths), labels.lengths)]
        log_y = tensor.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_y, targets, *sizes, blank, reduction="none", zero_infinity=True)

    expected, (dlogits,) = autograd(torchs, dloss, logits)
    losses, cache = ctc_forward(logits, valid_from_lengths(lengths, T), *labels, blank=blank)
    gradient = ctc_backward(dloss, cache)
    close(losses, expected, "losses", tolerance)
    for b in range(B):
        close(gradient[b], dlogits[b], f"dlogits of utterance {b}", tolerance)
    return cache.feasible


@pytest.mark.parametrize("scale", [0.1, 1, 20])
@pytest.mark.parametrize("blank", [0, 2, 4])
def test_ctc_is_torchs(blank: int, scale: float) -> None:
    lengths, sequences = zip(*UTTERANCES, strict=True)
    sequences = [[label + (label >= blank) for label in sequence] for sequence in sequences]
    feasible = compare_ctc(scale * normal(len(lengths), 9, 5), lengths, sequences, blank)
    assert set(np.flatnonzero(~feasible)) == INFEASIBLE


def test_ctc_of_a_long_utterance_is_torchs() -> None:
    sequences = [np.random.default_rng(n).integers(1, 12, n).tolist() for n in (200, 120)]
    # Likelihoods of e^-2000 carry an absolute rounding of 1e-12 in their logarithm.
    assert compare_ctc(3 * normal(2, 900, 12), (900, 700), sequences, 0, tolerance=1e-10).all()


def test_adamw_is_torchs_over_20_steps() -> None:
    """With another rate and decay in each step, and a leaf that is absent from every third."""
    params = {
        "a": LinearParams(normal(4, 3), normal(3)),
        "kernel": normal(2, 3, 4),
        "b": LinearParams(normal(3, 2), None),
    }
    tensors = {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in leaves(params)}
    matrices = [t for t in tensors.values() if t.ndim > 1]
    vectors = [t for t in tensors.values() if t.ndim == 1]
    betas, eps = (0.85, 0.98), 1e-7
    theirs = torch.optim.AdamW([{"params": matrices}, {"params": vectors}], betas=betas, eps=eps)
    ours = AdamW(beta1=betas[0], beta2=betas[1], eps=eps)
    for step in range(20):
        grads = map_leaves(lambda leaf, step=step: normal(*leaf.shape, seed=step + 2) * 0.5**step, params)
        if step % 3 == 1:
            del grads["b"]
        lr, decay = 0.03 / (1 + step % 7), 0.1 * (step % 4)
        ours.decay = theirs.param_groups[0]["weight_decay"] = decay
        theirs.param_groups[1]["weight_decay"] = 0.0
        for group in theirs.param_groups:
            group["lr"] = lr
        named = dict(leaves(grads))
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(named[name]) if name in named else None
        ours.update(params, grads, lr)
        theirs.step()
    for name, leaf in leaves(params):
        close(leaf, tensors[name].detach().numpy(), name)
        state = theirs.state[tensors[name]]
        close(ours.moments[name].m, state["exp_avg"].numpy(), f"m of {name}")
        close(ours.moments[name].v, state["exp_avg_sq"].numpy(), f"v of {name}")
        assert ours.moments[name].step == state["step"]


def compare(found: tuple, expected: tuple[Array, list[Array]]) -> None:
    """Compare y, and the gradients of x and of each parameter in turn."""
    y, dx, *dp = found
    close(y, expected[0], "y")
    for n, (gradient, its) in enumerate(zip([dx, *dp], expected[1], strict=True)):
        close(gradient, its, f"gradient {n}")


def test_gelu_is_torchs() -> None:
    x, dy = 3 * normal(4, 5), normal(4, 5, seed=1)
    y, cache = gelu_forward(x)
    compare((y, gelu_backward(dy, cache)), autograd(F.gelu, dy, x))


def test_layer_norm_is_torchs() -> None:
    x, g, b, dy = normal(2, 3, 6), normal(6), normal(6, seed=1), normal(2, 3, 6, seed=1)
    y, cache = layer_norm_forward(x, LayerNormParams(g, b))
    dx, dp = layer_norm_backward(dy, cache)
    compare((y, dx, *dp), autograd(lambda *a: F.layer_norm(a[0], (6,), *a[1:]), dy, x, g, b))


def test_batch_norm_is_torchs() -> None:
    x, g, b, dy = normal(2, 5, 3), normal(3), normal(3, seed=1), normal(2, 5, 3, seed=1)
    mean, var = normal(3, seed=2), normal(3, seed=3) ** 2
    y, new, cache = batch_norm_forward(x, np.ones((2, 5), bool), BatchStatistics(mean, var), BatchNormParams(g, b))
    dx, dp = batch_norm_backward(dy, cache)
    running = torch.tensor(mean), torch.tensor(var)

    def torchs(x: torch.Tensor, g: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x.flatten(0, 1), *running, g, b, training=True).view_as(x)

    compare((y, dx, *dp), autograd(torchs, dy, x, g, b))
    close(new.mean, running[0], "running mean"), close(new.var, running[1], "running variance")


def test_instance_norm_is_torchs_group_norm() -> None:
    x, g, b, dy = normal(2, 5, 3), normal(3), normal(3, seed=1), normal(2, 5, 3, seed=1)
    y, cache = instance_norm_forward(x, np.ones((2, 5), bool), InstanceNormParams(g, b))
    dx, dp = instance_norm_backward(dy, cache)
    torchs = lambda x, g, b: F.group_norm(x.transpose(1, 2), 3, g, b).transpose(1, 2)  # noqa: E731
    compare((y, dx, *dp), autograd(torchs, dy, x, g, b))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torchs(causal: bool) -> None:
    q, k, value, dy = (normal(2, 5, 3, 4, seed=seed) for seed in range(4))
    y, cache = attention_forward(q, k, value, np.ones((2, 5), bool), reach=(None, 0) if causal else None)

    def torchs(*inputs: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs), is_causal=causal).transpose(1, 2)

    compare((y, *attention_backward(dy, cache)), autograd(torchs, dy, q, k, value))


@pytest.mark.parametrize(("K", "stride", "pad"), [(10, 5, 0), (3, 2, 1), (4, 1, 2), (2, 3, 0)])
def test_conv1d_is_torchs(K: int, stride: int, pad: int) -> None:
    x, W, b = normal(2, 17, 3), normal(K, 3, 4), normal(4)
    y, cache = conv1d_forward(x, np.ones((2, 17), bool), Conv1dParams(W, b), stride=stride, pad=pad)
    dy = normal(*y.shape, seed=1)
    dx, dp = conv1d_backward(dy, cache)

    def torchs(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv1d(x.transpose(1, 2), W.permute(2, 1, 0), b, stride, pad).transpose(1, 2)

    compare((y, dx, *dp), autograd(torchs, dy, x, W, b))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("K", [5, 4, 1])
def test_depthwise_conv_is_torchs(K: int, causal: bool) -> None:
    x, W, b, dy = normal(2, 7, 3), normal(K, 3), normal(3), normal(2, 7, 3, seed=1)
    y, cache = depthwise_conv_forward(x, np.ones((2, 7), bool), DepthwiseConvParams(W, b), causal=causal)
    dx, dp = depthwise_conv_backward(dy, cache)

    def torchs(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x.transpose(1, 2), (K - 1, 0) if causal else ((K - 1) // 2, K // 2))
        return F.conv1d(padded, W.T[:, None], b, groups=3).transpose(1, 2)

    compare((y, dx, *dp), autograd(torchs, dy, x, W, b))


@pytest.mark.parametrize(("frames", "bins"), [(7, 6), (8, 5), (1, 1)])
def test_conv2d_is_torchs(frames: int, bins: int) -> None:
    x, W, b = normal(2, frames, bins, 3), normal(3, 3, 3, 4), normal(4)
    y, cache = conv2d_forward(x, np.ones((2, frames), bool), Conv2dParams(W, b))
    dy = normal(*y.shape, seed=1)
    dx, dp = conv2d_backward(dy, cache)

    def torchs(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), W.permute(3, 2, 0, 1), b, stride=2, padding=1).permute(0, 2, 3, 1)

    compare((y, dx, *dp), autograd(torchs, dy, x, W, b))


@pytest.mark.parametrize(("frames", "bins"), [(7, 6), (8, 5), (1, 1)])
def test_depthwise_conv2d_is_torchs(frames: int, bins: int) -> None:
    x, W, b = normal(2, frames, bins, 3), normal(3, 3, 3), normal(3)
    y, cache = depthwise_conv2d_forward(x, np.ones((2, frames), bool), DepthwiseConv2dParams(W, b))
    dy = normal(*y.shape, seed=1)
    dx, dp = depthwise_conv2d_backward(dy, cache)

    def torchs(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        kernel = W.permute(2, 0, 1)[:, None]
        return F.conv2d(x.permute(0, 3, 1, 2), kernel, b, stride=2, padding=1, groups=3).permute(0, 2, 3, 1)

    compare((y, dx, *dp), autograd(torchs, dy, x, W, b))
