"""Word error rates of HRA and its controls on the Free Spoken Digit Dataset: the figures of docs/results.md.

    python benchmarks/spoken_digits.py FSDD_FOLDER OUT_FOLDER [--seeds 1 2 3] [--device cuda]

For each seed, both ways round: pre-train on three speakers, adapt to the other three, with 50 recordings of each and
with all 450. Prints a table in Markdown after each; a run that was broken off goes on where it was. With `--within` the
exit status is 1 if new speakers with heads of their own have an error rate outside of the range of earlier runs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.checkpoint import write_json
from minihra.controls import CONDITIONS, adapt_with_controls
from minihra.data.corpus import load_utterances
from minihra.data.faults import Faults
from minihra.data.manifest import limit_per_task, parse_where, read_manifest, select
from minihra.device import DEVICES, array_module_for
from minihra.recogniser import Recogniser
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from minihra.train import ADAPTATION, TrainingConfig, train
from minihra.trainees import Pretraining

SPEAKERS = ("jackson", "nicolas", "theo"), ("george", "lucas", "yweweler")


def outside(found: list[dict[str, Any]], earlier: list[dict[str, Any]]) -> list[str]:
    """Return a line for each error rate of own heads that is outside of the range of earlier runs of its kind."""
    lines = []
    for row in found:
        of, kind = row["rates"]["own"], (row["known"], row["recordings"])
        rates = [other["rates"]["own"] for other in earlier if (other["known"], other["recordings"]) == kind]
        if not rates or not min(rates) <= of <= max(rates):
            between = f"between {min(rates):.3f} and {max(rates):.3f}" if rates else "none"
            lines.append(f"{row['known']}, {row['recordings']} recordings: {of:.3f}, earlier ones: {between}")
    return lines


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_argument("--within", type=Path, metavar="FILE", help="what --json of earlier runs wrote")
    return parser.parse_args(argv)


def main() -> int:
    """Run all of it."""
    arguments = parsed()
    xp = array_module_for(arguments.device)
    found: list[dict[str, Any]] = []
    rows, log_mel = read_manifest(arguments.folder / "manifest.jsonl", Faults()), LogMel(8000, silence=0.05)

    def of(speakers: tuple[str, ...], split: str, alphabet: Alphabet, limit: int | None, seed: int) -> list:
        where = [parse_where(f"speaker={','.join(speakers)}"), parse_where(f"split={split}")]
        chosen = select(rows, where)
        chosen = chosen if limit is None else limit_per_task(chosen, "speaker", limit, seed)
        faults = Faults()
        utterances = load_utterances(chosen, log_mel, alphabet, faults, task_by="speaker")
        faults.settle(skip=False)
        return utterances

    print(
        "| pre-trained on | seed | recordings a speaker | frozen | own head | shared task | another's head | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for known, new in (SPEAKERS, SPEAKERS[::-1]):
        for seed in arguments.seeds:
            alphabet = Alphabet.of(row.text for row in select(rows, [parse_where(f"speaker={','.join(known)}")]))
            model = initial_conformer(ConformerConfig(labels=len(alphabet)), seed)
            model.frozen = True
            config = TrainingConfig(seed=seed)
            recogniser = Recogniser(model, log_mel, alphabet).moved(xp)
            trainee = Pretraining(recogniser, config.dropout, graph=xp is not np)
            run = arguments.out / f"{known[0]}-{seed}"
            first = train(trainee, of(known, "train", alphabet, None, seed), config, run, resume=True)
            test = of(new, "test", alphabet, None, seed)
            for limit in (50, None):
                controls = adapt_with_controls(
                    trainee.recogniser,
                    of(new, "train", alphabet, limit, seed),
                    test,
                    TrainingConfig(**ADAPTATION, seed=seed),
                    run / str(limit),
                    resume=True,
                )
                means = {condition: controls.mean(condition) for condition in CONDITIONS}
                rates = " | ".join(f"{mean:.3f}" for mean in means.values())
                times = f"{first['seconds']:.0f} + {controls.seconds:.0f}"
                print(f"| {', '.join(known)} | {seed} | {limit or 450} | {rates} | {times} |", flush=True)
                row = {"known": ", ".join(known), "seed": seed, "recordings": limit or 450, "rates": means}
                found.append(row | {"seconds": [first["seconds"], controls.seconds]})
                if arguments.json:
                    write_json(arguments.json, {"device": arguments.device, "rows": found})
    if arguments.within is None:
        return 0
    wrong = outside(found, json.loads(arguments.within.read_text("utf-8"))["rows"])
    print("\n".join(wrong) or f"all rates of own heads are within those of {arguments.within}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
