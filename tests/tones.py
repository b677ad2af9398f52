"""A made-up corpus for tests: words are pairs of tones, and speakers hum at a pitch of their own."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

RATE = 8000
WORDS = {"ab": (500, 900), "ba": (900, 500), "ca": (1500, 500), "bc": (900, 1500)}
SPEAKERS = {"ann": 1.0, "bob": 1.15, "eve": 0.85}
CONFIG = """
[model]
width = 16
layers = 2
heads = 2
kernel = 3
[features]
mels = 12
silence = 0.05
[training]
batch = 5
peak = 1e-2
"""


def record(word: str, speaker: str, take: int) -> np.ndarray:
    """A word of a speaker; takes differ in tempo and noise."""
    rng = np.random.default_rng([list(WORDS).index(word), list(SPEAKERS).index(speaker), take])
    time = np.arange(round(RATE * rng.uniform(0.18, 0.22))) / RATE
    tones = [np.sin(2 * np.pi * SPEAKERS[speaker] * frequency * time) for frequency in WORDS[word]]
    gap = np.zeros(200)
    return (0.3 * np.concatenate([tones[0], gap, tones[1]]) + rng.normal(0, 0.01, 2 * len(time) + 200)).astype(
        np.float32
    )


def write_corpus(folder: Path, takes: int = 3) -> Path:
    """Write the recordings and their manifest, and return its path; the last take is the test split."""
    lines = []
    for speaker in SPEAKERS:
        for word in WORDS:
            for take in range(takes):
                name = f"{speaker}_{word}_{take}.wav"
                soundfile.write(folder / name, record(word, speaker, take), RATE)
                split = "test" if take == takes - 1 else "train"
                lines.append({"audio_filepath": name, "text": word, "speaker": speaker, "split": split})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return manifest


class Bench(NamedTuple):
    folder: Path
    manifest: Path
    backbone: Path
    adapter: Path


def pretrain(manifest: Path, out: Path, *more: str) -> list[str]:
    config = str(manifest.parent / "tiny.toml")
    where = ["--split", "train", "--where", "speaker=ann"]
    return ["pretrain", "--manifest", str(manifest), *where, "--config", config, "--out", str(out), *more]


def adapt(bench: Bench, out: Path, *more: str) -> list[str]:
    rows = ["--manifest", str(bench.manifest), "--split", "train", "--where", "speaker!=ann"]
    return ["adapt", "--backbone", str(bench.backbone), *rows, "--out", str(out), "--task-by", "speaker", *more]


def bits(folder: Path) -> dict[str, bytes]:
    """All files of a checkpoint."""
    (step,) = folder.glob("step-*")
    return {path.name: path.read_bytes() for path in step.iterdir()}
