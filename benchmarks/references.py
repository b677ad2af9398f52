"""Whether the twins change what a run learns: a figure of docs/performance.md.

    python benchmarks/references.py FSDD_FOLDER OUT_FOLDER

Pre-trains a backbone with the twins and adapts it to three new speakers: with the twins from seed 1, and on the
references alone (MINIHRA_REFERENCE=1) from seeds 1, 2 and 3. Prints the word error rate of each adapter on their test
recordings, and how many words of the first one's texts the references write down differently.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from minihra.speech.error_rate import sum_errors, word_errors

KNOWN, NEW = "speaker=jackson,nicolas,theo", "speaker=george,lucas,yweweler"


def run(reference: bool, *arguments: str | Path) -> None:
    """Run a command of minihra, with the twins or without."""
    command = [sys.executable, "-m", "minihra", *map(str, arguments)]
    environment = {**os.environ, "MINIHRA_REFERENCE": str(int(reference))}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    manifest, backbone = ["--manifest", arguments.folder / "manifest.jsonl"], arguments.out / "backbone"
    learn = [*manifest, "--split", "train", "--where"]
    if not backbone.exists():
        run(False, "pretrain", *learn, KNOWN, "--out", backbone)

    def texts(adapter: Path, reference: bool) -> list[tuple[str, str]]:
        file = arguments.out / "hypotheses.jsonl"
        tested = [*manifest, "--split", "test", "--where", NEW, "--hypotheses", file]
        run(reference, "eval", "--backbone", backbone, "--adapter", adapter, *tested)
        lines = map(json.loads, file.read_text("utf-8").splitlines())
        return [(line["text"], line["hypothesis"]) for line in lines]

    first: list[tuple[str, str]] = []
    for reference, seed in ((False, 1), (True, 1), (True, 2), (True, 3)):
        name = "references" if reference else "twins"
        adapter = arguments.out / f"{name}_{seed}"
        if not adapter.exists():
            how = ["--task-by", "speaker", "--seed", str(seed), "--out", adapter]
            run(reference, "adapt", "--backbone", backbone, *learn, NEW, *how)
        pairs = texts(adapter, reference)
        first = first or pairs
        errors = sum_errors(word_errors(text, found) for text, found in pairs)
        print(f"{name}, seed {seed}: word error rate {errors.rate:.4f} of {errors.units} words", flush=True)
    again = texts(arguments.out / "twins_1", reference=True)
    differ = sum_errors(word_errors(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    print(f"the adapter of the twins, run by the references: {differ.errors} words differ")


if __name__ == "__main__":
    main()
