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
from minihra.speech.audio import at_speed, read_audio
from minihra.speech.features import Features
from minihra.speech.tokenizers import Tokenizer


class Utterance(NamedTuple):
    """A recording as the model sees it."""

    features: Array  # (T, F)
    labels: tuple[int, ...]
    text: str  # as the model would write it
    task: str
    place: str  # where it comes from, for messages


def load_utterances(
    rows: Sequence[Row],
    features: Features,
    tokenizer: Tokenizer,
    faults: Faults,
    *,
    labelled: bool = True,
    task_by: str | None = None,
    speeds: Sequence[float] = (1.0,),
    title: str = "reading",
) -> list[Utterance]:
    """Return the utterance of each row, at each of `speeds`; a row that is bad is added to `faults` and left out.

    Where they are not to be `labelled` there are no labels: for evaluation, whose texts may hold any character. The
    task is the field `task_by`, or "base".
    """
    utterances = []
    for row in tqdm(rows, desc=title, unit="recording", disable=None, leave=False):
        try:
            task = "base" if task_by is None else task_of(row, task_by)
            labels = tuple(tokenizer.encode(row.text)) if labelled else ()
            samples, text = read_audio(row.path, features.sample_rate), tokenizer.reference(row.text)
            heard = [features(at_speed(samples, speed)) for speed in speeds]
            utterances += [Utterance(frames, labels, text, task, row.place) for frames in heard]
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


class Batches:
    """The batches of every epoch: utterances of similar length, in an order by seed and epoch.

    A batch has at most `size` utterances, and of long ones as many as have about `frames` frames together, padding
    included, but at least one. All epochs have the same number of batches, len(self).
    """

    def __init__(self, lengths: Sequence[int], size: int, frames: int, seed: int) -> None:
        self._lengths, self._seed = np.asarray(lengths), seed
        self._sizes = [0]
        for length in sorted(lengths):
            if self._sizes[-1] and (self._sizes[-1] == size or (self._sizes[-1] + 1) * length > frames):
                self._sizes.append(0)
            self._sizes[-1] += 1

    def __len__(self) -> int:
        return len(self._sizes)

    def of_epoch(self, epoch: int) -> list[Array]:
        """Return the batches of an epoch, as arrays of indices.

        Lengths are blurred by up to 20 %, so that an utterance does not always meet the same ones.
        """
        rng = np.random.default_rng([self._seed, epoch])
        order = np.argsort(self._lengths * rng.uniform(1, 1.2, len(self._lengths)), kind="stable")
        batches = np.split(order, np.cumsum(self._sizes)[:-1])
        return [batches[i] for i in rng.permutation(len(batches))]

    def seen(self, step: int) -> int:
        """Return how many utterances the steps before `step` (0, 1, ...) hold."""
        epoch, place = divmod(step, len(self))
        return epoch * len(self._lengths) + sum(len(batch) for batch in self.of_epoch(epoch)[:place])
