"""One adaptation with its controls: what a result of HRA has to stand beside.

frozen    the backbone alone
own       each speaker with their own head
shared    ONE task for all the new speakers, trained in the same way: does it pay to know who speaks?
other     each speaker with ANOTHER speaker's head (the next by name): does the head know its speaker?
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minihra.adapters.hra import HRA
from minihra.data.corpus import Utterance
from minihra.evaluate import score_by_task, transcribe
from minihra.recogniser import Adapter, Recogniser, backbone_hash
from minihra.speech.error_rate import ErrorCount
from minihra.train import TrainingConfig, train
from minihra.trainees import Adaptation

SHARED = "shared"
CONDITIONS = ("frozen", "own", "shared", "other")


class Controls(NamedTuple):
    """The errors of each speaker, in words or phonemes, under each condition, and the seconds of the adaptation."""

    errors: dict[str, dict[str, ErrorCount]]  # by condition, then speaker
    seconds: float

    def mean(self, condition: str) -> float:
        """Return the mean over the speakers of their error rates."""
        rates = [errors.rate for errors in self.errors[condition].values()]
        return sum(rates) / len(rates)


def new_adapter(recogniser: Recogniser, tasks: Sequence[str], state_size: int, seed: int) -> Adapter:
    """Return an untrained GRU HRA with a linear head for each task."""
    hra = HRA(recogniser.model.config.width, state_size, seed=seed)
    for task in tasks:
        hra.add_task(task)
    return Adapter(hra, "speaker", backbone_hash(recogniser.model))


def adapt_with_controls(
    recogniser: Recogniser,
    adaptation: Sequence[Utterance],
    test: Sequence[Utterance],
    config: TrainingConfig,
    run: Path,
    *,
    state_size: int = 32,
    resume: bool = False,
) -> Controls:
    """Adapt to the speakers of `adaptation`, whose tasks are their names, and count the errors on `test`.

    The runs stand in the folders `own` and `shared` of `run`.

    Raises:
        ValueError: there are fewer than two speakers, or others in `test`.
    """
    speakers = sorted({utterance.task for utterance in adaptation})
    if len(speakers) < 2 or speakers != sorted({utterance.task for utterance in test}):
        raise ValueError(f"controls need the same two or more speakers in both parts, got {', '.join(speakers)}")
    features, names = [utterance.features for utterance in test], [utterance.task for utterance in test]
    following = dict(zip(speakers, [*speakers[1:], speakers[0]], strict=True))

    adapter = new_adapter(recogniser, speakers, state_size, config.seed)
    graph = recogniser.model.xp is not np
    own = Adaptation(recogniser, adapter, new_tasks=tuple(speakers), graph=graph)
    done = train(own, adaptation, config, run / "own", resume=resume, title="adapting, own heads")
    shared = Adaptation(recogniser, new_adapter(recogniser, [SHARED], state_size, config.seed), graph=graph)
    together = [utterance._replace(task=SHARED) for utterance in adaptation]
    train(shared, together, config, run / "shared", resume=resume, title="adapting, one task")

    own_hra, shared_hra = own.adapter.hra, shared.adapter.hra
    hypotheses = {
        "frozen": transcribe(recogniser, features),
        "own": transcribe(recogniser, features, own_hra, names),
        "shared": transcribe(recogniser, features, shared_hra, [SHARED] * len(names)),
        "other": transcribe(recogniser, features, own_hra, [following[name] for name in names]),
    }

    def errors_by_speaker(condition: str) -> dict[str, ErrorCount]:
        scores = score_by_task(test, hypotheses[condition], recogniser.tokenizer)
        return {speaker: part.units for speaker, part in scores.items()}

    return Controls({condition: errors_by_speaker(condition) for condition in CONDITIONS}, done["seconds"])


def as_table(controls: Controls) -> str:
    """Return the error rates as a table for people."""
    lines = [f"{'speaker':<14}" + "".join(f"{condition:>9}" for condition in CONDITIONS)]
    for speaker in controls.errors["frozen"]:
        rates = (controls.errors[condition][speaker].rate for condition in CONDITIONS)
        lines.append(f"{speaker:<14}" + "".join(f"{rate:>9.3f}" for rate in rates))
    lines.append(f"{'mean':<14}" + "".join(f"{controls.mean(condition):>9.3f}" for condition in CONDITIONS))
    if controls.mean("own") >= controls.mean("shared"):
        lines.append("Here the speakers' own heads do not beat one task for all of them.")
    return "\n".join(lines)
