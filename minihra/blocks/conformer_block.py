"""The Conformer block. Gulati et al. 2020, 2005.08100, section 2.4 and figure 1.

    x = x + 1/2 ffn1(x)
    x = x +     attention(x)
    x = x +     conv(x)
    x = x + 1/2 ffn2(x)
    x = norm(x)                    then the site "block", where HRA adds its head:  x = x + u

In general x = a x + w u: the weights (a, w) of the four steps are values, as everything else that sets one model of
this kind apart from another; see BlockForm.

A frozen block below the first edit has nothing to train in or under it. Its branches keep no cache, and the backward
stops.
"""

from typing import Any, NamedTuple

from minihra.arrays import Array
from minihra.blocks.convolution import (
    ConvolutionCache,
    ConvolutionParams,
    convolution_backward,
    convolution_forward,
)
from minihra.blocks.feed_forward import (
    FeedForwardCache,
    FeedForwardParams,
    feed_forward_backward,
    feed_forward_forward,
)
from minihra.blocks.protocol import Context, Edit
from minihra.blocks.self_attention import (
    Attention,
    SelfAttentionCache,
    SelfAttentionParams,
    self_attention_backward,
    self_attention_forward,
)
from minihra.layers.dropout import DropoutCache
from minihra.layers.norms import EPS, BatchStatistics, LayerNormCache, LayerNormParams
from minihra.layers.residual import ResidualCache
from minihra.ops import (
    dropout_backward,
    dropout_forward,
    hot,
    layer_norm_backward,
    layer_norm_forward,
    residual_backward,
    residual_forward,
)
from minihra.tree import Tree, add

STEPS = ("ffn1", "attention", "conv", "ffn2")
"""The residual steps."""

SITES = (*STEPS, "block")

Weights = tuple[tuple[float, float], ...]
"""The weights (a, w) of x and u in each residual step."""

MACARON: Weights = ((1.0, 0.5), (1.0, 1.0), (1.0, 1.0), (1.0, 0.5))


class BlockForm(NamedTuple):
    """What a block's parameters do not tell of how it computes."""

    attention: Attention
    causal: bool = False  # the convolution sees no later frame
    activation: str = "swish"
    eps: float = EPS  # of the layer norms
    weights: Weights = MACARON


class ConformerBlockParams(NamedTuple):
    """Parameters of a Conformer block."""

    ffn1: FeedForwardParams
    attention: SelfAttentionParams
    conv: ConvolutionParams
    ffn2: FeedForwardParams
    norm: LayerNormParams  # (C,)


class EditCache(NamedTuple):
    """An edit and what its backward reads."""

    edit: Edit
    cache: Any


class StepCache(NamedTuple):
    """What the backward of a residual step reads. A branch of None: nothing is trained in it or below it."""

    branch: FeedForwardCache | SelfAttentionCache | ConvolutionCache | None
    dropout: DropoutCache | None
    edit: EditCache | None
    residual: ResidualCache


class ConformerBlockCache(NamedTuple):
    """What `conformer_block_backward` reads, and the running statistics that come out of a training step."""

    steps: tuple[StepCache, ...]
    norm: LayerNormCache | None
    edit: EditCache | None
    statistics: BatchStatistics | None


def branch_forward(
    site: str,
    x: Array,
    context: Context,
    statistics: BatchStatistics | None,
    p: ConformerBlockParams,
    form: BlockForm,
    params: bool,
) -> tuple[Array, BatchStatistics | None, FeedForwardCache | SelfAttentionCache | ConvolutionCache]:
    """Return the branch u (B, T, C) of the step `site`, the running statistics and the cache."""
    match site:
        case "attention":
            u, cache = self_attention_forward(
                x,
                context.positions,
                context.valid,
                p.attention,
                form=form.attention,
                eps=form.eps,
                params=params,
                kept=context.kept,
            )
        case "conv":
            u, statistics, cache = convolution_forward(
                x,
                context.valid,
                statistics,
                p.conv,
                causal=form.causal,
                activation=form.activation,
                eps=form.eps,
                total=None if context.training is None else context.training.total,
                params=params,
            )
        case "ffn1" | "ffn2":
            u, cache = feed_forward_forward(
                x, getattr(p, site), activation=form.activation, eps=form.eps, params=params
            )
    return u, statistics, cache


BRANCH_BACKWARD = {
    FeedForwardCache: feed_forward_backward,
    SelfAttentionCache: self_attention_backward,
    ConvolutionCache: convolution_backward,
}


def edit_forward(
    edit: Edit | None, site: str, l: int, x: Array, u: Array | None, carry: Any
) -> tuple[Array | None, Any, EditCache | None]:
    """Return u, carry and cache after the edit at this site, unchanged where there is none."""
    if edit is None or site not in edit.sites:
        return u, carry, None
    u, carry, cache = edit.forward(site, l, x, u, carry)
    return u, carry, EditCache(edit, cache)


def edit_backward(
    site: str, l: int, dx: Array, du: Array, dcarry: Any, dedit: Tree, cache: EditCache | None
) -> tuple[Array, Array | None, Any, Tree]:
    """Return dx and dedit with what the edit adds to them, du and dcarry below it."""
    if cache is None:
        return dx, du, dcarry, dedit
    dx_read, du, dcarry, dp = cache.edit.backward(site, l, du, dcarry, cache.cache)
    return dx + dx_read, du, dcarry, add(dedit, dp)


@hot
def add_and_norm(
    x: Array, u: Array, p: LayerNormParams, *, weights: tuple[float, float], eps: float, params: bool
) -> tuple[Array, LayerNormCache]:
    """Return the norm of a x + w u (B, T, C) and its cache: the last residual step, with the norm that follows it."""
    x, _ = residual_forward(x, u, weights=weights)
    return layer_norm_forward(x, p, eps=eps, params=params)


def conformer_block_forward(
    x: Array,
    context: Context,
    statistics: BatchStatistics | None,
    p: ConformerBlockParams,
    *,
    form: BlockForm,
    l: int = 0,
    edit: Edit | None = None,
    carry: Any = None,
    params: bool = True,
    below: bool = True,
    keep: bool = True,
) -> tuple[Array, Any, ConformerBlockCache]:
    """Map x (B, T, C) through layer l. Returns x (B, T, C), the edit's carry and the cache.

    `below` says that the gradient of the input is wanted: something further down is trained. `keep=False` says that no
    backward follows at all.
    """
    steps, wanted = [], keep and (below or params)
    for s, (site, weights) in enumerate(zip(STEPS, form.weights, strict=True)):
        u, statistics, branch = branch_forward(site, x, context, statistics, p, form, params)  # (1)
        dropout = None
        if context.training is not None and context.training.keep is not None:
            u, dropout = dropout_forward(u, context.training.keep[l, s], rate=context.training.rate)  # (2)
        u, carry, edited = edit_forward(edit, site, l, x, u, carry)  # (3)
        if site == STEPS[-1]:
            x, norm = add_and_norm(x, u, p.norm, weights=weights, eps=form.eps, params=params)  # (4) (5)
        else:
            x, _ = residual_forward(x, u, weights=weights)  # (4)
        residual = ResidualCache(weights)
        steps.append(StepCache(branch if wanted else None, dropout, edited if keep else None, residual))
        branch = None  # where nobody wants it, it must not live on beside the next one
        wanted = wanted or (keep and edited is not None)
    u, carry, edited = edit_forward(edit, "block", l, x, None, carry)  # (6)
    if u is not None:
        x = x + u  # (7)
    norm, edited = norm if wanted else None, edited if keep else None
    return x, carry, ConformerBlockCache(tuple(steps), norm, edited, statistics)


def conformer_block_backward(
    dx: Array, dcarry: Any, cache: ConformerBlockCache, *, l: int = 0
) -> tuple[Array | None, Any, ConformerBlockParams | None, Tree]:
    """Return dx (B, T, C), dcarry, dp and dedit for dx (B, T, C) and dcarry above; dx is None if nothing wants it."""
    dx, _, dcarry, dedit = edit_backward("block", l, dx, dx, dcarry, None, cache.edit)  # (7) (6)
    if cache.norm is None:
        return None, dcarry, None, dedit
    dx, dnorm = layer_norm_backward(dx, cache.norm)  # (5)
    dbranches = {}
    for step, site in zip(reversed(cache.steps), reversed(STEPS), strict=True):
        dx, du = residual_backward(dx, step.residual)  # (4)
        dx, du, dcarry, dedit = edit_backward(site, l, dx, du, dcarry, dedit, step.edit)  # (3)
        if step.branch is None:
            return None, dcarry, None, dedit
        if step.dropout is not None:
            du = dropout_backward(du, step.dropout)  # (2)
        dx_branch, dbranches[site] = BRANCH_BACKWARD[type(step.branch)](du, step.branch)  # (1)
        dx = dx + dx_branch  # (4)
    return dx, dcarry, None if dnorm is None else ConformerBlockParams(norm=dnorm, **dbranches), dedit
