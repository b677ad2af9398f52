"""What a training run trains: a backbone from nothing, or an adapter on a frozen one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from minihra.arrays import Array
from minihra.data.corpus import Utterance
from minihra.evaluate import transcribe
from minihra.model import Loss, backward, ctc_loss, forward, pack_labels
from minihra.recogniser import Adapter, Recogniser, load_backbone, load_hra, save_backbone, save_hra
from minihra.speech.augment import SpecAugment
from minihra.speech.features import pad
from minihra.tree import Tree


class Batch(NamedTuple):
    """The utterances of one step."""

    features: Array  # (B, T, F)
    lengths: Array  # (B,)
    labels: Sequence[Sequence[int]]
    tasks: Sequence[str]


class Trainee(Protocol):
    """What the loop trains."""

    @property
    def parameters(self) -> Tree:
        """The parameters that move."""
        ...

    def gradients(self, batch: Batch, rng: np.random.Generator) -> tuple[Loss, Tree]:
        """Return the loss and the gradients of one batch."""
        ...

    def hypotheses(self, utterances: Sequence[Utterance]) -> list[str]:
        """Return the texts that it writes down now."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model into a folder."""
        ...

    def load(self, folder: Path) -> None:
        """Go back to the model of a folder."""
        ...


@dataclass
class Pretraining:
    """A backbone that trains from nothing."""

    recogniser: Recogniser
    dropout: float

    @property
    def parameters(self) -> Tree:
        """All of the backbone's."""
        return self.recogniser.model.p

    def gradients(self, batch: Batch, rng: np.random.Generator) -> tuple[Loss, Tree]:
        """Return loss and gradients; the running statistics of the batch norms move."""
        model = replace(self.recogniser.model, frozen=False)
        training = model.draw_dropout(self.dropout, *batch.features.shape[:2], rng)
        logits, cache = forward(model, batch.features, batch.lengths, None, training)
        loss, dlogits = ctc_loss(logits, cache.context.valid, pack_labels(batch.labels, model.config.labels))
        statistics = tuple(layer.statistics for layer in cache.layers)
        self.recogniser = self.recogniser._replace(model=replace(self.recogniser.model, statistics=statistics))
        return loss, backward(dlogits, cache).backbone

    def hypotheses(self, utterances: Sequence[Utterance]) -> list[str]:
        """Return the texts of the backbone alone."""
        return transcribe(self.recogniser, [utterance.features for utterance in utterances])

    def save(self, folder: Path) -> None:
        """Write the backbone."""
        save_backbone(self.recogniser, folder)

    def load(self, folder: Path) -> None:
        """Go back to the backbone of a folder."""
        self.recogniser = load_backbone(folder)


@dataclass
class Adaptation:
    """An HRA that trains on a frozen backbone; with `train_controller=False` its heads alone."""

    recogniser: Recogniser
    adapter: Adapter
    train_controller: bool = True

    @property
    def parameters(self) -> Tree:
        """The controller's and the heads'."""
        return self.adapter.hra.p

    def gradients(self, batch: Batch, rng: np.random.Generator) -> tuple[Loss, Tree]:
        """Return loss and gradients; nothing is drawn."""
        model, hra = self.recogniser.model, self.adapter.hra
        edit = hra.edit(batch.tasks, train_controller=self.train_controller)
        logits, cache = forward(model, batch.features, batch.lengths, edit)
        loss, dlogits = ctc_loss(logits, cache.context.valid, pack_labels(batch.labels, model.config.labels))
        return loss, backward(dlogits, cache).adapter

    def hypotheses(self, utterances: Sequence[Utterance]) -> list[str]:
        """Return the texts with each utterance's own head."""
        features, tasks = [u.features for u in utterances], [u.task for u in utterances]
        return transcribe(self.recogniser, features, self.adapter.hra, tasks)

    def save(self, folder: Path) -> None:
        """Write the adapter."""
        save_hra(self.adapter, self.recogniser.model, folder)

    def load(self, folder: Path) -> None:
        """Go back to the adapter of a folder."""
        self.adapter = load_hra(folder, self.recogniser.model)


def make_batch(utterances: Sequence[Utterance], augment: SpecAugment | None, rng: np.random.Generator) -> Batch:
    """Return the padded batch of some utterances."""
    features, lengths = pad([u.features for u in utterances])
    if augment is not None:
        features = augment(features, lengths, rng)
    return Batch(features, lengths, [u.labels for u in utterances], [u.task for u in utterances])
