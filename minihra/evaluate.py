"""What a recogniser writes down, and how many words and characters of it are wrong."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from minihra.adapters.controller import BASE
from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.data.corpus import Utterance
from minihra.model import forward
from minihra.recogniser import Recogniser
from minihra.speech.decoding import greedy_decode
from minihra.speech.error_rate import ErrorCount, character_errors, sum_errors, word_errors
from minihra.speech.features import pad

BATCH = 32


class Score(NamedTuple):
    """The errors of a set of utterances."""

    words: ErrorCount
    characters: ErrorCount
    utterances: int


def transcribe(
    recogniser: Recogniser, features: Sequence[Array], hra: HRA | None = None, tasks: Sequence[str] | None = None
) -> list[str]:
    """Return the text of each of `features` (T, F), with the head of its task where an adapter is given.

    Raises:
        ValueError: an unknown task; the message lists the known ones.
    """
    tasks, texts = tasks or [BASE] * len(features), [""] * len(features)
    order = np.argsort([len(one) for one in features], kind="stable")  # little padding
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        edit = None if hra is None else hra.edit([tasks[i] for i in rows])
        logits, cache = forward(recogniser.model, *pad([features[i] for i in rows]), edit)
        for i, labels in zip(rows, greedy_decode(logits, cache.context.valid), strict=True):
            texts[i] = recogniser.alphabet.decode(labels)
    return texts


def score(references: Sequence[str], hypotheses: Sequence[str]) -> Score:
    """Return the errors of all texts together."""
    pairs = list(zip(references, hypotheses, strict=True))
    return Score(
        sum_errors(word_errors(*pair) for pair in pairs),
        sum_errors(character_errors(*pair) for pair in pairs),
        len(pairs),
    )


def score_by_task(utterances: Sequence[Utterance], hypotheses: Sequence[str]) -> dict[str, Score]:
    """Return the errors of each task, in the order of the tasks' names."""
    groups: dict[str, list[int]] = {}
    for i, utterance in enumerate(utterances):
        groups.setdefault(utterance.task, []).append(i)
    return {
        task: score([utterances[i].text for i in rows], [hypotheses[i] for i in rows])
        for task, rows in sorted(groups.items())
    }
