"""CTC prefix beam search: labellings by their total probability, not by their best path.

Graves 2012, Supervised Sequence Labelling with Recurrent Neural Networks, section 7.5.3, in the form of Hannun et al.
2014, arXiv 1408.2873, algorithm 1, without a language model. Many paths spell one labelling; the search goes through
the frames with the `width` likeliest prefixes p of labellings, and keeps for each the probability of the paths so far
that spell it and end in a blank, b(p), or in its last label, l(p). With y_t = softmax(logits_t):

    grow_t(p, v) = (b_{t-1}(p) + [v is not the last label of p] l_{t-1}(p)) y_t(v)
    b_t(p) = (b_{t-1}(p) + l_{t-1}(p)) y_t(blank)
    l_t(p) = l_{t-1}(p) y_t(last label of p) + grow_t(p without its last label, its last label)

where grow_t gives p one label more, which may repeat its last one only behind a blank. Before the first frame
b(empty) = 1 and all else is 0. A prefix is reached in two ways only: from itself, and from its mother, the prefix
without its last label. So prefixes become equal in one way only, where a mother in the beam grows a child that is in
the beam already, and the last line adds up the two. All of this is done in logs, for the whole beam at once.
"""

import numpy as np

from minihra.arrays import Array

FORGET = 500
"""After so many frames, prefixes that lead nowhere are forgotten: their number would grow with the recording."""


def beam_decode(logits: Array, valid: Array, *, width: int, blank: int = 0) -> list[list[int]]:
    """Return the likeliest labels found of each utterance for logits (B, T, V), of which valid (B, T) frames are real.

    With a `width` that no frame fills, the labelling is the likeliest of all. What falls out of a narrower beam is
    lost, so a labelling may be missed that a wider beam, or even `greedy_decode`, finds. A width of 1 is not
    greedy decoding: it sums paths too, and never takes back a label. Ties go to the better prefix of the frame before,
    then to the prefix itself before its children, then to the smaller label. A logit of -inf is a label that cannot be.

    Raises:
        ValueError: `width` is below 1, or a real frame gives no probabilities (a NaN, +inf, or nothing but -inf).
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    found = []
    for b, (row, real) in enumerate(zip(logits, valid, strict=True)):
        frames = row[real]
        finite = np.isfinite(frames.max(-1))
        if not finite.all():
            t = np.flatnonzero(real)[np.argmin(finite)]
            raise ValueError(f"utterance {b}, frame {t}: logits whose largest is not finite give no probabilities")
        found.append(search(frames, width, blank))
    return found


def search(frames: Array, width: int, blank: int) -> list[int]:
    """Return the labels of one utterance for logits `frames` (T, V)."""
    labels = np.delete(np.arange(frames.shape[1]), blank)

    # Prefixes are a tree: node number i is the i-th key of `nodes`, (its mother's node, its last label). A prefix that
    # leaves the beam and comes back has the same node, so that children which stayed know their mother.
    nodes = {(-1, blank): 0}
    node, mother, last = np.array([0]), np.array([-1]), np.array([blank])  # (n,), n <= width, the best prefix first
    log_b, log_l = np.array([0.0]), np.array([-np.inf])

    for t, frame in enumerate(frames, start=1):
        centred = frame.astype(np.float64) - frame.max()
        y = centred - np.log(np.exp(centred).sum())
        # A frame offers its width+1 best labels (K,), and this loses nothing: label v makes a child of prefix p that is
        # kept only if fewer than `width` candidates are better. Each better label makes a better child of p, in the
        # beam before or now, save one, the repeat of p's last label. So at most `width` labels stand before v.
        offered = labels[np.argsort(-y[labels], kind="stable")[: width + 1]]
        either = np.logaddexp(log_b, log_l)
        stay_b, stay_l = either + y[blank], log_l + y[last]
        grown = np.where(offered == last[:, None], log_b[:, None], either[:, None]) + y[offered]  # (n, K)

        # children in the beam whose mother m is there too; their labels need not be among those that are offered
        child, m = np.nonzero(mother[:, None] == node)
        from_mother = np.where(last[child] == last[m], log_b[m], either[m]) + y[last[child]]
        stay_l[child] = np.logaddexp(stay_l[child], from_mother)
        which, rank = np.nonzero(last[child][:, None] == offered)
        grown[m[which], rank] = -np.inf  # counted above

        scores = np.column_stack([np.logaddexp(stay_b, stay_l), grown]).ravel()
        kept = np.argsort(-scores, kind="stable")[:width]
        kept = kept[scores[kept] > -np.inf]
        row, column = np.divmod(kept, 1 + len(offered))
        stays = column == 0
        log_b = np.where(stays, stay_b[row], -np.inf)
        log_l = np.where(stays, stay_l[row], scores[kept])
        mother = np.where(stays, mother[row], node[row])
        last = np.where(stays, last[row], np.append(blank, offered)[column])
        keys = zip(mother.tolist(), last.tolist(), strict=True)
        node = np.array([nodes.setdefault(key, len(nodes)) for key in keys])
        if t % FORGET == 0:
            nodes, node, mother = without_dead_ends(nodes, node, mother)

    tree, found, i = list(nodes), [], int(node[0])
    while i:
        i, label = tree[i]
        found.append(label)
    return found[::-1]


def without_dead_ends(nodes: dict[tuple[int, int], int], node: Array, mother: Array) -> tuple[dict, Array, Array]:
    """Return the tree of the prefixes `node` (n,) and their ancestors alone, with its new numbers for both arrays."""
    tree, kept = list(nodes), {0}
    for i in node.tolist():
        ancestor = i
        while ancestor not in kept:
            kept.add(ancestor)
            ancestor, _ = tree[ancestor]
    number = {-1: -1} | {old: new for new, old in enumerate(sorted(kept))}
    fewer = {(number[tree[old][0]], tree[old][1]): number[old] for old in sorted(kept)}
    return fewer, *(np.array([number[i] for i in which.tolist()]) for which in (node, mother))
