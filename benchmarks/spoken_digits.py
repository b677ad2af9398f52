"""Word error rates of HRA and its controls on the Free Spoken Digit Dataset: the figures of docs/results.md.

    python benchmarks/spoken_digits.py FSDD_FOLDER OUT_FOLDER [--seeds 1 2 3]

For each seed, both ways round: pre-train on three speakers, adapt to the other three, with 50 recordings of each and
with all 450. Prints a table in Markdown after each; a run that was broken off goes on where it was.
"""

import argparse
from pathlib import Path

from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.controls import CONDITIONS, adapt_with_controls
from minihra.data.corpus import load_utterances
from minihra.data.faults import Faults
from minihra.data.manifest import limit_per_task, parse_where, read_manifest, select
from minihra.recogniser import Recogniser
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from minihra.train import ADAPTATION, TrainingConfig, train
from minihra.trainees import Pretraining

SPEAKERS = ("jackson", "nicolas", "theo"), ("george", "lucas", "yweweler")


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
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
            trainee = Pretraining(Recogniser(model, log_mel, alphabet), config.dropout)
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
                rates = " | ".join(f"{controls.mean(condition):.3f}" for condition in CONDITIONS)
                times = f"{first['seconds']:.0f} + {controls.seconds:.0f}"
                print(f"| {', '.join(known)} | {seed} | {limit or 450} | {rates} | {times} |", flush=True)


if __name__ == "__main__":
    main()
