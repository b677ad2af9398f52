"""Twin of CTC: each utterance's recursion over its frames is a loop over its states, without arrays in between.

Probabilities are added in the log domain, as in the reference. The backward reads emissions from log_y, and keeps beta
for one frame alone. The threads of OpenMP share the utterances, unless the caller has but its own thread.
"""

import numpy as np
from numba import njit, prange

from minihra.arrays import Array, array_module
from minihra.kernels.cpu.compiled import (
    LOWEST,
    ZERO,
    bounds_for,
    compiled,
    compiled_strictly,
    copy_row,
    exp,
    largest,
    launch,
    log,
    must_have,
)
from minihra.kernels.cpu.openmp import compiled_for_threads
from minihra.layers.ctc import CTCCache

NEVER = np.float32(-np.inf)
APART = 32
"""Elements between the rooms of two threads, which would take a line of the cache from each other."""


@compiled
def _log_softmax(logits: Array, valid: Array, log_y: Array, low: int, high: int) -> None:
    """Write those of the utterances `low` ... `high`; take padded frames, which may hold anything, as zeros."""
    _, T, V = logits.shape
    for b in range(low, high):
        for t in range(T):
            y = log_y[b, t]
            for v in range(V):
                y[v] = logits[b, t, v] if valid[b, t] else ZERO
            most, total = largest(y), ZERO
            for v in range(V):
                y[v] -= most
                total += exp(y[v])
            total = log(total)
            for v in range(V):
                y[v] -= total


@njit(inline="always")  # by Numba: for LLVM it is too long, and the loops would not vectorise
def _log_add(a: float, b: float, c: float) -> float:
    """Return log(exp(a) + exp(b) + exp(c)); minus infinity stands for 0."""
    most = max(a, b, c)
    base = max(most, LOWEST)  # finite, so that no infinity is subtracted from another
    return most + log(exp(a - base) + exp(b - base) + exp(c - base))


@compiled_strictly
def _forward(
    log_y: Array, valid: Array, states: Array, skip: Array, log_alpha: Array, before: Array, low: int, high: int
) -> None:
    """Write alpha (B, T, Z) of every frame of these utterances; that of a padded frame is its predecessor's. Room:
    before (Z + 2,), with two states below the first one, in which no path is.
    """
    _, T, Z = log_alpha.shape
    for b in range(low, high):
        for s in range(Z + 2):
            before[s] = NEVER
        before[2] = ZERO
        for t in range(T):
            alpha = log_alpha[b, t]
            if valid[b, t]:
                for s in range(Z):
                    alpha[s] = before[s] if skip[b, s] else NEVER
                for s in range(Z):
                    alpha[s] = _log_add(before[s + 2], before[s + 1], alpha[s])
                for s in range(Z):
                    alpha[s] += log_y[b, t, states[b, s]]
                copy_row(alpha, before[2:])
            else:
                copy_row(before[2:], alpha)


@compiled_for_threads
def _shared_forward(
    logits: Array,
    valid: Array,
    states: Array,
    skip: Array,
    log_y: Array,
    log_alpha: Array,
    before: Array,
    bounds: Array,
) -> None:
    """Compute the utterances between two bounds as one portion, with a row of `before`, which is APART longer."""
    size = before.shape[1] - APART
    for n in prange(len(bounds) - 1):
        _log_softmax(logits, valid, log_y, bounds[n], bounds[n + 1])
        _forward(log_y, valid, states, skip, log_alpha, before[n, :size], bounds[n], bounds[n + 1])


def must_be_labels(states: Array, V: int) -> None:
    """Raise IndexError if there is another label than 0 ... V - 1."""
    if states.max() >= V or states.min() < 0:
        raise IndexError(f"labels must be from 0 to {V - 1}, got {states.min()} to {states.max()}")


def ctc_forward(
    logits: Array, valid: Array, labels: Array, label_lengths: Array, *, blank: int = 0
) -> tuple[Array, CTCCache]:
    """Return the loss (B,) of logits (B, T, V) for labels (B, S), of which `label_lengths` (B,) count in each row."""
    xp, (B, T, V), S = array_module(logits), logits.shape, labels.shape[1]
    states = xp.full((B, 2 * S + 1), blank, dtype=labels.dtype)
    states[:, 1::2] = xp.where(xp.arange(S)[None, :] < label_lengths[:, None], labels, blank)
    launch(must_be_labels, states, V)
    must_have((B, T), valid)
    skip = xp.zeros(states.shape, bool)
    skip[:, 2:] = (states[:, 2:] != blank) & (states[:, 2:] != states[:, :-2])
    last, state = 2 * label_lengths[:, None], xp.arange(2 * S + 1)[None, :]
    log_end = xp.where((state == last) | (state == last - 1), 0.0, -float("inf")).astype(logits.dtype)

    log_y, log_alpha = xp.empty((B, T, V), logits.dtype), xp.empty((B, T, 2 * S + 1), logits.dtype)
    logits, bounds = xp.ascontiguousarray(logits), bounds_for(B, log_alpha.size)
    before = xp.empty((len(bounds) - 1, 2 * S + 3 + APART), logits.dtype)
    if len(bounds) > 2:
        launch(_shared_forward, logits, valid, states, skip, log_y, log_alpha, before, bounds)
    else:
        launch(_log_softmax, logits, valid, log_y, *map(int, bounds))
        launch(_forward, log_y, valid, states, skip, log_alpha, before[0, :-APART], *map(int, bounds))
    final = log_alpha[:, T - 1] + log_end
    top = final.max(-1)
    feasible = top != -float("inf")
    top = xp.where(feasible, top, 0)
    total = xp.exp(final - top[:, None]).sum(-1)
    log_likelihood = top + xp.log(xp.where(feasible, total, 1))
    loss = xp.where(feasible, 0 - log_likelihood, 0)
    return loss, CTCCache(log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid)


@compiled_strictly
def _backward(
    dloss: Array,
    log_y: Array,
    log_alpha: Array,
    log_end: Array,
    log_likelihood: Array,
    feasible: Array,
    skip: Array,
    states: Array,
    valid: Array,
    dlogits: Array,
    beta: Array,
    skipped: Array,
    go: Array,
    low: int,
    high: int,
) -> None:
    """Let dlogits (B, T, V) be the gradient of these utterances. Room: beta (Z,), skipped (Z,) and go (Z + 2,)."""
    (_, T, Z), V = log_alpha.shape, log_y.shape[2]
    go[Z] = go[Z + 1] = NEVER  # two states above the last one
    for b in range(low, high):
        copy_row(log_end[b], beta)
        for t in range(T - 1, -1, -1):
            for v in range(V):
                dlogits[b, t, v] = ZERO
            if not (valid[b, t] and feasible[b]):
                continue
            for s in range(Z):
                go[s] = beta[s] + log_y[b, t, states[b, s]]
            for s in range(Z):  # the share of the paths that are in s now
                beta[s] = exp(log_alpha[b, t, s] + beta[s] - log_likelihood[b])
            for s in range(Z):
                dlogits[b, t, states[b, s]] -= beta[s]
            for v in range(V):
                dlogits[b, t, v] = (dlogits[b, t, v] + exp(log_y[b, t, v])) * dloss[b]
            for s in range(Z):
                skipped[s] = go[s + 2] if s + 2 < Z and skip[b, s + 2] else NEVER
            for s in range(Z):
                beta[s] = _log_add(go[s], go[s + 1], skipped[s])


@compiled_for_threads
def _shared_backward(
    dloss: Array,
    log_y: Array,
    log_alpha: Array,
    log_end: Array,
    log_likelihood: Array,
    feasible: Array,
    skip: Array,
    states: Array,
    valid: Array,
    dlogits: Array,
    beta: Array,
    skipped: Array,
    go: Array,
    bounds: Array,
) -> None:
    """Compute the utterances between two bounds as one portion, with a row of each room, which is APART longer."""
    Z = log_alpha.shape[2]
    for n in prange(len(bounds) - 1):
        room = beta[n, :Z], skipped[n, :Z], go[n, : Z + 2], bounds[n], bounds[n + 1]
        _backward(dloss, log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid, dlogits, *room)


def ctc_backward(dloss: Array, cache: CTCCache) -> Array:
    """Return dlogits (B, T, V), 0 on padded frames and infeasible utterances, for dloss (B,)."""
    log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid = cache
    xp = array_module(log_y)
    dlogits = xp.empty(log_y.shape, log_y.dtype)
    arrays = (dloss, log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid)
    arrays, (B, _, Z) = map(xp.ascontiguousarray, arrays), log_alpha.shape
    bounds = bounds_for(B, log_alpha.size)
    room = (xp.empty((len(bounds) - 1, Z + more + APART), log_y.dtype) for more in (0, 0, 2))
    if len(bounds) > 2:
        launch(_shared_backward, *arrays, dlogits, *room, bounds)
    else:
        launch(_backward, *arrays, dlogits, *(one[0, :-APART] for one in room), *map(int, bounds))
    return dlogits
