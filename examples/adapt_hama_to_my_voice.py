"""hama, a small open phoneme recogniser, adapted to one's own voice.

    pip install 'minihra[hama]'
    python examples/adapt_hama_to_my_voice.py FOLDER [--out my-voice] [--name me] [--steps 100]

FOLDER holds name.wav (or .flac, .ogg, .mp3) and name.txt, what is said in it, for each recording: twenty sentences of a
few seconds are a start. Every fifth recording is kept for the test. The adapter is written to a folder, for

    minihra transcribe --backbone hama --adapter my-voice --task me recording.wav
"""

import argparse
import sys
from pathlib import Path

from minihra.adapters.hra import HRA
from minihra.data.corpus import load_utterances
from minihra.data.faults import Faults
from minihra.data.folder import rows_of_folder
from minihra.data.manifest import Row
from minihra.evaluate import score, transcribe
from minihra.loaders.backbone import load_backbone
from minihra.recogniser import Adapter, backbone_hash
from minihra.train import OPEN_ADAPTATION, TrainingConfig, train
from minihra.trainees import Adaptation
from minihra.tree import count


def error_rate(recogniser, utterances, hra=None):
    """The phoneme error rate of recordings, and what was understood."""
    heard = transcribe(recogniser, [u.features for u in utterances], hra, [u.task for u in utterances])
    return score([u.text for u in utterances], heard, recogniser.tokenizer).units.rate, heard


def main(argv=None):
    """Run all of it; return the phoneme error rates of the test recordings, frozen and adapted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("my-voice"), help="where to write the adapter")
    parser.add_argument("--name", default="me", help="of the voice")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args(argv)
    recogniser, faults = load_backbone("hama"), Faults()
    rows = [
        Row(
            arguments.folder / fields["audio_filepath"],
            fields["text"],
            {"voice": arguments.name},
            fields["audio_filepath"],
        )
        for fields in rows_of_folder(arguments.folder, faults)
    ]
    config = TrainingConfig(**{**OPEN_ADAPTATION, "steps": arguments.steps, "together": 0.0, "seed": 1})
    given = recogniser.features, recogniser.tokenizer, faults
    training = load_utterances([r for n, r in enumerate(rows) if n % 5], *given, task_by="voice", speeds=config.speeds)
    test = load_utterances(rows[::5], *given, task_by="voice")
    faults.settle(skip=False)
    if not training:
        raise ValueError(f"{arguments.folder}: two recordings with texts are the least, one of them for the test")

    hra = HRA(recogniser.model.config.width, state_size=32, seed=1)
    hra.add_task(arguments.name)
    size = hra.count_parameters(count(recogniser.model.p))
    print(f"hama {count(recogniser.model.p):,} parameters, frozen; HRA {size.total:,} ({size.share:.1%})")
    before, _ = error_rate(recogniser, test)
    adaptation = Adaptation(recogniser, Adapter(hra, "voice", backbone_hash(recogniser.model)))
    done = train(adaptation, training, config, arguments.out, title="adapting")
    after, heard = error_rate(recogniser, test, adaptation.adapter.hra)
    print(f"{len(rows) - len(test)} recordings, {done['steps']} steps, {done['seconds']:.0f} s")
    print(f"phoneme error rate of {len(test)} other recordings: {before:.3f} frozen, {after:.3f} adapted")
    print(f"said:       {test[0].text}\nunderstood: {heard[0]}")
    return before, after


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"adapt_hama_to_my_voice: {error}")
