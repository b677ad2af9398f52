"""What a recogniser writes down, and how many words, characters or phonemes of it are wrong."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minihra.adapters.controller import BASE
from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.data.corpus import Utterance
from minihra.device import to_host
from minihra.graphs import InferenceGraphs
from minihra.model import infer
from minihra.parts import is_little, parts_of
from minihra.recogniser import Recogniser, edit_of
from minihra.speech.beam import beam_decode
from minihra.speech.chunks import Chunk, chunks_of, stitch
from minihra.speech.decoding import greedy_decode
from minihra.speech.error_rate import ErrorCount, character_errors, sum_errors, unit_errors
from minihra.speech.features import pad
from minihra.speech.tokenizers import Tokenizer
from minihra.threads import share

BATCH = 32
"""Most pieces that are recognised together."""

TOGETHER = 120.0
"""Seconds of sound, padding included, that are recognised together."""

PIECE, OVERLAP = 30.0, 4.0
"""Seconds of the pieces in which a long recording is recognised, and of what two neighbours share."""


class Score(NamedTuple):
    """The errors of a set of utterances."""

    units: ErrorCount  # words, or phonemes of a model that writes phonemes
    characters: ErrorCount  # of a model that writes words, or none
    utterances: int


def pieces_of(frames: int, recogniser: Recogniser) -> list[Chunk]:
    """Return the pieces in which a recording of so many feature frames is recognised."""
    stride = recogniser.model.config.front_end.stride
    per_second = 1 / (recogniser.features.hop * stride)
    size, overlap = (max(1, round(seconds * per_second)) * stride for seconds in (PIECE, OVERLAP))
    return chunks_of(frames, size, overlap, stride)


def batches_of(lengths: Sequence[int], most: int) -> Iterator[Array]:
    """Yield batches of indices, in the order of their lengths: of at most BATCH and, padded, about `most` frames."""
    order, start = np.argsort(lengths, kind="stable"), 0
    for end in range(1, len(order) + 1):
        full = end - start == BATCH or (end < len(order) and (end + 1 - start) * lengths[order[end]] > most)
        if full or end == len(order):
            yield order[start:end]
            start = end


def infer_parts(
    recogniser: Recogniser,
    features: Sequence[Array],
    hra: HRA | None,
    tasks: Sequence[str],
    graphs: InferenceGraphs | None = None,
) -> list[Array]:
    """Return the logits (T', V) of each of a batch of features (T, F)."""

    def infer_part(rows: Array) -> list[Array]:
        its_tasks = [tasks[row] for row in rows]
        inputs, lengths = pad([features[row] for row in rows], xp)
        outputs = None if graphs is None else graphs.outputs(inputs, lengths, its_tasks)
        if outputs is None:
            edit = None if hra is None else edit_of(recogniser.model, hra, inputs, lengths, its_tasks)
            outputs = infer(recogniser.model, inputs, lengths, edit)
        logits, valid = to_host(outputs)
        return [row[real] for row, real in zip(logits, valid, strict=True)]

    xp = recogniser.model.xp
    lengths = [len(one) for one in features]
    parts, little = parts_of(lengths, tasks, xp=xp), is_little(lengths, recogniser.model.config.width)
    logits = chain.from_iterable(share([partial(infer_part, rows) for rows in parts], little=little))
    by_row = dict(zip(np.concatenate(parts).tolist(), logits, strict=True))
    return [by_row[row] for row in range(len(features))]


def outputs_of(
    recogniser: Recogniser,
    features: Sequence[Array],
    hra: HRA | None = None,
    tasks: Sequence[str] | None = None,
    graphs: InferenceGraphs | None = None,
) -> Iterator[tuple[int, Array]]:
    """Yield (i, logits (T', V)) of each of `features` (T, F), with the head of its task where an adapter is given.

    Long recordings are recognised in pieces that overlap. Recordings come when their last piece is done, in no order.
    On a GPU `graphs` of this backbone and adapter start a batch at once.

    Raises:
        ValueError: an unknown task; the message lists the known ones.
    """
    tasks = tasks or [BASE] * len(features)
    if hra is not None:
        hra.edit(tasks)  # a mistake is told with its place among all
    pieces = [pieces_of(len(one), recogniser) for one in features]
    parts = [(i, n, chunk) for i, chunks in enumerate(pieces) for n, chunk in enumerate(chunks)]
    lengths = [chunk.stop - chunk.start for _, _, chunk in parts]
    outputs: dict[int, dict[int, Array]] = {}
    recogniser = recogniser._replace(model=recogniser.model.settled())
    most, stride = round(TOGETHER / recogniser.features.hop), recogniser.model.config.front_end.stride
    with tqdm(desc="recognising", total=len(parts), unit="piece", disable=None, leave=False) as bar:
        for batch in batches_of(lengths, most):
            rows = [parts[place] for place in batch]
            sound = [features[i][chunk.start : chunk.stop] for i, _, chunk in rows]
            try:
                found = infer_parts(recogniser, sound, hra, [tasks[i] for i, *_ in rows], graphs)
            except MemoryError as error:
                seconds = max(map(len, sound)) * recogniser.features.hop
                raise MemoryError(f"in a batch of {len(rows)}, of up to {seconds:.1f} s each: {error}") from error
            for (i, n, _), row in zip(rows, found, strict=True):
                done = outputs.setdefault(i, {})
                done[n] = row
                if len(done) == len(pieces[i]):
                    yield i, stitch([done[n] for n in range(len(done))], pieces[i], stride)
                    del outputs[i]
            bar.update(len(rows))


def logits_of(
    recogniser: Recogniser, features: Sequence[Array], hra: HRA | None = None, tasks: Sequence[str] | None = None
) -> list[Array]:
    """Return the logits (T', V) of each of `features`: those of `outputs_of`, in order."""
    outputs = dict(outputs_of(recogniser, features, hra, tasks))
    return [outputs[i] for i in range(len(features))]


def transcribe(
    recogniser: Recogniser,
    features: Sequence[Array],
    hra: HRA | None = None,
    tasks: Sequence[str] | None = None,
    *,
    beam: int | None = None,
    graphs: InferenceGraphs | None = None,
) -> list[str]:
    """Return the text of each of `features` (T, F), with the head of its task where an adapter is given.

    Decoding is greedy, or by a prefix beam search of the width `beam`. On a GPU `graphs` of this backbone and adapter
    start a batch at once.

    Raises:
        ValueError: an unknown task; the message lists the known ones. A beam below 1, or logits that are not finite.
    """
    texts, blank = [""] * len(features), recogniser.tokenizer.blank
    for i, logits in outputs_of(recogniser, features, hra, tasks, graphs):
        batch, valid = logits[None], np.ones((1, len(logits)), bool)
        if beam is None:
            (labels,) = greedy_decode(batch, valid, blank=blank)
        else:
            (labels,) = beam_decode(batch, valid, width=beam, blank=blank)
        texts[i] = recogniser.tokenizer.decode(labels)
    return texts


def score(references: Sequence[str], hypotheses: Sequence[str], tokenizer: Tokenizer) -> Score:
    """Return the errors of all texts together."""
    pairs = list(zip(references, hypotheses, strict=True))
    characters = (character_errors(*pair) for pair in pairs) if tokenizer.unit == "word" else ()
    return Score(
        sum_errors(unit_errors(tokenizer.units(r), tokenizer.units(h)) for r, h in pairs),
        sum_errors(characters),
        len(pairs),
    )


def score_by_task(utterances: Sequence[Utterance], hypotheses: Sequence[str], tokenizer: Tokenizer) -> dict[str, Score]:
    """Return the errors of each task, in the order of the tasks' names."""
    groups: dict[str, list[int]] = {}
    for i, utterance in enumerate(utterances):
        groups.setdefault(utterance.task, []).append(i)
    return {
        task: score([utterances[i].text for i in rows], [hypotheses[i] for i in rows], tokenizer)
        for task, rows in sorted(groups.items())
    }
