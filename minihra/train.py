"""Training: the loop, its log and its checkpoints.

Everything random in step s is drawn from a generator seeded by (seed, s), and the batches of epoch e from one seeded by
(seed, e). So a run that goes on from a checkpoint gives the bits that it would have given without a break.
"""

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from tqdm import tqdm

from minihra.checkpoint import (
    FORMAT,
    load_optimiser,
    read_kind,
    save_optimiser,
    steps_in,
    write_checkpoint,
    write_json,
)
from minihra.data.corpus import Batches, Utterance
from minihra.device import to_host
from minihra.evaluate import score
from minihra.optim import AdamW, constant, warmup_cosine
from minihra.speech.augment import SpecAugment
from minihra.trainees import Trainee, make_batch

SCHEDULES = ("cosine", "constant")
ADAPTATION = {"epochs": 20, "least_steps": 500, "peak": 3e-3, "decay": 0.0, "dropout": 0.0}
"""What an adaptation changes of TrainingConfig's defaults; 500 steps, so that few recordings are seen often enough."""

OPEN_ADAPTATION = {
    **ADAPTATION,
    "epochs": 16,
    "least_steps": 100,
    "batch": 8,
    "seconds": 12.5,
    "decay": 0.3,
    "together": 0.75,
    "speeds": (0.9, 1.0, 1.1),
    "augment": SpecAugment(frequency_width=8, time_share=0.05),
}
"""The same of an open model, which knows speech already, so that heads must not learn their recordings by heart."""


@dataclass(frozen=True)
class TrainingConfig:
    """How to train: for `epochs`, but at least for `least_steps`; or for `steps`, whatever the others say.

    Raises:
        ValueError: a setting is impossible.
    """

    epochs: int = 25
    steps: int | None = None
    least_steps: int = 1
    batch: int = 32  # most utterances of a batch
    seconds: float = 50.0  # about the most sound of a batch, padding included: long utterances come in smaller ones
    peak: float = 2e-3  # learning rate after the warm-up
    schedule: str = "cosine"  # down to 0, or "constant"
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    clip: float = 1.0  # largest global norm of the gradients
    decay: float = 0.01  # weight decay
    dropout: float = 0.1  # of the backbone's branches; none while it is frozen
    augment: SpecAugment | None = None
    speeds: tuple[float, ...] = (1.0,)  # at each of which every recording is heard
    together: float = 0.0  # share of the steps, at first, in which all new heads of an adapter learn as one
    seed: int = 1

    def __post_init__(self) -> None:
        for setting in ("epochs", "steps", "least_steps", "batch", "seed"):
            value, lowest = getattr(self, setting), 0 if setting == "seed" else 1
            if value is not None and value < lowest:
                raise ValueError(f"{setting} must be at least {lowest}, got {value}")
        for setting in ("peak", "clip", "seconds"):
            if not getattr(self, setting) > 0:
                raise ValueError(f"{setting} must be positive, got {getattr(self, setting)}")
        if not self.decay >= 0:
            raise ValueError(f"decay must be at least 0, got {self.decay}")
        for setting in ("warmup", "dropout", "together"):
            if not 0 <= getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be from 0 to below 1, got {getattr(self, setting)}")
        if not self.speeds or not all(0.5 <= speed <= 2 for speed in self.speeds):
            raise ValueError(f"speeds must be from 0.5 to 2, got {self.speeds}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")

    def steps_together(self, steps: int) -> int:
        """Return in how many of the steps, at first, all new heads learn as one."""
        return round(self.together * steps)

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step (0 ... steps-1).

        The steps in which new heads learn as one, and those after them, have a schedule each; its peak is a third in
        the second, where there is less to learn and fewer recordings to learn it from.
        """
        schedule = warmup_cosine if self.schedule == "cosine" else constant
        first = self.steps_together(steps)
        if step < first:
            return schedule(step, first, peak=self.peak, warmup=round(self.warmup * first))
        peak, rest = self.peak / 3 if first else self.peak, steps - first
        return schedule(step - first, rest, peak=peak, warmup=round(self.warmup * rest))


class Interrupted(Exception):  # noqa: N818  it is no error
    """The run was interrupted after a whole step, and a checkpoint was written."""


class Stop:
    """A flag that Ctrl-C sets, so that a step is never cut in two; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.wanted = False

    def __enter__(self) -> "Stop":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True


def train(
    trainee: Trainee,
    utterances: Sequence[Utterance],
    config: TrainingConfig,
    run: Path,
    *,
    valid: Sequence[Utterance] = (),
    resume: bool = False,
    title: str = "training",
) -> dict[str, Any]:
    """Train until the last step, with a checkpoint after each epoch, and return what is to be said of the run.

    `valid` utterances draw curves in the log, and choose nothing.

    Raises:
        ValueError: the folder holds a run and `resume` is False, or a run of other data or settings.
        Interrupted: by Ctrl-C, after a checkpoint.
        OSError: a checkpoint cannot be written; the last one stays.
    """
    frames = round(config.seconds / trainee.recogniser.features.hop)
    batches = Batches([len(u.features) for u in utterances], config.batch, frames, config.seed)
    steps = config.steps or max(config.epochs * len(batches), config.least_steps)
    settings = {**asdict(config), **trainee.settings, "utterances": fingerprint(utterances)}
    optimiser = AdamW(decay=config.decay)
    start = begin(run, trainee, optimiser, settings, resume)
    too_short, began = set(), time.perf_counter()

    def save(step: int) -> None:
        def fill(folder: Path) -> None:
            trainee.save(folder)
            save_optimiser(optimiser, folder)
            write_json(folder / "state.json", {"format": FORMAT, "kind": "state", "step": step, "settings": settings})

        write_checkpoint(run, step, fill)

    log = Log(run / "log.jsonl", start)
    with Stop() as stop, progress_bar(title, batches, start, steps) as bar:
        for step in range(start, steps):
            epoch, place = divmod(step, len(batches))
            if place == 0 or step == start:
                order = batches.of_epoch(epoch)
            chosen = [utterances[i] for i in order[place]]
            rng = np.random.default_rng([config.seed, step, 1])
            together = step < config.steps_together(steps)
            if step == config.steps_together(steps):  # the sums' moments would hold each head's own steps down
                optimiser.moments.clear()
            batch = make_batch(chosen, config.augment, rng)
            try:
                loss, gradients = trainee.gradients(batch, rng)
            except MemoryError as error:
                seconds = batch.features.shape[1] * trainee.recogniser.features.hop
                what = f"in step {step + 1}, with a batch of {len(chosen)} recordings of up to {seconds:.1f} s"
                raise MemoryError(f"{what}: {error}" if str(error) else what) from error
            rate = config.learning_rate(step, steps)
            norm = trainee.update(gradients, optimiser, rate, config.clip, together=together)
            loss, norm = to_host((loss, norm))  # not before: a GPU has the whole step to do until then
            if not np.isfinite(loss.mean):
                raise ValueError(
                    f"step {step + 1}: the loss is {loss.mean}; the learning rate {config.peak} is too high"
                )
            left_out = [u.place for u, feasible in zip(chosen, loss.feasible, strict=True) if not feasible]
            too_short.update(left_out)
            log.write(
                step=step + 1,
                loss=float(loss.mean),
                learning_rate=rate,
                gradient_norm=float(norm),
                infeasible=len(left_out),
            )
            bar.set_postfix(loss=f"{loss.mean:.3f}", refresh=False)
            bar.update(len(chosen))
            last, epoch_ends = step + 1 == steps, place + 1 == len(batches)
            if valid and (epoch_ends or last):
                errors = score([u.text for u in valid], trainee.hypotheses(valid), trainee.recogniser.tokenizer)
                if errors.units.units:
                    log.write(step=step + 1, valid_wer=errors.units.rate, valid_cer=errors.characters.rate)
            if epoch_ends or last or stop.wanted:
                save(step + 1)
            if stop.wanted and not last:
                raise Interrupted(
                    f"interrupted after step {step + 1} of {steps}; the same command with --resume goes on"
                )
    if start == steps and not steps_in(run):
        save(steps)
    return {"steps": steps, "infeasible": sorted(too_short), "seconds": time.perf_counter() - began}


def begin(run: Path, trainee: Trainee, optimiser: AdamW, settings: dict[str, Any], resume: bool) -> int:
    """Return the step at which to go on, 0 for a new run, with trainee and optimiser as they were then."""
    if run.is_file():
        raise ValueError(f"{run}: a file; --out names the folder of a run")
    done = steps_in(run)
    if not done:
        return 0
    if not resume:
        raise ValueError(f"{run}: there is a run already; --resume goes on with it, or choose another --out")
    state = read_kind(done[-1] / "state.json", "state")
    theirs = json.loads(json.dumps(settings))
    other = [key for key in theirs if state["settings"].get(key) != theirs[key]]
    if other:
        changed = "; ".join(f"{key} was {state['settings'].get(key)}, is {theirs[key]}" for key in other)
        raise ValueError(f"{run}: the run to resume had other settings ({changed})")
    trainee.load(done[-1])
    load_optimiser(optimiser, done[-1], trainee.recogniser.model.xp)
    return int(state["step"])


def fingerprint(utterances: Sequence[Utterance]) -> str:
    """Return a hash of what is trained on, so that no run goes on with other data."""
    digest = sha256()
    for utterance in utterances:
        digest.update(utterance.features.tobytes() + repr((utterance.labels, utterance.task)).encode())
    return digest.hexdigest()


def progress_bar(title: str, batches: Batches, start: int, steps: int) -> tqdm:
    """Return a bar over utterances; silent when standard error is no terminal."""
    return tqdm(desc=title, total=batches.seen(steps), initial=batches.seen(start), unit="utt", disable=None)


class Log:
    """A JSONL file with a line for each step and evaluation. A resumed run forgets the lines after its checkpoint."""

    def __init__(self, path: Path, start: int) -> None:
        self._path, self._began = path, time.time()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() and start else []
        path.write_text("".join(line for line in lines if step_of(line) <= start), encoding="utf-8")

    def write(self, **facts: float) -> None:
        """Add a line."""
        facts["seconds"] = round(time.time() - self._began, 3)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def step_of(line: str) -> float:
    """Return the step of a line of the log; one that was cut short counts as after all others."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
