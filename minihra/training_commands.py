"""The commands that train, `minihra pretrain` and `minihra adapt`: each function is one, given its parsed arguments."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from minihra.adapters.hra import HRA
from minihra.adapters.parts import known
from minihra.ahead import compile_ahead
from minihra.blocks.initial import initial_conformer
from minihra.commands import chosen_rows, on_gpu_with_graphs, tell_skipped
from minihra.config import build, named_size, read_config
from minihra.data.corpus import Utterance, commonest_rate, load_utterances
from minihra.data.faults import Faults
from minihra.data.manifest import limit_per_task
from minihra.device import array_module_for
from minihra.loaders.backbone import load_backbone
from minihra.recogniser import OWN, Adapter, Recogniser, backbone_hash, load_hra
from minihra.speech.alphabet import Alphabet
from minihra.train import ADAPTATION, OPEN_ADAPTATION, train
from minihra.trainees import Adaptation, Pretraining
from minihra.tree import count


def run_pretrain(arguments: argparse.Namespace) -> None:
    """Train a backbone from nothing."""
    xp = array_module_for(arguments.device, tf32=arguments.tf32)
    graph = on_gpu_with_graphs(arguments, xp)
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
    if xp is np:
        compile_ahead("training")
    utterances = load_utterances(rows, log_mel, alphabet, faults, speeds=training.speeds)
    valid = []
    if arguments.valid:
        valid_arguments = argparse.Namespace(manifest=arguments.manifest, where=arguments.valid)
        rows = chosen_rows(valid_arguments, Faults())
        valid = load_utterances(rows, log_mel, alphabet, faults, labelled=False, title="reading --valid")
    skipped = faults.settle(skip=arguments.skip_bad)
    tell_skipped(skipped)
    if not utterances:
        raise ValueError(f"{arguments.manifest}: no row is left to train on")
    model = initial_conformer(config, training.seed)
    model.frozen = True  # as the recogniser is used; a training step thaws it
    trainee = Pretraining(Recogniser(model, log_mel, alphabet).moved(xp), training.dropout, graph)
    done = train(
        trainee, utterances, training, arguments.out, valid=valid, resume=arguments.resume, title="pre-training"
    )
    print(
        f"{arguments.out}: a backbone of {count(model.p):,} parameters, {sample_rate} Hz, trained on "
        f"{recordings(utterances)} recordings in {done['steps']} steps and {done['seconds']:.0f} s"
    )
    tell_infeasible(done["infeasible"], recordings(utterances))


def recordings(utterances: Sequence[Utterance]) -> int:
    """Return the number of recordings, each of which may be heard at several speeds."""
    return len({utterance.place for utterance in utterances})


def tell_infeasible(places: list[str], of: int) -> None:
    """Say which utterances were too short for their texts."""
    if places:
        some = f"{', '.join(places[:3])}{' ...' * (len(places) > 3)}"
        print(
            f"{len(places)} of {of} recordings are too short for their texts, and were left out of the loss: {some}",
            file=sys.stderr,
        )


def run_adapt(arguments: argparse.Namespace) -> None:
    """Train an HRA with a head for each task, on a frozen backbone."""
    xp = array_module_for(arguments.device, tf32=arguments.tf32)
    graph = on_gpu_with_graphs(arguments, xp)
    recogniser = load_backbone(arguments.backbone)
    given = {key: getattr(arguments, key) for key in ("epochs", "steps", "seed") if getattr(arguments, key) is not None}
    if "epochs" in given:
        given["least_steps"] = 1
    recipe = ADAPTATION if recogniser.family == OWN else OPEN_ADAPTATION
    if recogniser.features.mels == 1:  # the waveform itself has no bands to mask
        recipe = {**recipe, "augment": None}
    training = build("training", **{**recipe, **given})
    adapter = adapter_to_train(arguments, recogniser, training.seed)
    faults = Faults()
    rows = chosen_rows(arguments, faults)
    if arguments.limit_per_task is not None:
        if arguments.limit_per_task < 1:
            raise ValueError(f"--limit-per-task must be at least 1, got {arguments.limit_per_task}")
        rows = limit_per_task(rows, adapter.task_by, arguments.limit_per_task, training.seed)
    if xp is np:
        compile_ahead("adaptation")
    utterances = load_utterances(
        rows, recogniser.features, recogniser.tokenizer, faults, task_by=adapter.task_by, speeds=training.speeds
    )
    tell_skipped(faults.settle(skip=arguments.skip_bad))
    if not utterances:
        raise ValueError(f"{arguments.manifest}: no row is left to train on")
    tasks = sorted({utterance.task for utterance in utterances})
    new = add_new_tasks(arguments, adapter, tasks)
    if len(new) < 2:  # one head, or none, has no other to learn with
        training = replace(training, together=0.0)
    learns = not arguments.freeze_controller
    trainee = Adaptation(recogniser.moved(xp), adapter, learns, new, recompute=arguments.recompute, graph=graph)
    done = train(trainee, utterances, training, arguments.out, resume=arguments.resume, title="adapting")
    size = trainee.adapter.hra.count_parameters(count(recogniser.model.p))
    print(
        f"{arguments.out}: an adapter of {size.total:,} parameters ({size.share:.1%} of the backbone), "
        f"{size.per_task:,} a task; {len(tasks)} tasks trained on {recordings(utterances)} recordings in "
        f"{done['steps']} steps and {done['seconds']:.0f} s"
    )
    tell_infeasible(done["infeasible"], recordings(utterances))


def adapter_to_train(arguments: argparse.Namespace, recogniser: Recogniser, seed: int) -> Adapter:
    """Return the adapter that --adapter names, or a new one.

    Raises:
        ValueError: an option lacks another one that it needs, or names no task of the adapter.
    """
    sha256 = backbone_hash(recogniser.model)
    for option, given in (("--freeze-controller", arguments.freeze_controller), ("--like", arguments.like)):
        if given and not arguments.adapter:
            raise ValueError(f"{option} adds heads to an adapter: name it with --adapter")
    if arguments.adapter:
        adapter = load_hra(arguments.adapter, sha256)
        if arguments.like is not None:
            known("task", arguments.like, adapter.hra.p.heads)
        return adapter._replace(task_by=arguments.task_by or adapter.task_by)
    if not arguments.task_by:
        raise ValueError("--task-by KEY says which field of the manifest names the task, such as speaker")
    hra = HRA(
        recogniser.model.config.width,
        arguments.state_size,
        cell=arguments.controller,
        head=arguments.head,
        bottleneck=arguments.bottleneck,
        seed=seed,
    )
    return Adapter(hra, arguments.task_by, sha256)


def add_new_tasks(arguments: argparse.Namespace, adapter: Adapter, tasks: Sequence[str]) -> tuple[str, ...]:
    """Add those of `tasks` to the adapter that it does not have yet, with heads that are alike, and return them.

    Raises:
        ValueError: the others have heads already, which --freeze-controller leaves as they are.
    """
    old = [task for task in tasks if task in adapter.hra.task_names]
    if arguments.freeze_controller and old:
        raise ValueError(
            f"the adapter has heads for {', '.join(old)} already; leave their rows out with "
            f"--where {adapter.task_by}!=..., so that they stay as they are"
        )
    new = tuple(task for task in tasks if task not in old)
    for task in new:
        adapter.hra.add_task(task, like=arguments.like or (None if task == new[0] else new[0]))
    return new
