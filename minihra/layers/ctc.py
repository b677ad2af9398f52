"""Connectionist temporal classification from logits, in the log domain. Graves et al. 2006 (ICML), sections 3 and 4.

A labelling of S labels is spelled by every path of T frames that gives it when repeats are merged and blanks dropped.
With a blank before, between and after its labels it has Z = 2S+1 states z; a path stays, steps to the next state, or
skips a blank between two DIFFERENT labels. With y = softmax(logits) and z_s the label of state s:

    alpha_t(s) = y_t(z_s) (alpha_{t-1}(s) + alpha_{t-1}(s-1) + [may skip to s] alpha_{t-1}(s-2))     eq. 6, 7
    beta_t(s)  = sum over the states s' that follow s of beta_{t+1}(s') y_{t+1}(z_s')                eq. 10, 11
    likelihood = alpha_{T-1}(Z-1) + alpha_{T-1}(Z-2)                                                 eq. 8
    loss       = -log likelihood
    dlogits_tv = y_t(v) - (1 / likelihood) sum over s with z_s = v of alpha_t(s) beta_t(s)           eq. 16

Our beta leaves out the emission at t (the paper's holds it, and divides by it again). Before the first frame all of
alpha stands in state 0, from which the first frame can only stay on the blank or step to the first label: the paper's
start.

An utterance that is too short for its labels (fewer frames than labels and repeats) has likelihood 0: its loss and its
gradient are 0, and `cache.feasible` says so, for the caller to count.
"""

from typing import NamedTuple

from minihra.arrays import Array, array_module
from minihra.masks import hide


class CTCCache(NamedTuple):
    """What `ctc_backward` reads, and which utterances are `feasible`."""

    log_y: Array  # (B, T, V)  log softmax of the logits
    log_alpha: Array  # (B, T, Z)
    log_end: Array  # (B, Z)  0 at the states in which a path may end, else -inf
    log_likelihood: Array  # (B,)  0 for an infeasible utterance, so that no -inf meets another
    feasible: Array  # (B,)  bool
    skip: Array  # (B, Z)  bool: a path may come from state s-2
    states: Array  # (B, Z)  labels of the states
    valid: Array  # (B, T)


def shifted(a: Array, by: int) -> Array:
    """Return a (B, Z) moved right by `by` states (left when negative); -inf (or False) moves in."""
    out = array_module(a).full_like(a, False if a.dtype == bool else -float("inf"))
    if by > 0:
        out[:, by:] = a[:, :-by]
    else:
        out[:, :by] = a[:, -by:]
    return out


def emissions(log_y: Array, states: Array) -> Array:
    """Return log_y (B, T, V) of the states' labels (B, Z): (B, T, Z)."""
    xp, (B, T, _), Z = array_module(log_y), log_y.shape, states.shape[1]
    return xp.take_along_axis(log_y, xp.broadcast_to(states[:, None], (B, T, Z)), axis=2)


def ctc_forward(
    logits: Array, valid: Array, labels: Array, label_lengths: Array, *, blank: int = 0
) -> tuple[Array, CTCCache]:
    """Return the loss (B,) of logits (B, T, V) for labels (B, S), of which `label_lengths` (B,) count in each row."""
    xp, (B, T, _), S = array_module(logits), logits.shape, labels.shape[1]
    logits = hide(logits, valid)
    centred = logits - logits.max(-1, keepdims=True)
    log_y = centred - xp.log(xp.exp(centred).sum(-1, keepdims=True))  # (1)

    states = xp.full((B, 2 * S + 1), blank, dtype=labels.dtype)
    states[:, 1::2] = xp.where(xp.arange(S)[None, :] < label_lengths[:, None], labels, blank)
    skip = xp.zeros(states.shape, bool)
    skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    emission = emissions(log_y, states)  # (2)
    last = 2 * label_lengths[:, None]
    state = xp.arange(2 * S + 1)[None, :]
    log_end = xp.where((state == last) | (state == last - 1), 0.0, -float("inf")).astype(logits.dtype)

    alpha = xp.where(state == 0, 0.0, xp.full((B, 1), -float("inf"))).astype(logits.dtype)
    log_alpha = xp.empty_like(emission)
    for t in range(T):
        come = xp.logaddexp(alpha, shifted(alpha, 1))
        come = xp.where(skip, xp.logaddexp(come, shifted(alpha, 2)), come)
        alpha = xp.where(valid[:, t, None], come + emission[:, t], alpha)  # (3)
        log_alpha[:, t] = alpha
    final = alpha + log_end
    top = final.max(-1)
    feasible = top != -float("inf")  # NaN stays feasible: a diverged model must show
    top = xp.where(feasible, top, 0)
    total = xp.exp(final - top[:, None]).sum(-1)
    log_likelihood = top + xp.log(xp.where(feasible, total, 1))  # (4)
    loss = xp.where(feasible, 0 - log_likelihood, 0)  # (5)  0 - 0 is 0, but -0 is -0.0
    return loss, CTCCache(log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid)


def ctc_backward(dloss: Array, cache: CTCCache) -> Array:
    """Return dlogits (B, T, V), 0 on padded frames and infeasible utterances, for dloss (B,)."""
    log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid = cache
    xp, T, V = array_module(dloss), log_y.shape[1], log_y.shape[2]
    emission = emissions(log_y, states)  # (2)
    beta, log_beta, skip_from = log_end, xp.empty_like(log_alpha), shifted(skip, -2)
    for t in reversed(range(T)):
        log_beta[:, t] = beta
        go = beta + emission[:, t]
        leave = xp.logaddexp(go, shifted(go, -1))
        leave = xp.where(skip_from, xp.logaddexp(leave, shifted(go, -2)), leave)
        beta = xp.where(valid[:, t, None], leave, beta)  # (3)
    log_occupancy = log_alpha + log_beta - log_likelihood[:, None, None]  # (4)
    one_hot = (states[:, :, None] == xp.arange(V)).astype(log_y.dtype)  # (B, Z, V)
    dlog_y = -(xp.exp(log_occupancy) @ one_hot)  # (5) (3) (2)
    dlogits = (xp.exp(log_y) + dlog_y) * dloss[:, None, None]  # (1): each frame's occupancies sum to 1
    return hide(dlogits, valid & feasible[:, None])
