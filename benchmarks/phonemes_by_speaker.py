"""Phoneme error rates of one HRA on hama for sixteen speakers, with its controls: the figures of docs/results.md.

    python benchmarks/phonemes_by_speaker.py SPEECHOCEAN762_FOLDER OUT_FOLDER [--seeds 1 2 3]

Adapts to the first eight children and the first eight adults of the manifest, 15 recordings each, and counts the errors
on the 5 test recordings of each. Prints a row of a table in Markdown after each seed, and one for each group of its
speakers; a run that was broken off goes on where it was.
"""

import argparse
from pathlib import Path

from minihra.allocator import keep_freed_memory
from minihra.controls import CONDITIONS, Controls, adapt_with_controls
from minihra.data.corpus import load_utterances
from minihra.data.faults import Faults
from minihra.data.manifest import parse_where, read_manifest, select
from minihra.loaders.backbone import load_backbone
from minihra.train import OPEN_ADAPTATION, TrainingConfig

EACH, GROUPS = 8, ("child", "adult")


def mean_of(controls: Controls, condition: str, group_of: dict[str, str], group: str) -> float:
    """Return the mean over the speakers of a group of their error rates."""
    rates = [errors.rate for name, errors in controls.errors[condition].items() if group_of[name] == group]
    return sum(rates) / len(rates)


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    keep_freed_memory()
    rows, recogniser = read_manifest(arguments.folder / "manifest.jsonl", Faults()), load_backbone("hama")
    group_of = {row.fields["speaker"]: row.fields["group"] for row in rows}
    chosen = [
        speaker
        for group in GROUPS
        for speaker in sorted(s for s, its_group in group_of.items() if its_group == group)[:EACH]
    ]

    def of(split: str, speeds: tuple[float, ...] = (1.0,)) -> list:
        where = [parse_where(f"speaker={','.join(chosen)}"), parse_where(f"split={split}")]
        faults = Faults()
        utterances = load_utterances(
            select(rows, where), recogniser.features, recogniser.tokenizer, faults, task_by="speaker", speeds=speeds
        )
        faults.settle(skip=False)
        return utterances

    adaptation, test = of("train", OPEN_ADAPTATION["speeds"]), of("test")
    print("| seed | frozen | own head | shared task | another's head | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for seed in arguments.seeds:
        config = TrainingConfig(**OPEN_ADAPTATION, seed=seed)
        controls = adapt_with_controls(recogniser, adaptation, test, config, arguments.out / str(seed), resume=True)
        rates = " | ".join(f"{controls.mean(condition):.3f}" for condition in CONDITIONS)
        print(f"| {seed} | {rates} | {controls.seconds:.0f} |", flush=True)
        for group in GROUPS:
            means = " | ".join(f"{mean_of(controls, condition, group_of, group):.3f}" for condition in CONDITIONS)
            print(f"| {seed}, {group} | {means} | |", flush=True)


if __name__ == "__main__":
    main()
