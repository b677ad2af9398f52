"""What the commands do: each function is one, given its parsed arguments. cli.py parses and reports mistakes."""

import argparse
import json
import sys

from minihra.adapters.accounting import budgets, count_hra
from minihra.adapters.hra import HRA
from minihra.blocks.initial import initial_conformer
from minihra.config import build, named_size, read_config
from minihra.data.corpus import commonest_rate, load_utterances
from minihra.data.faults import Faults
from minihra.data.folder import AUDIO, rows_of_folder, write_lines
from minihra.data.manifest import Row, limit_per_task, parse_where, read_manifest, select
from minihra.evaluate import Score, score, score_by_task, transcribe
from minihra.recogniser import Adapter, Recogniser, load_backbone, load_hra
from minihra.speech.alphabet import Alphabet
from minihra.speech.audio import read_audio
from minihra.speech.error_rate import ErrorCount
from minihra.train import ADAPTATION, train
from minihra.trainees import Adaptation, Pretraining
from minihra.tree import count


def chosen_rows(arguments: argparse.Namespace, faults: Faults, extra: list[str] | None = None) -> list[Row]:
    """Return the rows of the manifest that --where, --split and `extra` conditions leave."""
    conditions = [parse_where(condition) for condition in [*arguments.where, *(extra or [])]]
    return select(read_manifest(arguments.manifest, faults), conditions)


def tell_skipped(skipped: int) -> None:
    """Say how many rows were left out."""
    if skipped:
        print(f"{skipped} bad row{'s' * (skipped > 1)} skipped", file=sys.stderr)


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train a backbone from nothing."""
    settings = read_config(arguments.config) if arguments.config else named_size(arguments.size)
    given = {key: getattr(arguments, key) for key in ("epochs", "steps", "seed") if getattr(arguments, key) is not None}
    augment = None if settings.augment is None else build("augment", **settings.augment)
    training = build("training", **{**settings.training, **given}, augment=augment)
    faults = Faults()
    rows = chosen_rows(arguments, faults)
    sample_rate = commonest_rate(rows)
    alphabet = Alphabet.of(row.text for row in rows)
    log_mel = build("features", sample_rate=sample_rate, **{"silence": 0.05, **settings.features})
    config = build("model", labels=len(alphabet), mels=log_mel.mels, **settings.model)
    utterances = load_utterances(rows, log_mel, alphabet, faults)
    valid = []
    if arguments.valid:
        valid_arguments = argparse.Namespace(manifest=arguments.manifest, where=arguments.valid)
        valid = load_utterances(chosen_rows(valid_arguments, Faults()), log_mel, None, faults, title="reading --valid")
    skipped = faults.settle(skip=arguments.skip_bad)
    tell_skipped(skipped)
    if not utterances:
        raise ValueError(f"{arguments.manifest}: no row is left to train on")
    model = initial_conformer(config, training.seed)
    model.frozen = True  # as the recogniser is used; a training step thaws it
    trainee = Pretraining(Recogniser(model, log_mel, alphabet), training.dropout)
    done = train(
        trainee, utterances, training, arguments.out, valid=valid, resume=arguments.resume, title="pre-training"
    )
    print(
        f"{arguments.out}: a backbone of {count(model.p):,} parameters, {sample_rate} Hz, trained on {len(utterances)} "
        f"recordings in {done['steps']} steps and {done['seconds']:.0f} s"
    )
    tell_infeasible(done["infeasible"], len(utterances))


def tell_infeasible(places: list[str], of: int) -> None:
    """Say which utterances were too short for their texts."""
    if places:
        some = f"{', '.join(places[:3])}{' ...' * (len(places) > 3)}"
        print(
            f"{len(places)} of {of} utterances are too short for their texts, and were left out of the loss: {some}",
            file=sys.stderr,
        )


def run_adapt(arguments: argparse.Namespace) -> None:
    """Train an HRA with a head for each task, on a frozen backbone."""
    recogniser = load_backbone(arguments.backbone)
    width = recogniser.model.config.width
    given = {key: getattr(arguments, key) for key in ("epochs", "steps", "seed") if getattr(arguments, key) is not None}
    if "epochs" in given:
        given["least_steps"] = 1
    training = build("training", **{**ADAPTATION, **given})
    if arguments.freeze_controller and not arguments.adapter:
        raise ValueError("--freeze-controller adds heads to an adapter: name it with --adapter")
    if arguments.adapter:
        adapter = load_hra(arguments.adapter, recogniser.model)
        adapter = adapter._replace(task_by=arguments.task_by or adapter.task_by)
    elif arguments.task_by:
        hra = HRA(
            width,
            arguments.state_size,
            cell=arguments.controller,
            head=arguments.head,
            bottleneck=arguments.bottleneck,
            seed=training.seed,
        )
        adapter = Adapter(hra, arguments.task_by)
    else:
        raise ValueError("--task-by KEY says which field of the manifest names the task, such as speaker")
    faults = Faults()
    rows = chosen_rows(arguments, faults)
    if arguments.limit_per_task is not None:
        if arguments.limit_per_task < 1:
            raise ValueError(f"--limit-per-task must be at least 1, got {arguments.limit_per_task}")
        rows = limit_per_task(rows, adapter.task_by, arguments.limit_per_task, training.seed)
    utterances = load_utterances(rows, recogniser.log_mel, recogniser.alphabet, faults, task_by=adapter.task_by)
    tell_skipped(faults.settle(skip=arguments.skip_bad))
    if not utterances:
        raise ValueError(f"{arguments.manifest}: no row is left to train on")
    old = set(adapter.hra.task_names)
    tasks = sorted({utterance.task for utterance in utterances})
    if arguments.freeze_controller and old & set(tasks):
        raise ValueError(
            f"the adapter has heads for {', '.join(sorted(old & set(tasks)))} already; leave their rows out with "
            f"--where {adapter.task_by}!=..., so that they stay as they are"
        )
    for task in tasks:
        if task not in old:
            adapter.hra.add_task(task)
    trainee = Adaptation(recogniser, adapter, train_controller=not arguments.freeze_controller)
    done = train(trainee, utterances, training, arguments.out, resume=arguments.resume, title="adapting")
    size = adapter.hra.count_parameters(count(recogniser.model.p))
    print(
        f"{arguments.out}: an adapter of {size.total:,} parameters ({size.share:.1%} of the backbone), "
        f"{size.per_task:,} a task; {len(tasks)} tasks trained on {len(utterances)} recordings in "
        f"{done['steps']} steps and {done['seconds']:.0f} s"
    )
    tell_infeasible(done["infeasible"], len(utterances))


def run_eval(arguments: argparse.Namespace) -> None:
    """Write down every recording of a manifest, and count the errors."""
    recogniser = load_backbone(arguments.backbone)
    if arguments.hypotheses and not arguments.hypotheses.parent.is_dir():
        raise ValueError(f"--hypotheses {arguments.hypotheses}: there is no folder {arguments.hypotheses.parent}")
    adapter = load_hra(arguments.adapter, recogniser.model) if arguments.adapter else None
    task_by = arguments.task_by or (adapter.task_by if adapter else None)
    faults = Faults()
    rows = chosen_rows(arguments, faults)
    utterances = load_utterances(rows, recogniser.log_mel, None, faults, task_by=task_by)
    skipped = faults.settle(skip=arguments.skip_bad)
    if not utterances:
        raise ValueError(f"{arguments.manifest}: no row is left to evaluate")
    tasks = [utterance.task for utterance in utterances]
    if adapter:
        unknown = sorted(set(tasks) - set(adapter.hra.task_names))
        if unknown and arguments.unknown != "base":
            raise ValueError(
                f"the adapter has no head for {', '.join(unknown)}; known: {', '.join(adapter.hra.task_names)}; "
                "--unknown base takes the frozen backbone for them"
            )
        tasks = ["base" if task in unknown else task for task in tasks]
    hypotheses = transcribe(recogniser, [u.features for u in utterances], adapter and adapter.hra, tasks)
    whole, by_task = score([u.text for u in utterances], hypotheses), score_by_task(utterances, hypotheses)
    if arguments.hypotheses:
        pairs = zip(utterances, hypotheses, strict=True)
        lines = [{"place": u.place, "task": u.task, "text": u.text, "hypothesis": h} for u, h in pairs]
        write_lines(arguments.hypotheses, lines)
    if arguments.json:
        tasks_as_json = {task: as_json(part, 0) for task, part in by_task.items()} if task_by else {}
        print(json.dumps({**as_json(whole, skipped), "tasks": tasks_as_json}, ensure_ascii=False))
        return
    tell_skipped(skipped)
    print(f"{'task':<16} {'utterances':>10} {'words':>7} {'WER':>7} {'CER':>7}")
    for task, part in [*(by_task.items() if task_by else ()), ("all", whole)]:
        print(
            f"{task:<16} {part.utterances:>10} {part.words.units:>7} {rate(part.words):>7} {rate(part.characters):>7}"
        )


def rate(errors: ErrorCount) -> str:
    """Return an error rate as text; a dash where there is nothing to count."""
    return f"{errors.rate:.3f}" if errors.units else "-"


def as_json(part: Score, skipped: int) -> dict:
    """Return a score in the form of `eval --json`."""
    return {
        "wer": part.words.rate if part.words.units else None,
        "cer": part.characters.rate if part.characters.units else None,
        "utterances": part.utterances,
        "words": part.words.units,
        "skipped": skipped,
    }


def run_transcribe(arguments: argparse.Namespace) -> None:
    """Write down recordings."""
    recogniser = load_backbone(arguments.backbone)
    adapter = load_hra(arguments.adapter, recogniser.model) if arguments.adapter else None
    if adapter and not arguments.task:
        raise ValueError(f"--task says whose head to use; known: base, {', '.join(adapter.hra.task_names)}")
    if arguments.task and not adapter:
        raise ValueError("--task needs --adapter")
    faults, features, names = Faults(), [], []
    for path in arguments.audio:
        try:
            features.append(recogniser.log_mel(read_audio(path, recogniser.log_mel.sample_rate)))
            names.append(path)
        except (OSError, ValueError) as error:
            faults.add(str(error) if str(path) in str(error) else f"{path}: {error}")
    if faults.lines:
        raise ValueError("\n".join(faults.lines))
    texts = transcribe(recogniser, features, adapter and adapter.hra, [arguments.task or "base"] * len(features))
    for name, text in zip(names, texts, strict=True):
        print(f"{name}\t{text}" if len(names) > 1 else text)


def run_params(arguments: argparse.Namespace) -> None:
    """Count parameters without making any."""
    kind = {"cell": arguments.controller, "head": arguments.head, "bottleneck": arguments.bottleneck}
    shared, per_task, _ = count_hra(arguments.width, arguments.state_size, 1, **kind)
    print(f"HRA, {arguments.controller} of {arguments.state_size}, {arguments.head} heads, width {arguments.width}:")
    print(f"{shared:,} shared, {per_task:,} a task\n")
    print(f"{'tasks':>6} {'HRA':>16} {'residual adapters':>18} {'fine-tuning':>20}")
    for row in budgets(
        arguments.width, arguments.layers, arguments.backbone_size, arguments.state_size, arguments.tasks, **kind
    ):
        print(f"{row.tasks:>6} {row.hra:>16,} {row.residual_adapters:>18,} {row.fine_tuning:>20,}")


def run_manifest(arguments: argparse.Namespace) -> None:
    """Write the manifest of a folder of name.wav and name.txt."""
    faults = Faults()
    lines = rows_of_folder(arguments.folder, faults)
    skipped = faults.settle(skip=arguments.skip_bad)
    if not lines:
        raise ValueError(f"{arguments.folder}: no recording with a text in it (looked for {', '.join(AUDIO)})")
    out = arguments.folder / "manifest.jsonl"
    write_lines(out, lines)
    tell_skipped(skipped)
    print(f"{out}: {len(lines)} recordings")
