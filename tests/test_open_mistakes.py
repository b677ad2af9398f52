"""Mistakes with open checkpoints: one clear line each, and exit status 2, whichever command meets them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file, save_file

from minihra.cli import main

GOLDEN = Path(__file__).parent / "golden_open"
PARAKEET, LASR, BERT, CONFORMER = "parakeet", "lasr", "wav2vec2_bert", "wav2vec2_conformer"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a second of noise, a hundredth, and a manifest of both."""
    folder = tmp_path_factory.mktemp("sound")
    noise = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
    soundfile.write(folder / "second.wav", noise, 16000)
    soundfile.write(folder / "short.wav", noise[:640], 16000)
    rows = [{"audio_filepath": f"{name}.wav", "text": "one", "speaker": "ann"} for name in ("second", "short")]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def commands(backbone: Path | str, sound: Path, out: Path) -> list[list[str]]:
    """Every command that reads a backbone."""
    manifest = ["--manifest", str(sound / "manifest.jsonl")]
    return [
        ["transcribe", "--backbone", str(backbone), str(sound / "second.wav")],
        ["eval", "--backbone", str(backbone), *manifest],
        ["adapt", "--backbone", str(backbone), *manifest, "--task-by", "speaker", "--steps", "1", "--out", str(out)],
    ]


def refused(backbone: Path | str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """Check that every command fails with one and the same line, which says all of `parts`."""
    lines = set()
    for command in commands(backbone, sound, tmp_path / "out"):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        lines.add(printed.err)
    (line,) = lines
    assert line.startswith("minihra: ")
    for part in parts:
        assert part in line, line
    assert not (tmp_path / "out").exists()


def edit(file: str, *path: str, **values: Any) -> Change:
    """Change settings in a JSON file, under the keys `path`; ... takes one away."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        place = content
        for key in path:
            place = place[key]
        place.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del place[key]
        (folder / file).write_text(json.dumps(content))

    return change


def config(**values: Any) -> Change:
    return edit("config.json", **values)


def encoder(**values: Any) -> Change:
    return edit("config.json", "encoder_config", **values)


def text(file: str, content: str) -> Change:
    return lambda folder: (folder / file).write_text(content) and None


def remove(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def shorten(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:-10]) and None


def tensors(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Change:
    def edit_tensors(folder: Path) -> None:
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")

    return edit_tensors


def three_faults(t: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    del t["encoder.layers.0.self_attn.bias_u"]
    return t | {"encoder.more": np.zeros(3, np.float32), "ctc_head.bias": np.zeros(3, np.float32)}


def with_archive(name: str) -> Change:
    """Replace the weights by an archive of pickles."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(b"\x80\x04.")

    return change


def sharded(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


KNOWN = "known: parakeet_ctc, lasr_ctc, wav2vec2-bert, wav2vec2-conformer"
CONVERT = "a pickle, which is never read here; convert it once, where PyTorch and transformers are installed, by "
MISTAKES: dict[str, tuple[str, Change, tuple[str, ...]]] = {
    "an unknown model": (
        *(PARAKEET, config(model_type="whisper")),
        ("config.json: unknown model type 'whisper'; " + KNOWN,),
    ),
    "a transducer": (PARAKEET, config(model_type="parakeet_tdt"), ("unknown model type 'parakeet_tdt'; " + KNOWN,)),
    "an odd model type": (PARAKEET, config(model_type=["x"]), ("unknown model type ['x']; " + KNOWN,)),
    "no model type": (BERT, config(model_type=...), ("config.json: neither of a backbone of minihra nor of an open",)),
    "no JSON": (LASR, text("config.json", "{"), ("config.json: not JSON (Expecting",)),
    "no object": (LASR, text("config.json", "[1]"), ("config.json: not a JSON object",)),
    "not even text": (
        LASR,
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00") and None,
        ("config.json: not JSON (",),
    ),
    "deep JSON": (LASR, text("config.json", "[" * 100000), ("config.json: not JSON (",)),
    # settings
    "a size in words": (BERT, config(hidden_size="big"), ("config.json: hidden_size must be like 1024, got 'big'",)),
    "a size of null": (BERT, config(num_hidden_layers=None), ("num_hidden_layers must be like 24, got None",)),
    "a broken size": (
        PARAKEET,
        encoder(num_attention_heads=2.5),
        ("encoder_config.num_attention_heads must be like 8",),
    ),
    "a true size": (PARAKEET, encoder(hidden_size=True), ("encoder_config.hidden_size must be like 1024, got True",)),
    "no heads": (
        PARAKEET,
        encoder(num_attention_heads=0),
        ("encoder_config.num_attention_heads must be at least 1, got 0",),
    ),
    "a negative size": (PARAKEET, encoder(hidden_size=-4), ("encoder_config.hidden_size must be at least 1, got -4",)),
    "heads that do not fit": (
        LASR,
        encoder(num_attention_heads=3),
        ("config.json: width must be a multiple of heads",),
    ),
    "a word for a truth": (LASR, encoder(attention_bias="no"), ("encoder_config.attention_bias must be like False",)),
    "absurdly many layers": (
        PARAKEET,
        encoder(num_hidden_layers=100000),
        ("config.json: layers must be at most 1000, got 1",),
    ),
    "an absurd size": (
        BERT,
        config(hidden_size=10**30),
        ("config.json: width of a stage must be at most 1000000, got 1000",),
    ),
    "no eps": (LASR, encoder(layer_norm_eps=0), ("config.json: eps must be a finite number above 0, got 0",)),
    "an eps of NaN": (
        *(CONFORMER, config(layer_norm_eps=float("nan"))),
        ("config.json: eps of a stage must be a finite number above 0, got nan",),
    ),
    "an eps that no float holds": (BERT, config(layer_norm_eps=10**400), ("must be a finite number above 0, got 10",)),
    "a negative distance": (
        *(BERT, config(left_max_position_embeddings=-1)),
        ("config.json: left_max_position_embeddings must be at least 0, got -1",),
    ),
    "half a distance": (
        *(BERT, config(right_max_position_embeddings=2.5)),
        ("config.json: right_max_position_embeddings must be like 8, got 2.5",),
    ),
    "a rotation without a base": (
        *(LASR, edit("config.json", "encoder_config", "rope_parameters", rope_theta=1)),
        ("config.json: rotary_base must be a finite number above 1, got 1.0",),
    ),
    "a base that no float holds": (
        *(LASR, edit("config.json", "encoder_config", "rope_parameters", rope_theta=10**400)),
        ("config.json: ",),
    ),
    "an infinite weight": (
        *(LASR, encoder(conv_residual_weights=[1, float("inf")])),
        ("config.json: weights of conv must be a pair of finite numbers, got (1.0, inf)",),
    ),
    "a list for a part": (LASR, config(encoder_config=[1]), ("encoder_config must be an object, got [1]",)),
    "a stride of 0": (LASR, encoder(subsampling_conv_stride=0), ("subsampling_conv_stride must be at least 1, got 0",)),
    "one weight": (LASR, encoder(conv_residual_weights=[1]), ("conv_residual_weights must be a list of two numbers",)),
    "other rotations": (
        *(LASR, edit("config.json", "encoder_config", "rope_parameters", rope_type="yarn")),
        ("encoder_config.rope_parameters.rope_type is 'yarn', which is not supported; known: default",),
    ),
    "strides of 0": (CONFORMER, config(conv_stride=[5, 0, 4]), ("conv_stride must be a list of whole numbers of at",)),
    "lists of two lengths": (
        CONFORMER,
        config(conv_stride=[5, 4]),
        ("conv_kernel and conv_stride must be of one length",),
    ),
    "a norm of its own": (
        CONFORMER,
        config(feat_extract_norm="batch"),
        ("feat_extract_norm is 'batch', which is not",),
    ),
    "no such position": (
        *(CONFORMER, config(position_embeddings_type="relative_key")),
        ("position_embeddings_type is 'relative_key', which is not supported; known: relative, rotary, None",),
    ),
    "no such activation": (
        *(BERT, config(hidden_act="tanh")),
        ("hidden_act is 'tanh', which is not supported; known: silu, swish, gelu, relu",),
    ),
    "an adapter of its own": (
        BERT,
        config(add_adapter=True),
        ("add_adapter is true: the model has layers of its own",),
    ),
    "no CTC head": (BERT, config(vocab_size=None), ("no vocab_size: the model has no CTC head",)),
    "a blank too far": (
        *(PARAKEET, config(pad_token_id=41)),
        ("pad_token_id, CTC's blank, must be one of 41 labels, got 41",),
    ),
    "no blank": (BERT, config(pad_token_id=None), ("pad_token_id must be like 0, got None",)),
    # features
    "features of another width": (
        *(LASR, edit("preprocessor_config.json", feature_size=20)),
        ("the features hold 20 numbers a frame, but the model takes 16",),
    ),
    "features of another family": (
        *(LASR, edit("preprocessor_config.json", feature_extractor_type="WhisperFeatureExtractor")),
        ("feature_extractor_type must be 'LasrFeatureExtractor', got 'WhisperFeatureExtractor'",),
    ),
    "features of a word": (
        *(PARAKEET, edit("preprocessor_config.json", hop_length="10 ms")),
        ("hop_length must be a whole number of at least 1, got '10 ms'",),
    ),
    "an absurd hop": (
        *(PARAKEET, edit("preprocessor_config.json", hop_length=10**30)),
        ("hop_length must be at most 65536, got 1000000",),
    ),
    "an absurd transform": (
        *(LASR, edit("preprocessor_config.json", n_fft=10**12)),
        ("n_fft must be at most 65536, got 1000000000000",),
    ),
    "features without JSON": (
        CONFORMER,
        text("preprocessor_config.json", "{"),
        ("preprocessor_config.json: not JSON (",),
    ),
    # tokenizers
    "no vocab.json": (BERT, remove("vocab.json"), ("vocab.json: cannot be read (No such file or directory)",)),
    "no vocabulary": (CONFORMER, text("vocab.json", "{"), ("vocab.json: not JSON (",)),
    "a vocabulary too large": (
        BERT,
        edit("vocab.json", x=99),
        ("vocab.json: token 'x' has the label 99, but the model",),
    ),
    "no tokenizer.json": (
        PARAKEET,
        remove("tokenizer.json"),
        ("tokenizer.json: cannot be read (No such file or directory)",),
    ),
    "no tokenizer": (LASR, text("tokenizer.json", "{"), ("tokenizer.json: not JSON (",)),
    # tensors
    "a truncated file": (BERT, shorten("model.safetensors"), ("model.safetensors: not a whole safetensors file (",)),
    "an empty file": (
        BERT,
        lambda f: (f / "model.safetensors").write_bytes(b"") and None,
        ("not a whole safetensors",),
    ),
    "no tensors": (BERT, remove("model.safetensors"), ("no model.safetensors and no model.safetensors.index.json",)),
    "three faults": (
        *(PARAKEET, tensors(three_faults)),
        (
            ": other tensors than its config.json asks for: ",
            "1 missing: encoder.layers.0.self_attn.bias_u; ",
            "1 extra: encoder.more; ",
            "1 misshapen: ctc_head.bias (3,)",
        ),
    ),
    "a number for a matrix": (
        *(PARAKEET, tensors(lambda t: t | {"encoder.subsampling.linear.weight": np.array(1, np.float32)})),
        ("1 misshapen: encoder.subsampling.linear.weight ()",),
    ),
    "another size": (BERT, config(hidden_size=16), ("misshapen: wav2vec2_bert.", ", ...")),
    "more layers": (BERT, config(num_hidden_layers=3), (" missing: wav2vec2_bert.encoder.layers.2.", ", ...")),
    "whole numbers": (
        *(BERT, tensors(lambda t: t | {"lm_head.bias": np.zeros(15, np.int64)})),
        ("1 of a type other than F64, F32, F16, BF16: lm_head.bias I64",),
    ),
    "a missing shard": (
        *(BERT, sharded({"lm_head.bias": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"})),
        ("model.safetensors.index.json: names files that are missing: model-2.safetensors",),
    ),
    "an index of numbers": (BERT, sharded({"lm_head.bias": 1}), ("names files that are missing: 1",)),
    "an index of nothing": (BERT, sharded([1]), ("index.json: has no weight_map from tensors to files",)),
    # pickles
    **{
        f"weights in a {name}": (BERT, with_archive(name), (f"{name}: {CONVERT}Model.from_pretrained(",))
        for name in ("pytorch_model.bin", "model.ckpt", "model.pt")
    },
    "weights in a .nemo": (BERT, with_archive("model.nemo"), ("a NeMo archive holds pickles, which are never read",)),
}

OPENED: list[str] | None = None
"""Every file that was opened, while a test has made this a list."""


def _listen(event: str, arguments: tuple) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths: list[str] = []
    monkeypatch.setattr(f"{__name__}.OPENED", paths)
    return paths


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_folder(
    mistake: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    family, change, parts = MISTAKES[mistake]
    if family in (PARAKEET, LASR):
        pytest.importorskip("tokenizers", reason="a tokenizer.json needs the extra: pip install 'minihra[tokenizers]'")
    folder = tmp_path / "folder"
    shutil.copytree(GOLDEN / family, folder)
    change(folder)
    opened.clear()
    refused(folder, sound, tmp_path, capsys, str(folder), *parts)
    assert any(path.startswith(str(folder)) for path in opened)
    assert not any(path.endswith((".bin", ".ckpt", ".pt", ".nemo")) for path in opened)


@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.nemo"])
def test_archives_are_told_how_to_convert(
    name: str, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], opened: list[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(b"\x80\x04.")
    opened.clear()
    for backbone in (folder, folder / name):
        refused(backbone, sound, tmp_path, capsys, f"{folder / name}: ", "never read here; convert it once")
    assert not any(path.endswith(name) for path in opened)


def test_a_folder_of_none_of_these(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, sound, tmp_path, capsys, f"{empty}: no backbone in this folder (neither a config.json nor a step-")
    (empty / "README.md").write_text("nothing")
    refused(empty, sound, tmp_path, capsys, f"{empty}: no backbone in this folder")
    nowhere = tmp_path / "nowhere"
    refused(nowhere, sound, tmp_path, capsys, f"{nowhere}: no such folder; a backbone is a folder, or the name hama")
    refused(
        sound / "second.wav", sound, tmp_path, capsys, "second.wav: a file; a backbone is a folder, or the name hama"
    )


def test_an_adapter_for_another_backbone(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter, other = tmp_path / "adapter", tmp_path / "other"
    shutil.copytree(GOLDEN / BERT, other)
    edited = tensors(lambda t: t | {"lm_head.bias": t["lm_head.bias"] + 1})
    edited(other)
    assert main(commands(GOLDEN / BERT, sound, adapter)[2]) == 0
    capsys.readouterr()
    for backbone in (GOLDEN / CONFORMER, other):
        transcribe, evaluate, adapt = commands(backbone, sound, tmp_path / "out")
        for command in ([*transcribe, "--task", "ann"], evaluate, adapt):
            assert main([*command, "--adapter", str(adapter)]) == 2
            printed = capsys.readouterr().err
            assert "this adapter is for the backbone " in printed and printed.count("\n") == 1
    transcribe, evaluate, _ = commands(GOLDEN / BERT, sound, tmp_path / "out")
    for command in ([*transcribe, "--task", "ann"], evaluate):
        assert main([*command, "--adapter", str(adapter)]) == 0


@pytest.mark.parametrize(("family", "samples"), [(CONFORMER, 50), (LASR, 640)])
def test_a_recording_without_a_frame_is_silence(
    family: str, samples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Front ends without padding make no frame of a very short recording, which the features still take."""
    if family == LASR:
        pytest.importorskip("tokenizers", reason="a tokenizer.json needs the extra: pip install 'minihra[tokenizers]'")
    short = tmp_path / "short.wav"
    soundfile.write(short, np.random.default_rng(0).normal(0, 0.1, samples), 16000)
    assert main(["transcribe", "--backbone", str(GOLDEN / family), str(short)]) == 0
    assert capsys.readouterr().out == "\n"


def test_a_short_file_of_hama(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hama", reason="needs minihra[hama]")
    from minihra.speech.phonemes import hama_assets

    data = (hama_assets() / "asr_waveform.hama").read_bytes()
    monkeypatch.setattr("minihra.loaders.backbone.hama_assets", lambda: tmp_path)
    for content, part in (
        (data[:-1000], "not a whole file of hama's (the tensor "),
        (data[:500], "not a whole file of hama's ("),
        (data[:9], "not a whole file of hama's ("),
        (b"", "it begins with b'', not with b'HAMAPK'"),
        (data.replace(b"onnx::MatMul_829", b"onnx::MatMuX_829"), "tensors onnx::MatMul_..., but the model has "),
        (data.replace(b"mel_fb", b"mel_fx"), "lacks mel_fb: another version"),
    ):
        (tmp_path / "asr_waveform.hama").write_bytes(content)
        refused("hama", sound, tmp_path, capsys, part)
    (tmp_path / "asr_waveform.hama").unlink()
    refused("hama", sound, tmp_path, capsys, "asr_waveform.hama: not a whole file of hama's (")
    monkeypatch.undo()
    monkeypatch.setattr("minihra.speech.phonemes.importlib.util.find_spec", lambda name: None)
    refused("hama", sound, tmp_path, capsys, "the package hama is missing: pip install 'minihra[hama]'")
