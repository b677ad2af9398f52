"""Twin of minihra/layers/ctc.py for the GPU: a block for each utterance goes through its frames, a thread a state."""

import numpy as np

from minihra.arrays import Array, array_module
from minihra.kernels.cuda.launch import LANES, Grid, Source, contiguous, per_element, per_warp
from minihra.layers.ctc import CTCCache

KERNELS = Source("ctc.cu")
MOST_THREADS = 1024  # of a block; states beyond them have their turn in a loop
MOST_SHARED = 48 << 10  # bytes


def per_utterance(B: int, Z: int, itemsize: int) -> Grid | None:
    """Return a block for each of B utterances of Z states, or None where its shared memory does not hold them."""
    shared = 2 * (Z + 2) * itemsize + Z * 4  # two rows of numbers, and the labels of the states
    threads = min(-(-Z // LANES) * LANES, MOST_THREADS)
    return Grid((max(1, B),), (threads,), shared) if shared <= MOST_SHARED else None


def ctc_forward(
    logits: Array, valid: Array, labels: Array, label_lengths: Array, *, blank: int = 0
) -> tuple[Array, CTCCache]:
    """Return the loss (B,) of logits (B, T, V) for labels (B, S), of which `label_lengths` (B,) count in each row."""
    xp, (B, T, V), S, real = array_module(logits), logits.shape, labels.shape[1], logits.dtype
    Z = 2 * S + 1
    if (grid := per_utterance(B, Z, real.itemsize)) is None:
        return NotImplemented
    logits, valid, labels, label_lengths = map(contiguous, (logits, valid, labels, label_lengths))
    log_y, log_alpha = xp.empty((B, T, V), real), xp.empty((B, T, Z), real)
    states, skip, log_end = xp.empty((B, Z), labels.dtype), xp.empty((B, Z), bool), xp.empty((B, Z), real)
    loss, log_likelihood, feasible = xp.empty(B, real), xp.empty(B, real), xp.empty(B, bool)
    KERNELS.run("ctc_log_softmax", per_warp(B * T), logits=logits, valid=valid, log_y=log_y, N=B * T, V=V)
    KERNELS.run(
        "ctc_alpha",
        grid,
        **{"log_y": log_y, "valid": valid, "labels": labels, "label_lengths": label_lengths},
        **{"log_alpha": log_alpha, "states": states, "skip": skip, "log_end": log_end},
        **{"log_likelihood": log_likelihood, "feasible": feasible, "loss": loss},
        **{"B": B, "T": T, "V": V, "S": S, "Z": Z, "blank": blank},
    )
    return loss, CTCCache(log_y, log_alpha, log_end, log_likelihood, feasible, skip, states, valid)


def ctc_backward(dloss: Array, cache: CTCCache) -> Array:
    """Return dlogits (B, T, V), 0 on padded frames and infeasible utterances, for dloss (B,)."""
    log_y, log_alpha, log_end, log_likelihood, feasible, _, states, valid = map(contiguous, cache)
    xp, (B, T, V), Z = array_module(log_y), log_y.shape, states.shape[1]
    if (grid := per_utterance(B, Z, log_y.dtype.itemsize)) is None:
        return NotImplemented
    occupancy, dlogits = xp.empty((B, T, Z), log_y.dtype), xp.empty((B, T, V), log_y.dtype)
    head, following = xp.empty((B, V), np.int32), xp.empty((B, Z), np.int32)
    both = {"log_y": log_y, "valid": valid, "states": states, "feasible": feasible, "occupancy": occupancy}
    sizes = {"B": B, "T": T, "V": V, "Z": Z}
    ends = {"log_alpha": log_alpha, "log_end": log_end, "log_likelihood": log_likelihood}
    KERNELS.run("ctc_occupancy", grid, **both, **ends, **sizes)
    KERNELS.run("ctc_chains", per_element(B * V), states=states, head=head, next=following, B=B, V=V, Z=Z)
    lists = {"head": head, "next": following}
    KERNELS.run("ctc_gradient", per_warp(B * T), **both, **lists, **sizes, dloss=contiguous(dloss), dlogits=dlogits)
    return dlogits
