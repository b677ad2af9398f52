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

from minihra.checkpoint import load_optimiser, read_json, save_optimiser, steps_in, write_checkpoint, write_json
from minihra.data.corpus import Batches, Utterance
from minihra.evaluate import score
from minihra.optim import AdamW, clip_by_global_norm, constant, warmup_cosine
from minihra.speech.augment import SpecAugment
from minihra.trainees import Trainee, make_batch

SCHEDULES = ("cosine", "constant")
ADAPTATION = {"epochs": 20, "least_steps": 500, "peak": 3e-3, "decay": 0.0, "dropout": 0.0}
"""What an adaptation changes of TrainingConfig's defaults; 500 steps, so that few recordings are seen often enough."""


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
    frames: int = 5000  # about the most frames of a batch, padding included: long utterances come in smaller ones
    peak: float = 2e-3  # learning rate after the warm-up
    schedule: str = "cosine"  # down to 0, or "constant"
    warmup: float = 0.1  # share of the steps in which the learning rate rises
    clip: float = 1.0  # largest global norm of the gradients
    decay: float = 0.01  # weight decay
    dropout: float = 0.1  # of the backbone's branches; none while it is frozen
    augment: SpecAugment | None = None
    seed: int = 1

    def __post_init__(self) -> None:
        for setting in ("epochs", "steps", "least_steps", "batch", "frames", "seed"):
            value, lowest = getattr(self, setting), 0 if setting == "seed" else 1
            if value is not None and value < lowest:
                raise ValueError(f"{setting} must be at least {lowest}, got {value}")
        for setting, right in (("peak", self.peak > 0), ("clip", self.clip > 0), ("decay", self.decay >= 0)):
            if not right:
                raise ValueError(f"{setting} must be positive, got {getattr(self, setting)}")
        for setting in ("warmup", "dropout"):
            if not 0 <= getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be from 0 to below 1, got {getattr(self, setting)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; known: {', '.join(SCHEDULES)}")

    def learning_rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step (0 ... steps-1)."""
        schedule = warmup_cosine if self.schedule == "cosine" else constant
        return schedule(step, steps, peak=self.peak, warmup=round(self.warmup * steps))


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
    batches = Batches([len(u.features) for u in utterances], config.batch, config.frames, config.seed)
    steps = config.steps or max(config.epochs * len(batches), config.least_steps)
    settings = {**asdict(config), "utterances": fingerprint(utterances)}
    optimiser = AdamW(decay=config.decay)
    start = begin(run, trainee, optimiser, settings, resume)
    too_short, began = set(), time.perf_counter()

    def save(step: int) -> None:
        def fill(folder: Path) -> None:
            trainee.save(folder)
            save_optimiser(optimiser, folder)
            write_json(folder / "state.json", {"format": 1, "kind": "state", "step": step, "settings": settings})

        write_checkpoint(run, step, fill)

    log = Log(run / "log.jsonl", start)
    with Stop() as stop, progress_bar(title, batches, start, steps) as bar:
        for step in range(start, steps):
            epoch, place = divmod(step, len(batches))
            if place == 0 or step == start:
                order = batches.of_epoch(epoch)
            chosen = [utterances[i] for i in order[place]]
            rng = np.random.default_rng([config.seed, step, 1])
            loss, gradients = trainee.gradients(make_batch(chosen, config.augment, rng), rng)
            if not np.isfinite(loss.mean):
                raise ValueError(
                    f"step {step + 1}: the loss is {loss.mean}; the learning rate {config.peak} is too high"
                )
            gradients, norm = clip_by_global_norm(gradients, config.clip)
            rate = config.learning_rate(step, steps)
            optimiser.update(trainee.parameters, gradients, rate)
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
                errors = score([u.text for u in valid], trainee.hypotheses(valid))
                if errors.words.units:
                    log.write(step=step + 1, valid_wer=errors.words.rate, valid_cer=errors.characters.rate)
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
    state = read_json(done[-1] / "state.json", "state")
    theirs = json.loads(json.dumps(settings))
    other = [key for key in theirs if state["settings"].get(key) != theirs[key]]
    if other:
        changed = "; ".join(f"{key} was {state['settings'].get(key)}, is {theirs[key]}" for key in other)
        raise ValueError(f"{run}: the run to resume had other settings ({changed})")
    trainee.load(done[-1])
    load_optimiser(optimiser, done[-1])
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
