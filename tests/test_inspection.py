"""`minihra inspect`: what it says of a backbone, and that the memory it foretells is what the model takes."""

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from minihra.adapters.hra import HRA
from minihra.blocks.config import ConformerConfig, Stages, Subsampling
from minihra.blocks.initial import initial_conformer
from minihra.blocks.parameters import conformer_shapes
from minihra.blocks.stages import Stage
from minihra.cli import main
from minihra.inspection import inspect_backbone
from minihra.loaders import parakeet
from minihra.loaders.hama import CONFIG as HAMA
from minihra.loaders.settings import Settings
from minihra.loaders.table import shape_before
from minihra.memory import (
    AdapterShape,
    largest_parts,
    memory_of_inference,
    memory_of_step,
    peak_of_infer,
    peak_of_step,
    same_labels,
)
from minihra.model import backward, ctc_loss, forward, infer
from minihra.ops import references
from minihra.recogniser import Recogniser, save_backbone
from minihra.speech.alphabet import Alphabet
from minihra.speech.features import LogMel
from minihra.tree import count, leaves
from minihra.weightless import Weightless

WAVE = (
    Stage(48, 10, 5, bias=False, norm="instance", activation="gelu"),
    *(Stage(48, 3, 2, bias=False, activation="gelu") for _ in range(3)),
    Stage(norm="layer"),
    Stage(48),
)
CONFIGS = {
    "conformer": ConformerConfig(labels=30),
    "hama": HAMA,
    "parakeet": ConformerConfig(
        labels=257, mels=80, width=128, layers=5, kernel=9, front_end=Subsampling(3, 64, separable=True)
    ),
    "waveform": ConformerConfig(
        labels=32, mels=1, width=48, kernel=31, position="rotary_input", activation="gelu", front_end=Stages(WAVE)
    ),
    "shaw": ConformerConfig(
        labels=32, mels=160, position="shaw", causal=True, conv_norm="layer", front_end=Stages((Stage(96),))
    ),
    "rotary": ConformerConfig(
        labels=512,
        mels=128,
        kernel=32,
        position="rotary",
        bias=False,
        conv_bias=False,
        out_norm=1e-6,
        front_end=Stages((Stage(96, 5, 2, activation="relu"), Stage(64, 5, 2, activation="relu"), Stage(96))),
    ),
}
SIZES = ((1, 100), (3, 260), (1, 700))  # (utterances, feature frames)
ADAPTERS = (
    AdapterShape(24),
    AdapterShape(16, "indrnn", "ffn", 8),
    AdapterShape(16, "li_gru"),
    AdapterShape(16, "rnn"),
    AdapterShape(8, "none"),
)


def peak(action: Callable[[], None]) -> int:
    action()  # a first time, in which twins are compiled
    tracemalloc.start()
    action()
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_memory_is_that_of_the_model(name: str, size: tuple[int, int]) -> None:
    """To 15 %: NumPy reuses some operands, which the estimate does not see, and Python's own objects count here."""
    config, (B, T), adapter = CONFIGS[name], size, ADAPTERS[len(name) % len(ADAPTERS)]
    T = 40 * T if name == "waveform" else T
    model, labels = replace(initial_conformer(config, 0), frozen=True), config.front_end.frames(T) // 3
    hra = HRA(
        config.width, adapter.state_size, cell=adapter.controller, head=adapter.head, bottleneck=adapter.bottleneck
    )
    hra.add_task("task")

    def inference() -> None:
        infer(model.settled(), np.zeros((B, T, config.mels), np.float32), np.full(B, T))

    def step(recompute: bool = False) -> None:
        edit = hra.edit(["task"] * B)
        features = np.ones((B, T, config.mels), np.float32)
        logits, cache = forward(model.settled(), features, np.full(B, T), edit, recompute=recompute)
        del features
        with np.errstate(all="ignore"):
            backward(ctc_loss(logits, cache.context.valid, same_labels(B, labels))[1], cache)

    assert peak_of_infer(config, B, T) == pytest.approx(peak(inference), rel=0.15)
    kept, highest = peak_of_step(config, adapter, B, T, labels)
    assert highest == pytest.approx(peak(step), rel=0.15)
    assert 0 < kept <= highest
    less_kept, less = peak_of_step(config, adapter, B, T, labels, recompute=True)
    assert less == pytest.approx(peak(partial(step, recompute=True)), rel=0.15)
    assert 0 < less_kept < kept and less <= highest


def test_an_adapter_keeps_nothing_at_inference() -> None:
    """Of its own state, which goes up the layers, it takes a little; the caches of the frozen branches are not kept."""
    model = replace(initial_conformer(CONFIGS["conformer"], 0), frozen=True)
    features, lengths = np.zeros((3, 400, model.config.mels), np.float32), np.full(3, 400)
    hra = HRA(model.config.width, 8)
    hra.add_task("task")
    frozen = peak(lambda: infer(model, features, lengths))
    assert peak(lambda: infer(model, features, lengths, hra.edit(["task"] * 3))) < 1.1 * frozen


def test_long_recordings_take_the_memory_of_their_pieces() -> None:
    one, long = (memory_of_inference(CONFIGS["conformer"], 0.01, 1, seconds) for seconds in (30, 3000))
    four = memory_of_inference(CONFIGS["conformer"], 0.01, 4, 30)
    features_and_logits = 4 * (300_000 * 40 + 115 * 750 * 30)
    assert one.working < four.working <= long.working < four.working + features_and_logits


def test_a_step_takes_the_memory_of_the_parts_that_threads_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_threads(number: int) -> None:
        for module in ("memory", "parts"):
            monkeypatch.setattr(f"minihra.{module}.threads", lambda: number)

    lengths, config, shape = [900, 2000, 1600, 1700], CONFIGS["conformer"], AdapterShape()
    for threads, parts in (
        (1, ((3, 1700),)),
        (2, ((3, 1700), (1, 2000))),
        (9, ((1, 2000), (1, 1700), (1, 1600), (1, 900))),
    ):
        with_threads(threads)
        assert largest_parts(lengths) == parts
    works = []
    for threads in (1, 2, 4):
        with_threads(threads)
        works.append(memory_of_step(config, 0.01, shape, 4, 10.0).working)
    one, two = (peak_of_step(config, shape, n, 1000, config.front_end.frames(1000) // 3)[1] for n in (1, 2))
    features = 4 * 4000 * config.mels
    assert works == [features + two, features + 2 * two, features + 4 * one]
    kept, less = (memory_of_step(config, 0.01, shape, 4, 10.0, recompute=how).kept for how in (False, True))
    assert less < kept / 4  # what goes into a layer, and not what lies in it


def test_nothing_is_allocated() -> None:
    big = ConformerConfig(labels=1025, mels=80, width=1024, layers=24, heads=8, front_end=Subsampling(3, 256, True))
    assert peak(lambda: peak_of_infer(big, 4, 3000)) < 10e6
    assert peak(lambda: peak_of_step(big, AdapterShape(), 4, 1000, 40)) < 10e6
    with references():
        assert peak_of_infer(big, 4, 3000) > 800e6
    assert peak_of_infer(big, 4, 3000) > 500e6


def test_an_array_counts_until_its_last_view_is_gone() -> None:
    xp = Weightless()
    x = xp.empty((2, 3, 4))
    view = x.swapaxes(1, 2)
    assert xp.held == 96
    copied = view.reshape(2, 12)
    assert (xp.held, copied.shape) == (192, (2, 12))
    del x, copied
    assert xp.held == 96
    del view
    assert (xp.held, xp.peak) == (0, 192)
    xp.empty((2,))
    assert (xp.peak, xp.made) == (192, 192 + 8)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A backbone as `minihra pretrain` writes it."""
    alphabet = Alphabet.of(["ab c"])
    model = initial_conformer(ConformerConfig(labels=len(alphabet), width=16, layers=2, heads=2, kernel=3), 0)
    save_backbone(Recogniser(model, LogMel(8000), alphabet), tmp_path)
    return tmp_path


CONTENT = {
    "model_type": "parakeet_ctc",
    "vocab_size": 7,
    "pad_token_id": 6,
    "encoder_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_kernel_size": 5,
        "subsampling_conv_channels": 8,
    },
}


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A tiny Parakeet without a tokenizer."""
    (tmp_path / "config.json").write_text(json.dumps(CONTENT))
    config = parakeet.config(Settings(tmp_path / "config.json", CONTENT))
    wanted = dict(leaves(dict(zip(("p", "statistics"), conformer_shapes(config), strict=True))))
    tensors = {}
    for row in parakeet.rows(config):
        if row.ours in wanted:
            dimensions = 2 if "subsampling" in row.theirs else 1
            tensors[row.theirs] = np.ones(shape_before(row.form, wanted[row.ours].shape, dimensions), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


def test_a_backbone_of_our_own(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, str(own), "--seconds", "45", "--batch", "2")
    number = count(conformer_shapes(inspect_backbone(str(own)).source.config)[0])
    for part in (
        "family      minihra\n",
        "2 layers of width 16; 2 heads, feed-forward 64, kernel 3\n",
        "relative positions; convolution with batch norm; swish\n",
        "2 3x3 convolutions of 16 channels; 4 frames of features in one\n",
        f"{number:,}; stored as float32 ",
        "100 Hz in, 25 Hz out\n",
        "usable for  transcribe, eval and adapt\n",
        "memory to recognise 2 recordings of 45 s, in pieces of 30 s\n",
        "memory of a step of adaptation on 2 recordings of 45 s (HRA: gru of 32, linear head)\n",
    ):
        assert part in text
    assert "no " not in text


def test_the_tensors_of_our_own_can_be_read(own: Path) -> None:
    source = inspect_backbone(str(own)).source
    p, statistics = source.parameters()
    stored = source.tensors()
    wanted = dict(leaves({"p": p, "statistics": statistics}))
    assert stored.keys() == wanted.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(stored[name].read(), leaf)


def test_json(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(said(capsys, str(own), "--json", "--head", "ffn", "--bottleneck", "3"))
    assert report.keys() == {
        *("family", "place", "config", "parameters", "features", "frame_rate", "tokenizer", "faults", "usable_for"),
        "memory",
    }
    assert report["frame_rate"] == 25
    assert report["config"]["inner"] == 64
    assert report["parameters"].keys() == {"count", "float32_bytes", "stored_bytes"}
    assert report["features"].keys() == {"text", "sample_rate", "width", "hop"}
    assert report["tokenizer"].keys() == {"text", "labels", "blank", "unit"}
    assert report["usable_for"] == {"logits": True, "inference": True, "adaptation": True}
    assert report["memory"].keys() == {"inference", "adaptation_step"}
    for its in report["memory"].values():
        assert its["total"] == its["weights"] + its["adapter"] + its["working"]


def test_a_folder_without_a_tokenizer(open_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, str(open_folder))
    assert "family      Parakeet-CTC\n" in text
    assert f"no tokenizer{open_folder / 'tokenizer.json'}: " in text.replace("\n" + " " * 12, "")
    assert "usable for  logits from Python alone\n" in text
    assert "not for     transcribe, eval and adapt: they take the tokenizer\n" in text
    report = json.loads(said(capsys, str(open_folder), "--json"))
    assert report["tokenizer"] is None
    assert report["faults"].keys() == {"tokenizer"}
    assert report["usable_for"] == {"logits": True, "inference": False, "adaptation": False}


def test_missing_tensors_and_features_are_told(open_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(open_folder / "model.safetensors")
    del tensors["ctc_head.bias"]
    save_file(tensors, open_folder / "model.safetensors")
    (open_folder / "preprocessor_config.json").write_text('{"feature_size": 8}')
    text = said(capsys, str(open_folder))
    assert "1 missing: ctc_head.bias\n" in text
    assert "the features hold 8 numbers a frame, but the model takes 80\n" in text
    assert "usable for  nothing\n" in text
    for unknown in ("memory to", "frame rate", "stored as", "None"):
        assert unknown not in text
    report = json.loads(said(capsys, str(open_folder), "--json"))
    assert report["faults"].keys() == {"weights", "features", "tokenizer"}
    assert report["features"] is report["frame_rate"] is report["parameters"]["stored_bytes"] is None
    assert report["memory"] == {"inference": None, "adaptation_step": None}
    (open_folder / "model.safetensors").unlink()
    assert "no model.safetensors" in said(capsys, str(open_folder))


def test_types_on_disk(open_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(open_folder / "model.safetensors")
    tensors = {name: a.astype(np.float16) if a.ndim > 1 else a for name, a in tensors.items()}
    save_file(tensors, open_folder / "model.safetensors")
    stored = json.loads(said(capsys, str(open_folder), "--json"))["parameters"]["stored_bytes"]
    assert stored == {
        "float16": sum(a.nbytes for a in tensors.values() if a.ndim > 1),
        "float32": sum(a.nbytes for a in tensors.values() if a.ndim == 1),
    }
    tensors["ctc_head.bias"] = np.ones(7, np.int32)
    save_file(tensors, open_folder / "model.safetensors")
    assert "1 of a type other than F64, F32, F16, BF16: ctc_head.bias I32\n" in said(capsys, str(open_folder))


@pytest.mark.skipif(find_spec("hama") is None, reason="needs hama")
def test_hama(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "hama")
    assert "2,004,095; stored as float16 4.01 MB; 8.02 MB in memory, as float32\n" in text
    assert "no positions; convolution with no norm; swish\n" in text
    assert "191 labels, blank 190\n" in text


@pytest.mark.parametrize(
    ("arguments", "report"),
    [
        (["--seconds", "0"], "--batch must be at least 1 and --seconds above 0, got 1 and 0.0"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--seconds", "0.001"], "--seconds 0.001 is less than one frame of this model"),
        (["--controller", "lstm"], "unknown cell 'lstm'; known: gru"),
        (["--bottleneck", "4"], "a linear head has no bottleneck"),
        (["--state-size", "0"], "must be at least 1"),
    ],
)
def test_mistakes(own: Path, arguments: list[str], report: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(own), *arguments]) == 2
    assert report in capsys.readouterr().err


def test_an_unknown_model_type_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    assert main(["inspect", str(tmp_path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert "unknown model type 'whisper'; known: parakeet_ctc" in error


def test_help_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", "--help"])
    text = capsys.readouterr().out
    for part in ("BACKBONE", "hama", "--seconds", "--batch", "--state-size", "--json", "memory"):
        assert part in text
