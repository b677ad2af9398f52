"""What a training run trains: a backbone from nothing, or an adapter on a frozen one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from minihra.adapters.controller import group_tasks
from minihra.adapters.files import controller_hash
from minihra.arrays import Array, array_module
from minihra.blocks.parameters import Statistics
from minihra.data.corpus import Utterance
from minihra.evaluate import transcribe
from minihra.graphs import AdaptationGraphs, InferenceGraphs, PretrainingGraphs
from minihra.model import Loss, backward, ctc_loss, forward, pack_labels
from minihra.optim import AdamW, clip_by_global_norm
from minihra.parts import is_little, parts_of
from minihra.recogniser import Adapter, Recogniser, edit_of, load_hra, load_own, save_backbone, save_hra
from minihra.speech.augment import SpecAugment
from minihra.speech.features import pad
from minihra.threads import share, together
from minihra.tree import Total, Tree, add, leaves, map_leaves, whole


class Batch(NamedTuple):
    """The utterances of one step."""

    features: Array  # (B, T, F)  on the host; a part's where the model computes
    lengths: Array  # (B,)
    labels: Sequence[Sequence[int]]
    tasks: Sequence[str]

    def part(self, rows: Array, xp: ModuleType) -> "Batch":
        """Return some rows of it, padded to the longest of them, with the features in `xp`."""
        lengths = self.lengths[rows]
        features, _ = pad([self.features[row, : max(1, lengths.max())] for row in rows], xp)
        return Batch(features, lengths, [self.labels[row] for row in rows], [self.tasks[row] for row in rows])


def labelled_loss(
    recogniser: Recogniser, logits: Array, valid: Array, batch: Batch, total: Total = whole
) -> tuple[Loss, Array]:
    """Return the CTC loss of a batch, or of a part of it, and its gradient dlogits (B, T, V)."""
    blank = recogniser.tokenizer.blank
    return ctc_loss(logits, valid, pack_labels(batch.labels, logits.shape[2], blank), blank=blank, total=total)


class Trainee(Protocol):
    """What the loop trains."""

    recogniser: Recogniser

    @property
    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have in common with its beginning, beside the settings of the training."""
        ...

    @property
    def parameters(self) -> Tree:
        """The parameters that move."""
        ...

    def gradients(self, batch: Batch, rng: np.random.Generator) -> tuple[Loss, Tree]:
        """Return the loss and the gradients of one batch."""
        ...

    def update(self, gradients: Tree, optimiser: AdamW, rate: float, clip: float, *, together: bool) -> Array:
        """Clip the gradients to a global norm, move the parameters, and return the norm before.

        With `together` what is new learns as one.
        """
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
    graph: bool = False  # on a GPU, steps as CUDA graphs: see graphs.py

    def __post_init__(self) -> None:
        self._bind()

    def _bind(self) -> None:
        """Make what belongs to the arrays of this model."""
        model, blank = self.recogniser.model, self.recogniser.tokenizer.blank
        self._graphs = PretrainingGraphs(replace(model, frozen=False), blank=blank)
        self._inference = InferenceGraphs(model)

    @property
    def settings(self) -> dict[str, Any]:
        """The sizes of the model."""
        return {"model": asdict(self.recogniser.model.config)}

    @property
    def parameters(self) -> Tree:
        """All of the backbone's."""
        return self.recogniser.model.p

    def gradients(self, batch: Batch, rng: np.random.Generator) -> tuple[Loss, Tree]:
        """Return loss and gradients; the running statistics of the batch norms move.

        Parts of the batch are computed at the same time, and meet where it is normalised.
        """
        model = replace(self.recogniser.model, frozen=False)
        pack_labels(batch.labels, model.config.labels, self.recogniser.tokenizer.blank)  # tells the row of the batch
        training = model.draw_dropout(self.dropout, *batch.features.shape[:2], rng)
        parts, little = parts_of(batch.lengths, least=1, xp=model.xp), is_little(batch.lengths, model.config.width)

        def gradients_of(rows: Array, total: Total) -> tuple[Loss, Tree, Statistics]:
            part = batch.part(rows, model.xp)
            frames = model.config.front_end.frames(part.features.shape[1])
            how = training.part(rows, max(1, frames), total, model.xp)
            if self.graph and (result := self._graphs.gradients(*part[:3], how)) is not None:
                return result
            logits, cache = forward(model, part.features, part.lengths, None, how)
            loss, dlogits = labelled_loss(self.recogniser, logits, cache.context.valid, part, total)
            statistics = tuple(layer.statistics for layer in cache.layers)
            return loss, backward(dlogits, cache).backbone, statistics

        results = together([partial(gradients_of, rows) for rows in parts], little=little)
        self._take(results[0][2])  # they are those of the whole batch in each part
        return joined(parts, [(loss, gradients) for loss, gradients, _ in results])

    def _take(self, statistics: Statistics) -> None:
        """Have these running statistics; where graphs read them, in the arrays of those before."""
        model = self.recogniser.model
        if not self.graph:
            self.recogniser = self.recogniser._replace(model=replace(model, statistics=statistics))
            return
        for (_, place), (_, new) in zip(leaves(model.statistics), leaves(statistics), strict=True):
            place[...] = new

    def update(self, gradients: Tree, optimiser: AdamW, rate: float, clip: float, *, together: bool = False) -> Array:
        """Clip the gradients, move the parameters, and return the norm before; there is but one of everything."""
        if self.graph:
            return self._graphs.update(optimiser, gradients, rate, clip)
        return optimiser.clipped_update(self.parameters, gradients, rate, clip)

    def hypotheses(self, utterances: Sequence[Utterance]) -> list[str]:
        """Return the texts of the backbone alone."""
        graphs = self._inference if self.graph else None
        return transcribe(self.recogniser, [utterance.features for utterance in utterances], graphs=graphs)

    def save(self, folder: Path) -> None:
        """Write the backbone."""
        save_backbone(self.recogniser, folder)

    def load(self, folder: Path) -> None:
        """Go back to the backbone of a folder."""
        self.recogniser = load_own(folder).moved(self.recogniser.model.xp)
        self._bind()


@dataclass
class Adaptation:
    """An HRA that trains on a frozen backbone; with `train_controller=False` its heads alone.

    While they are together, at first, the heads of `new_tasks`, which are alike, learn as one: each gets the sum of
    their gradients, as if they were one head (but for the clipping, which sees them apart). So what is common to the
    tasks is learnt from all of them, and each head has only its own to learn from the few recordings of its task. Our
    choice: the paper does not say.
    """

    recogniser: Recogniser
    adapter: Adapter
    train_controller: bool = True
    new_tasks: tuple[str, ...] = ()
    recompute: bool = False  # see model.forward
    graph: bool = False  # on a GPU, steps as CUDA graphs: see graphs.py

    def __post_init__(self) -> None:
        self._bind()

    def _bind(self) -> None:
        """Make what belongs to the arrays of this adapter, which move to where the model is."""
        model, hra, blank = self.recogniser.model.settled(), self.adapter.hra, self.recogniser.tokenizer.blank
        self.recogniser = self.recogniser._replace(model=model)
        hra.move(model.xp)
        how = {"train_controller": self.train_controller, "recompute": self.recompute}
        self._graphs = AdaptationGraphs(model, hra, blank=blank, **how)
        self._inference = InferenceGraphs(model, hra)

    @property
    def settings(self) -> dict[str, Any]:
        """The adapter that it begins with, and what of it learns."""
        hra = self.adapter.hra
        return {
            "controller_sha256": controller_hash(hra.cell, hra.p.controller),
            "head": hra.head,
            "bottleneck": hra.bottleneck,
            "tasks": list(hra.task_names),
            "train_controller": self.train_controller,
            "new_tasks": list(self.new_tasks),
        }

    @property
    def parameters(self) -> Tree:
        """The controller's and the heads'."""
        return self.adapter.hra.p

    def gradients(self, batch: Batch, rng: np.random.Generator) -> tuple[Loss, Tree]:
        """Return loss and gradients, of the parts of the batch one by one; nothing is drawn."""
        xp = self.recogniser.model.xp
        parts = parts_of(batch.lengths, batch.tasks, xp=xp)
        try:
            its_parts = [partial(self.gradients_of, batch.part(rows, xp)) for rows in parts]
            results = share(its_parts, little=is_little(batch.lengths, self.recogniser.model.config.width))
        except ValueError:  # a mistake is told with its row of the batch, no part's
            group_tasks(batch.tasks, self.adapter.hra.p.heads)
            pack_labels(batch.labels, self.recogniser.model.config.labels, self.recogniser.tokenizer.blank)
            raise
        return joined(parts, weighed(results))

    def gradients_of(self, batch: Batch) -> tuple[Loss, Tree]:
        """Return loss and gradients of a part of a batch."""
        model, hra = self.recogniser.model, self.adapter.hra
        if self.graph and (result := self._graphs.gradients(*batch)) is not None:
            return result
        edit = edit_of(model, hra, *batch[:2], batch.tasks, train_controller=self.train_controller)
        logits, cache = forward(model, batch.features, batch.lengths, edit, recompute=self.recompute)
        loss, dlogits = labelled_loss(self.recogniser, logits, cache.context.valid, batch)
        return loss, backward(dlogits, cache).adapter

    def update(self, gradients: Tree, optimiser: AdamW, rate: float, clip: float, *, together: bool = False) -> Array:
        """Clip the gradients, move the parameters, and return the norm before."""
        if not together:
            return optimiser.clipped_update(self.parameters, gradients, rate, clip)
        clipped, norm = clip_by_global_norm(gradients, clip)
        optimiser.update(self.parameters, self.as_one(clipped), rate)
        return norm

    def as_one(self, gradients: Tree) -> Tree:
        """Return gradients with the sum over the new tasks' heads for each of them, in the batch or not."""
        total = None
        for task in self.new_tasks:
            total = add(total, gradients.heads.get(task))
        return gradients._replace(heads=gradients.heads | (dict.fromkeys(self.new_tasks, total) if total else {}))

    def hypotheses(self, utterances: Sequence[Utterance]) -> list[str]:
        """Return the texts with each utterance's own head."""
        features, tasks = [u.features for u in utterances], [u.task for u in utterances]
        graphs = self._inference if self.graph else None
        return transcribe(self.recogniser, features, self.adapter.hra, tasks, graphs=graphs)

    def save(self, folder: Path) -> None:
        """Write the adapter."""
        save_hra(self.adapter, folder)

    def load(self, folder: Path) -> None:
        """Go back to the adapter of a folder."""
        self.adapter = load_hra(folder, self.adapter.backbone_sha256)
        self._bind()


def weighed(results: Sequence[tuple[Loss, Tree]]) -> list[tuple[Loss, Tree]]:
    """Return what each part adds to the mean over the feasible utterances of all, of the mean over its own."""
    if len(results) == 1:
        return list(results)
    total, new = max(1, sum(loss.feasible.sum() for loss, _ in results)), []
    for loss, gradients in results:
        weight = (loss.feasible.sum() / total).astype(loss.mean.dtype)
        new.append((loss._replace(mean=weight * loss.mean), map_leaves(lambda g, w=weight: g * w, gradients)))
    return new


def joined(parts: Sequence[Array], results: Sequence[tuple[Loss, Tree]]) -> tuple[Loss, Tree]:
    """Return the loss of a whole batch and its gradients: the sums over its parts, whose rows are `parts`."""
    xp = array_module(results[0][0].mean)
    order = xp.asarray(np.argsort(np.concatenate(parts)))
    utterances, feasible = (
        xp.concatenate([getattr(loss, field) for loss, _ in results])[order] for field in ("utterances", "feasible")
    )
    mean, gradients = xp.zeros((), utterances.dtype), None
    for loss, of_part in results:
        mean = mean + loss.mean
        gradients = add(gradients, of_part)
    return Loss(mean, utterances, feasible), gradients


def make_batch(utterances: Sequence[Utterance], augment: SpecAugment | None, rng: np.random.Generator) -> Batch:
    """Return the padded batch of some utterances."""
    features, lengths = pad([u.features for u in utterances])
    if augment is not None:
        features = augment(features, lengths, rng)
    return Batch(features, lengths, [u.labels for u in utterances], [u.task for u in utterances])
