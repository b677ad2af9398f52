"""From the rows of a manifest to what a model is given: features and labels of every utterance, and their batches."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from minihra.arrays import Array
from minihra.data.faults import Faults
from minihra.data.manifest import Row
from minihra.speech.alphabet import Alphabet
from minihra.speech.audio import read_audio
from minihra.speech.features import LogMel


class Utterance(NamedTuple):
    """A recording as the model sees it."""

    features: Array  # (T, F)
    labels: tuple[int, ...]
    text: str
    task: str
    place: str  # where it comes from, for messages


def load_utterances(
    rows: Sequence[Row],
    log_mel: LogMel,
    alphabet: Alphabet | None,
    faults: Faults,
    *,
    task_by: str | None = None,
    title: str = "reading",
) -> list[Utterance]:
    """Return the utterance of each row; one that is bad is added to `faults` and left out.

    Without an `alphabet` there are no labels: for evaluation, whose texts may hold any character. The task is the
    field `task_by`, or "base".
    """
    utterances = []
    for row in tqdm(rows, desc=title, unit="recording", disable=None, leave=False):
        try:
            task = "base" if task_by is None else task_of(row, task_by)
            labels = () if alphabet is None else tuple(alphabet.encode(row.text))
            features = log_mel(read_audio(row.path, log_mel.sample_rate))
            utterances.append(Utterance(features, labels, row.text, task, row.place))
        except (OSError, ValueError) as error:
            faults.add(f"{row.place}: {error}")
    return utterances


def task_of(row: Row, task_by: str) -> str:
    """Return the task of a row.

    Raises:
        ValueError: the row lacks the key, or its task is empty or has the name of the frozen model.
    """
    if task_by not in row.fields:
        raise ValueError(f"no {task_by!r}, which names the task; keys: {', '.join(sorted(row.fields))}")
    task = str(row.fields[task_by])
    if task in ("", "base"):
        raise ValueError(f"{task_by!r} is {task!r}, which no task can be called")
    return task


def commonest_rate(rows: Sequence[Row]) -> int:
    """Return the sample rate (Hz) that most of the recordings have; those that cannot be read are passed over.

    Raises:
        ValueError: not one can be read.
    """
    rates: Counter[int] = Counter()
    for row in rows:
        try:
            rates[soundfile.info(str(row.path)).samplerate] += 1
        except (OSError, soundfile.LibsndfileError):
            continue
    if not rates:
        raise ValueError(f"{rows[0].place}: neither this recording nor any other can be read ({rows[0].path})")
    return min(rates, key=lambda rate: (-rates[rate], rate))


def batches_of_epoch(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[Array]:
    """Return the batches of one epoch, arrays of indices: utterances of similar length, shuffled by seed and epoch.

    Lengths are blurred by up to 20 %, so that an utterance does not always meet the same ones.
    """
    rng = np.random.default_rng([seed, epoch])
    order = np.argsort(np.asarray(lengths) * rng.uniform(1, 1.2, len(lengths)), kind="stable")
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batches[i] for i in rng.permutation(len(batches))]
