"""Pre-training and adapting on spoken digits, whole processes, beside PyTorch: a figure of docs/performance.md.

    python benchmarks/whole_run.py FSDD_FOLDER OUT_FOLDER

times `minihra pretrain` and `minihra adapt`, and then a process that does the same with the model of
tests/torch_twin.py: the same features, batches, masks, learning rates and numbers of epochs, eagerly (lengths change
from step to step), with fused AdamW. To its advantage it leaves out dropout and checkpoints.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minihra.adapters.hra import HRA
from minihra.blocks.config import ConformerConfig
from minihra.blocks.initial import initial_conformer
from minihra.data.corpus import Batches, Utterance, load_utterances
from minihra.data.faults import Faults
from minihra.data.manifest import parse_where, read_manifest, select
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from minihra.threads import threads
from minihra.train import ADAPTATION, TrainingConfig
from minihra.trainees import make_batch
from minihra.tree import leaves

ROOT = Path(__file__).parents[1]
KNOWN, NEW = "speaker=jackson,nicolas,theo", "speaker=george,lucas,yweweler"


def train(model, utterances: list[Utterance], config: TrainingConfig, hop: float) -> float:  # noqa: ANN001
    """Train a TorchHRA as minihra.train trains ours; return the mean loss of the last ten steps."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, weight_decay=config.decay, fused=True)
    batches = Batches([len(u.features) for u in utterances], config.batch, round(config.seconds / hop), config.seed)
    steps, losses = max(config.epochs * len(batches), config.least_steps), []
    for step in tqdm(range(steps), disable=None):
        epoch, place = divmod(step, len(batches))
        chosen = [utterances[i] for i in batches.of_epoch(epoch)[place]]
        batch = make_batch(chosen, config.augment, np.random.default_rng([config.seed, step, 1]))
        optimiser.param_groups[0]["lr"] = config.learning_rate(step, steps)
        optimiser.zero_grad(set_to_none=True)
        loss = model.loss(batch.features, batch.lengths, batch.labels, batch.tasks if model.tasks else None)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config.clip)
        optimiser.step()
        losses.append(loss.item())
    return float(np.mean(losses[-10:]))


def run_torch(folder: Path) -> None:
    """Pre-train and adapt in PyTorch."""
    sys.path.insert(0, str(ROOT))
    import torch

    from tests.torch_twin import TorchHRA

    torch.set_num_threads(threads())
    rows, log_mel = read_manifest(folder / "manifest.jsonl", Faults()), LogMel(8000, silence=0.05)
    alphabet = Alphabet.of(row.text for row in select(rows, [parse_where(KNOWN), parse_where("split=train")]))

    def of(speakers: str) -> list[Utterance]:
        chosen = select(rows, [parse_where(speakers), parse_where("split=train")])
        return load_utterances(chosen, log_mel, alphabet, Faults(), task_by="speaker")

    backbone = initial_conformer(ConformerConfig(labels=len(alphabet)), seed=1)
    named = {f"backbone.{name}": leaf for name, leaf in leaves(backbone.p)}
    named |= {f"statistics.{name}": leaf for name, leaf in leaves(backbone.statistics)}
    how = {"heads": backbone.config.heads, "dtype": torch.float32}
    model = TorchHRA(named, cell=None, tasks=(), freeze_backbone=False, **how)
    first = train(model, of(KNOWN), TrainingConfig(), log_mel.hop)
    named = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    utterances, hra = of(NEW), HRA(backbone.config.width, 32, seed=1)
    tasks = tuple(sorted({utterance.task for utterance in utterances}))
    for task in tasks:
        hra.add_task(task)
    named |= {f"adapter.{name}": leaf for name, leaf in leaves(hra.p)}
    model = TorchHRA(named, cell="gru", tasks=tasks, **how)
    second = train(model, utterances, TrainingConfig(**ADAPTATION), log_mel.hop)
    print(f"losses of the last steps: {first:.3f}, {second:.3f}")


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--torch", action="store_true", help="be the process of PyTorch")
    arguments = parser.parse_args()
    if arguments.torch:
        run_torch(arguments.folder)
        return
    rows = ["--manifest", arguments.folder / "manifest.jsonl", "--split", "train", "--where"]
    backbone, minihra = arguments.out / "backbone", [sys.executable, "-m", "minihra"]
    adapt = ["adapt", "--backbone", backbone, *rows, NEW, "--task-by", "speaker", "--out", arguments.out / "adapter"]
    commands = {
        "minihra pretrain": [*minihra, "pretrain", *rows, KNOWN, "--out", backbone],
        "minihra adapt": [*minihra, *adapt],
        "PyTorch": [sys.executable, __file__, arguments.folder, arguments.out, "--torch"],
    }
    seconds = {}
    for name, command in commands.items():
        start = time.perf_counter()
        subprocess.run(list(map(str, command)), check=True)
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
    ours = seconds["minihra pretrain"] + seconds["minihra adapt"]
    print(f"ratio {ours / seconds['PyTorch']:.2f}")


if __name__ == "__main__":
    main()
