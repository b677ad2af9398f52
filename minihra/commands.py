"""What the commands do that train nothing: each function is one, given its parsed arguments. cli.py parses."""

import argparse
import json
import sys
from types import ModuleType

import numpy as np

from minihra.adapters.accounting import budgets, count_hra
from minihra.adapters.hra import HRA
from minihra.data.corpus import load_utterances
from minihra.data.faults import Faults
from minihra.data.folder import AUDIO, rows_of_folder, write_lines
from minihra.data.manifest import Row, parse_where, read_manifest, select
from minihra.device import array_module_for
from minihra.evaluate import Score, score, score_by_task, transcribe
from minihra.graphs import InferenceGraphs
from minihra.loaders.backbone import load_backbone
from minihra.recogniser import Adapter, Recogniser, backbone_hash, load_hra
from minihra.speech.audio import read_audio
from minihra.speech.error_rate import ErrorCount


def chosen_rows(arguments: argparse.Namespace, faults: Faults, extra: list[str] | None = None) -> list[Row]:
    """Return the rows of the manifest that --where, --split and `extra` conditions leave."""
    conditions = [parse_where(condition) for condition in [*arguments.where, *(extra or [])]]
    return select(read_manifest(arguments.manifest, faults), conditions)


def tell_skipped(skipped: int) -> None:
    """Say how many rows were left out."""
    if skipped:
        print(f"{skipped} bad row{'s' * (skipped > 1)} skipped", file=sys.stderr)


def together_on(xp: ModuleType, recogniser: Recogniser, adapter: Adapter | None) -> tuple[Recogniser, HRA | None]:
    """Return a backbone and its HRA, if it has one, with their arrays in `xp`."""
    if adapter is not None:
        adapter.hra.move(xp)
    return recogniser.moved(xp), adapter and adapter.hra


def on_gpu_with_graphs(arguments: argparse.Namespace, xp: ModuleType) -> bool:
    """Whether a command computes with CUDA graphs.

    Raises:
        ValueError: they are asked for on the CPU.
    """
    if arguments.graph and xp is np:
        raise ValueError("--graph is for a GPU: it needs --device cuda")
    return xp is not np and arguments.graph is not False


def run_eval(arguments: argparse.Namespace) -> None:
    """Write down every recording of a manifest, and count the errors."""
    xp = array_module_for(arguments.device, tf32=arguments.tf32)
    graph = on_gpu_with_graphs(arguments, xp)
    recogniser = load_backbone(arguments.backbone)
    if arguments.hypotheses and not arguments.hypotheses.parent.is_dir():
        raise ValueError(f"--hypotheses {arguments.hypotheses}: there is no folder {arguments.hypotheses.parent}")
    adapter = load_hra(arguments.adapter, backbone_hash(recogniser.model)) if arguments.adapter else None
    task_by = arguments.task_by or (adapter.task_by if adapter else None)
    faults = Faults()
    rows = chosen_rows(arguments, faults)
    utterances = load_utterances(
        rows, recogniser.features, recogniser.tokenizer, faults, labelled=False, task_by=task_by
    )
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
    recogniser, hra = together_on(xp, recogniser, adapter)
    features, tokenizer = [u.features for u in utterances], recogniser.tokenizer
    graphs = InferenceGraphs(recogniser.model, hra) if graph else None
    hypotheses = transcribe(recogniser, features, hra, tasks, beam=arguments.beam, graphs=graphs)
    whole = score([u.text for u in utterances], hypotheses, tokenizer)
    by_task = score_by_task(utterances, hypotheses, tokenizer)
    if arguments.hypotheses:
        pairs = zip(utterances, hypotheses, strict=True)
        lines = [{"place": u.place, "task": u.task, "text": u.text, "hypothesis": h} for u, h in pairs]
        write_lines(arguments.hypotheses, lines)
    unit = tokenizer.unit
    if arguments.json:
        tasks_as_json = {task: as_json(part, unit, 0) for task, part in by_task.items()} if task_by else {}
        print(json.dumps({**as_json(whole, unit, skipped), "tasks": tasks_as_json}, ensure_ascii=False))
        return
    tell_skipped(skipped)
    with_characters = unit == "word"
    print(f"{'task':<16} {'utterances':>10} {f'{unit}s':>8} {rate_of(unit).upper():>7}{'     CER' * with_characters}")
    for task, part in [*(by_task.items() if task_by else ()), ("all", whole)]:
        characters = f" {rate(part.characters):>7}" * with_characters
        print(f"{task:<16} {part.utterances:>10} {part.units.units:>8} {rate(part.units):>7}{characters}")


def rate_of(unit: str) -> str:
    """Return the name of an error rate: wer of words, per of phonemes."""
    return f"{unit[0]}er"


def rate(errors: ErrorCount) -> str:
    """Return an error rate as text; a dash where there is nothing to count."""
    return f"{errors.rate:.3f}" if errors.units else "-"


def as_json(part: Score, unit: str, skipped: int) -> dict:
    """Return a score in the form of `eval --json`; a model that writes phonemes has no error rate of characters."""
    characters = {"cer": part.characters.rate if part.characters.units else None} if unit == "word" else {}
    return {
        rate_of(unit): part.units.rate if part.units.units else None,
        **characters,
        "utterances": part.utterances,
        f"{unit}s": part.units.units,
        "skipped": skipped,
    }


def run_transcribe(arguments: argparse.Namespace) -> None:
    """Write down recordings."""
    xp = array_module_for(arguments.device, tf32=arguments.tf32)
    graph = on_gpu_with_graphs(arguments, xp)
    recogniser = load_backbone(arguments.backbone)
    adapter = load_hra(arguments.adapter, backbone_hash(recogniser.model)) if arguments.adapter else None
    if adapter and not arguments.task:
        raise ValueError(f"--task says whose head to use; known: base, {', '.join(adapter.hra.task_names)}")
    if arguments.task and not adapter:
        raise ValueError("--task needs --adapter")
    faults, features, names = Faults(), [], []
    for path in arguments.audio:
        try:
            features.append(recogniser.features(read_audio(path, recogniser.features.sample_rate)))
            names.append(path)
        except (OSError, ValueError) as error:
            faults.add(str(error) if str(path) in str(error) else f"{path}: {error}")
    if faults.lines:
        raise ValueError("\n".join(faults.lines))
    tasks = [arguments.task or "base"] * len(features)
    recogniser, hra = together_on(xp, recogniser, adapter)
    graphs = InferenceGraphs(recogniser.model, hra) if graph else None
    texts = transcribe(recogniser, features, hra, tasks, beam=arguments.beam, graphs=graphs)
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
