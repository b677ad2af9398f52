"""`minihra demo`: pre-train, freeze and adapt on built-in voices, with the controls, without a download."""

import argparse
import json
import time
from collections.abc import Iterable

import numpy as np

from minihra.ahead import compile_ahead
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.controls import CONDITIONS, Controls, adapt_with_controls, as_table, new_adapter
from minihra.data.corpus import Utterance
from minihra.data.voices import RATE, SEEN, UNSEEN, WORDS, corpus, voice
from minihra.device import array_module_for
from minihra.evaluate import score, transcribe
from minihra.recogniser import Recogniser
from minihra.report import draw_controls
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from minihra.train import ADAPTATION, TrainingConfig, train
from minihra.trainees import Pretraining
from minihra.tree import count

SEEN_VOICES, UNSEEN_VOICES = 12, 8
TRAINING_TAKES, TEST_TAKES = range(2), range(2, 4)
ADAPTATION_TAKES = range(1)
ADAPTATION_TEST_TAKES = range(1, 4)


def utterances_of(kind: str, voices: int, takes: Iterable[int], recogniser: Recogniser, seed: int) -> list[Utterance]:
    """Return every word of every voice of a kind, in each of `takes`."""
    return [
        Utterance(
            recogniser.features(samples), tuple(recogniser.tokenizer.encode(word)), word, name, f"{name} says {word}"
        )
        for samples, word, name in corpus((voice(n, kind, seed) for n in range(voices)), WORDS, takes)
    ]


def run_demo(arguments: argparse.Namespace) -> None:
    """Run the whole job and write table.txt, results.json and controls.png."""
    began, seed, out = time.perf_counter(), arguments.seed, arguments.out
    xp = array_module_for(arguments.device, tf32=arguments.tf32)
    if xp is np:
        compile_ahead("training")
    alphabet, log_mel = Alphabet.of(WORDS), LogMel(RATE, silence=0.05)
    model = initial_conformer(ConformerConfig(labels=len(alphabet)), seed)
    model.frozen = True
    recogniser = Recogniser(model, log_mel, alphabet).moved(xp)
    config = TrainingConfig(epochs=15, seed=seed)
    trainee = Pretraining(recogniser, config.dropout, graph=xp is not np)
    seen = utterances_of(SEEN, SEEN_VOICES, TRAINING_TAKES, recogniser, seed)
    first = train(trainee, seen, config, out / "backbone", resume=arguments.resume, title="pre-training")
    recogniser = trainee.recogniser
    known = utterances_of(SEEN, SEEN_VOICES, TEST_TAKES, recogniser, seed)
    heard = transcribe(recogniser, [u.features for u in known])
    known_rate = score([u.text for u in known], heard, recogniser.tokenizer).units.rate
    controls = adapt_with_controls(
        recogniser,
        utterances_of(UNSEEN, UNSEEN_VOICES, ADAPTATION_TAKES, recogniser, seed),
        utterances_of(UNSEEN, UNSEEN_VOICES, ADAPTATION_TEST_TAKES, recogniser, seed),
        TrainingConfig(**ADAPTATION, seed=seed),
        out / "adapters",
        resume=arguments.resume,
    )
    size = new_adapter(recogniser, list(controls.errors["own"]), 32, seed).hra.count_parameters(
        count(recogniser.model.p)
    )
    table = (
        f"{SEEN_VOICES} built-in voices, {len(WORDS)} words: a stand-in for data, not a result\n\n"
        f"backbone  {count(recogniser.model.p):>9,} parameters, trained in {first['seconds']:.0f} s; "
        f"word error rate on its own voices {known_rate:.3f}\n"
        f"HRA       {size.total:>9,} parameters ({size.share:.1%}), {size.per_task:,} a voice, trained in "
        f"{controls.seconds:.0f} s\n\n"
        f"word error rates of {UNSEEN_VOICES} voices that the backbone has never heard\n\n{as_table(controls)}\n"
    )
    print(table)
    (out / "table.txt").write_text(table, encoding="utf-8")
    (out / "results.json").write_text(
        json.dumps(as_json(controls, known_rate, seed), indent=1) + "\n", encoding="utf-8"
    )
    draw_controls(controls, out / "controls.png")
    print(f"{out}: table.txt, results.json, controls.png; {time.perf_counter() - began:.0f} s in all")


def as_json(controls: Controls, known_rate: float, seed: int) -> dict:
    """Return the word error rates for a program to read."""
    means = {condition: controls.mean(condition) for condition in CONDITIONS}
    voices = {
        name: {condition: controls.errors[condition][name].rate for condition in CONDITIONS}
        for name in controls.errors["frozen"]
    }
    return {"seed": seed, "seen": known_rate, "unseen": means, "voices": voices}
