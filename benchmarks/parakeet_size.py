"""A Parakeet-CTC of the published 0.6 B shape with random weights: how much memory it takes, and how fast it is.

    python benchmarks/parakeet_size.py FOLDER [--type bf16] [--seconds 10]

Writes the folder (2.4 GB, or 1.2 GB in bf16; without PyTorch) unless it is there, and prints a table in Markdown:
the peak memory of `minihra inspect` and `minihra transcribe`, and the time of features, encoder, readout and greedy
decoding beside transformers' ParakeetForCTC on the same folder (float32, attention "sdpa", eval, inference_mode, the
same number of threads). Every measurement has a fresh process with a clean environment; the two programs take turns,
and each time is the median of 5 after a warm-up.

The shape is that of nvidia/parakeet-ctc-0.6b as the defaults of transformers' ParakeetEncoderConfig have it: 24 layers,
width 1024, 8 heads, feed-forward 4096, kernel 9, 8 frames in one with 256 channels, 80 mel bins, biases in all maps,
inputs scaled by 32, 1025 labels.
"""

import argparse
import json
import math
import os
import string
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np
import soundfile

from minihra.allocator import keep_freed_memory
from minihra.blocks.parameters import conformer_shapes
from minihra.loaders import parakeet
from minihra.loaders.backbone import load_backbone
from minihra.loaders.settings import Settings
from minihra.loaders.table import shape_before
from minihra.model import infer
from minihra.speech.decoding import greedy_decode
from minihra.speech.features import pad
from minihra.tree import leaves

CONFIG = {
    "model_type": "parakeet_ctc",
    "architectures": ["ParakeetForCTC"],
    "vocab_size": 1025,
    "pad_token_id": 1024,
    "encoder_config": {
        "model_type": "parakeet_encoder",
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 8,
        "intermediate_size": 4096,
        "hidden_act": "silu",
        "attention_bias": True,
        "convolution_bias": True,
        "conv_kernel_size": 9,
        "subsampling_factor": 8,
        "subsampling_conv_channels": 256,
        "num_mel_bins": 80,
        "scale_input": True,
    },
}
FEATURES = {
    "feature_extractor_type": "ParakeetFeatureExtractor",
    "sampling_rate": 16000,
    "feature_size": 80,
    "n_fft": 512,
    "win_length": 400,
    "hop_length": 160,
    "preemphasis": 0.97,
}
RATE, RUNS, TURNS = 16000, 5, 3


def values(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return values of a tensor with which activations stay finite: gains 1, maps that keep the variance."""
    if name.endswith(".weight") and len(shape) > 1:
        return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(math.prod(shape[1:])))
    if name.endswith((".weight", ".running_var")):
        return np.ones(shape, np.float32)
    return rng.standard_normal(shape, np.float32) / np.float32(10)


def write_folder(folder: Path, kind: str) -> None:
    """Write the checkpoint, one tensor at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES, indent=1))
    write_tokenizer(folder / "tokenizer.json")
    config = parakeet.config(Settings(folder / "config.json", CONFIG))
    wanted = dict(leaves(dict(zip(("p", "statistics"), conformer_shapes(config), strict=True))))
    rows = [row for row in parakeet.rows(config) if row.ours in wanted]
    shapes = {
        row.theirs: shape_before(row.form, wanted[row.ours].shape, 2 if "subsampling" in row.theirs else 1)
        for row in rows
    }
    header, offset, bytes_each = {"__metadata__": {"format": "pt"}}, 0, 2 if kind == "bf16" else 4
    for name, shape in shapes.items():
        end = offset + bytes_each * math.prod(shape)
        header[name] = {"dtype": "BF16" if kind == "bf16" else "F32", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng, temporary = np.random.default_rng(1), folder / "model.safetensors.part"
    with temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            a = values(name, shape, rng)
            file.write((a.view(np.uint32) >> 16).astype("<u2").data if kind == "bf16" else a.data)
    temporary.rename(folder / "model.safetensors")


def write_tokenizer(path: Path) -> None:
    """Write a tokenizer of 1024 made-up pieces; the blank is label 1024."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = [f"{start}{letter}" for start in ("▁", "") for letter in string.ascii_lowercase]
    pairs = (f"▁{a}{b}" for a, b in product(string.ascii_lowercase, repeat=2))
    triples = (f"{a}{b}{c}" for a, b, c in product(string.ascii_lowercase, repeat=3))
    pieces = ["<unk>", "▁", *letters, *pairs, *triples][:1024]
    merges = [(f"▁{p[1]}", p[2]) for p in pieces if p.startswith("▁") and len(p) == 3]
    tokenizer = Tokenizer(models.BPE({p: n for n, p in enumerate(pieces)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    tokenizer.save(str(path))


def sound(seconds: float) -> np.ndarray:
    """Return noise that swells and fades, float32."""
    time = np.arange(round(seconds * RATE)) / RATE
    return (np.random.default_rng(2).normal(0, 0.1, len(time)) * np.sin(3 * time)).astype(np.float32)


def our_forward(folder: Path) -> Callable[[np.ndarray], list[int]]:
    """Return what turns samples into labels here."""
    keep_freed_memory()  # as the command does
    recogniser = load_backbone(folder)

    def run(samples: np.ndarray) -> list[int]:
        logits, valid = infer(recogniser.model, *pad([recogniser.features(samples)]))
        assert np.isfinite(logits).all()
        return list(greedy_decode(logits, valid, blank=recogniser.tokenizer.blank)[0])

    return run


def their_forward(folder: Path) -> Callable[[np.ndarray], list[int]]:
    """Return what turns samples into labels in transformers. Without librosa, its features are ours, at no cost."""
    import torch
    from transformers import ParakeetFeatureExtractor, ParakeetForCTC

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = ParakeetForCTC.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    blank, made = model.config.pad_token_id, {}
    try:
        extractor = ParakeetFeatureExtractor.from_pretrained(folder)
    except ImportError:
        print("librosa is missing: transformers is given our features, at no cost", file=sys.stderr)
        extractor, ours = None, load_backbone(folder).features

    @torch.inference_mode()
    def run(samples: np.ndarray) -> list[int]:
        if extractor is not None:
            made.update(extractor(samples, sampling_rate=RATE, return_tensors="pt"))
        elif not made:
            features = torch.from_numpy(ours(samples))[None]
            made.update(input_features=features, attention_mask=torch.ones(features.shape[:2], dtype=torch.bool))
        best = torch.unique_consecutive(model(**made).logits[0].argmax(-1)).tolist()
        return [label for label in best if label != blank]

    return run


FORWARDS = {"ours": our_forward, "theirs": their_forward}


def time_forward(which: str, folder: Path, seconds: float) -> None:
    """Print the times of the runs and the labels, as JSON."""
    run, samples, times, labels = FORWARDS[which](folder), sound(seconds), [], []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        labels = run(samples)
        times.append(time.perf_counter() - start)
    print(json.dumps({"times": times[1:], "labels": labels}))


def fresh(command: list[str], threads: int) -> tuple[str, float, float]:
    """Run a command in a clean environment; return its output, its peak memory in MB, and its seconds."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    for library in ("OMP", "OPENBLAS", "MKL"):
        environment[f"{library}_NUM_THREADS"] = str(threads)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {status}")
    return output, usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> None:
    """Write the folder, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", choices=["f32", "bf16"], default="f32", help="of the weights on disk")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the recording")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", choices=FORWARDS, help="time one of the two in this process")
    arguments = parser.parse_args()
    folder, seconds = arguments.folder, arguments.seconds
    if arguments.alone:
        time_forward(arguments.alone, folder, seconds)
        return
    if not (folder / "model.safetensors").is_file():
        write_folder(folder, arguments.type)
    soundfile.write(folder / "noise.wav", sound(seconds), RATE)
    minihra = ["-m", "minihra"]
    print("| command | peak memory | seconds |\n|---|---|---|")
    for command in (
        ["inspect", str(folder), "--seconds", str(seconds)],
        ["transcribe", "--backbone", str(folder), str(folder / "noise.wav")],
    ):
        _, memory, took = fresh([*minihra, *command], arguments.threads)
        print(f"| {command[0]} | {memory:.0f} MB | {took:.1f} |", flush=True)
    results: dict[str, list[float]] = {which: [] for which in FORWARDS}
    labels, peaks = {}, {}
    for which in [*FORWARDS] * TURNS:
        command = [__file__, str(folder), "--seconds", str(seconds), "--alone", which]
        output, peaks[which], _ = fresh(command, arguments.threads)
        result = json.loads(output)
        results[which].append(median(result["times"]))
        print(f"{which}: {results[which][-1] / seconds:.4f}", file=sys.stderr, flush=True)
        labels[which] = result["labels"]
    print("\n| program | seconds for a second of sound, in turn | peak memory |\n|---|---|---|")
    for which, times in results.items():
        print(f"| {which} | {', '.join(f'{t / seconds:.4f}' for t in times)} | {peaks[which]:.0f} MB |")
    ratio, same_labels = median(results["ours"]) / median(results["theirs"]), labels["ours"] == labels["theirs"]
    print(f"\nratio {ratio:.2f}; {'the same' if same_labels else 'OTHER'} labels ({len(labels['ours'])})")


if __name__ == "__main__":
    main()
