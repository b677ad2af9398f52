"""One HRA adapts a frozen recogniser of spoken digits to three new speakers.

    python examples/adapt_digits.py FSDD_FOLDER

A small Conformer learns from recordings of jackson, nicolas and theo and is frozen; one GRU HRA, with a head for each
of george, lucas and yweweler, learns from theirs. The folder holds the Free Spoken Digit Dataset and manifest.jsonl,
one JSON object a line: audio_filepath (relative to the folder), text, speaker, split ("train" or "test").
"""

import argparse
import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.model import backward, ctc_loss, forward, pack_labels
from minihra.optim import AdamW, clip_by_global_norm, warmup_cosine
from minihra.speech.alphabet import Alphabet
from minihra.speech.audio import read_audio
from minihra.speech.decoding import greedy_decode
from minihra.speech.error_rate import word_error_rate
from minihra.speech.features import LogMel, pad
from minihra.tree import count

KNOWN, NEW = ("jackson", "nicolas", "theo"), ("george", "lucas", "yweweler")
BATCH = 32
PEAK_RATE = {"pre-training": 2e-3, "adapting": 3e-3}  # of the learning rate


class Recording(NamedTuple):
    """A recording as the model sees it."""

    features: Array  # (T, F)
    text: str
    speaker: str
    split: str


def load(manifest, log_mel):
    """Read all recordings of a manifest."""
    recordings = []
    lines = manifest.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(tqdm(lines, desc="reading", disable=None), start=1):
        try:
            row = json.loads(line)
            samples = read_audio(manifest.parent / row["audio_filepath"], log_mel.sample_rate)
            recordings.append(Recording(log_mel(samples), row["text"], row["speaker"], row["split"]))
        except KeyError as error:
            raise ValueError(f"{manifest}, line {number}: no field {error}") from None
        except (OSError, TypeError, ValueError) as error:
            raise ValueError(f"{manifest}, line {number}: {error}") from None
    return recordings


def train(title, model, recordings, alphabet, epochs, rng, hra=None):
    """Train the model, or with an HRA only its controller and heads. Recordings of similar length share a batch."""
    batches = []
    for _ in range(epochs):
        order = sorted(range(len(recordings)), key=lambda i: len(recordings[i].features) + 20 * rng.random())
        epoch = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        batches += [epoch[i] for i in rng.permutation(len(epoch))]
    optimiser = AdamW(decay=0.0 if hra else 1e-2)
    for step, batch in enumerate(progress := tqdm(batches, desc=title, disable=None)):
        rows = [recordings[i] for i in batch]
        x, lengths = pad([row.features for row in rows])
        labels = pack_labels([alphabet.encode(row.text) for row in rows], len(alphabet))
        edit = hra and hra.edit([row.speaker for row in rows])
        training = None if hra else model.draw_dropout(0.1, *x.shape[:2], rng)
        logits, cache = forward(model, x, lengths, edit, training)
        loss, dlogits = ctc_loss(logits, cache.context.valid, labels)
        gradients, _ = clip_by_global_norm(backward(dlogits, cache), 1.0)
        rate = warmup_cosine(step, len(batches), peak=PEAK_RATE[title], warmup=len(batches) // 10)
        if hra:
            optimiser.update(hra.p, gradients.adapter, rate)
        else:
            optimiser.update(model.p, gradients.backbone, rate)
            model = replace(model, statistics=tuple(layer.statistics for layer in cache.layers))
        progress.set_postfix(loss=f"{loss.mean:.3f}", refresh=False)
    return model


def error_rate(model, recordings, alphabet, hra=None):
    """Return the word error rate of greedy decoding."""
    edit = hra and hra.edit([row.speaker for row in recordings])
    logits, cache = forward(model, *pad([row.features for row in recordings]), edit)
    texts = [alphabet.decode(labels) for labels in greedy_decode(logits, cache.context.valid)]
    return word_error_rate([row.text for row in recordings], texts)


def main(argv=None):
    """Run the whole way; print a table of word error rates and return it: {speaker: (frozen, adapted)}."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds manifest.jsonl and the recordings that it names")
    parser.add_argument("--epochs", type=int, nargs=2, default=(25, 20), metavar=("PRETRAIN", "ADAPT"))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    start, rng = time.perf_counter(), np.random.default_rng(arguments.seed)

    def of(speakers, split):
        return [row for row in recordings if row.speaker in speakers and row.split == split]

    try:
        recordings = load(arguments.folder / "manifest.jsonl", LogMel(sample_rate=8000, silence=0.05))
        for speaker, split in product(KNOWN + NEW, ("train", "test")):
            if not of([speaker], split):
                raise ValueError(f"{arguments.folder}: no {split} recording of {speaker}")
        alphabet = Alphabet.of(row.text for row in of(KNOWN, "train"))
        for row in of(NEW, "train"):
            alphabet.encode(row.text)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    model = initial_conformer(ConformerConfig(labels=len(alphabet)), arguments.seed)
    model = train("pre-training", model, of(KNOWN, "train"), alphabet, arguments.epochs[0], rng)
    model, pretrained = replace(model, frozen=True), time.perf_counter()
    print(f"Conformer: {count(model.p):,} parameters, pre-trained in {pretrained - start:.0f} s")
    print(f"word error rate on the speakers that it knows: {error_rate(model, of(KNOWN, 'test'), alphabet):.3f}")

    hra = HRA(model.config.width, state_size=32, cell="gru", head="linear", seed=arguments.seed)
    for speaker in NEW:
        hra.add_task(speaker)
    train("adapting", model, of(NEW, "train"), alphabet, arguments.epochs[1], rng, hra)
    size = hra.count_parameters(count(model.p))
    print(
        f"HRA: {size.total:,} parameters ({size.share:.1%} of the Conformer), of which {size.per_task:,} a speaker; "
        f"adapted in {time.perf_counter() - pretrained:.0f} s"
    )

    rates = {}
    for speaker in NEW:
        test = of([speaker], "test")
        rates[speaker] = error_rate(model, test, alphabet), error_rate(model, test, alphabet, hra)
    rates["mean"] = tuple(np.mean(list(rates.values()), axis=0))
    print(f"\n{'speaker':<10} {'frozen':>7} {'adapted':>8}")
    for speaker, (frozen, adapted) in rates.items():
        print(f"{speaker:<10} {frozen:>7.3f} {adapted:>8.3f}")
    return rates


if __name__ == "__main__":
    main()
