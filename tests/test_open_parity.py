"""Open checkpoints here and in transformers: layers, logits, gradients of an HRA, weights, memory, whole commands."""

# ruff: noqa: E402  (without PyTorch the rest of this file cannot be imported)

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

for package in ("torch", "transformers", "tokenizers"):
    pytest.importorskip(package, reason="parity with transformers needs the extra: pip install 'minihra[parity]'")

import torch
import torch.nn.functional as F  # noqa: N812

from minihra.adapters.hra import HRA
from minihra.arrays import Array
from minihra.blocks.conformer import Conformer
from minihra.blocks.self_attention import position_table
from minihra.cli import main
from minihra.loaders.backbone import open_backbone
from minihra.model import backward, ctc_loss, forward, pack_labels
from minihra.tree import leaves, map_leaves
from tests.open_models import FIRST, LETTERS, VARIANTS, WORDS, Inputs, extractor_of, inputs_of, make, save, voice
from tests.torch_twin import Adapter, unflatten

LENGTHS = (23, 14, 5, 1)
SINGLE = 1e-5  # of the maximum, in float32
DOUBLE = 1e-8  # of the maximum, in float64
every_variant = pytest.mark.parametrize("name", VARIANTS)
each_family = pytest.mark.parametrize("name", FIRST)


def encoder_of(model: Any) -> Any:
    return getattr(model, model.base_model_prefix).encoder if hasattr(model, "lm_head") else model.encoder


def close(found: Array, expected: Array, what: str, tolerance: float) -> None:
    """Check the largest difference against the largest element."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, what
    error, largest = np.abs(found - expected).max(initial=0), np.abs(expected).max(initial=0)
    assert error <= tolerance * largest, f"{what}: off by {error:.1e} of {largest:.1e}"


def loaded(folder: Path, dtype: type = np.float32) -> Conformer:
    source = open_backbone(folder)
    p, statistics = source.parameters()
    return Conformer(source.config, *(map_leaves(lambda leaf: leaf.astype(dtype), tree) for tree in (p, statistics)))


def batch_for(name: str, padded: bool) -> Inputs:
    return inputs_of(name, LENGTHS if padded else LENGTHS[:1] * 2)


@pytest.mark.parametrize("padded", [False, True])
@every_variant
def test_layers_and_logits_are_those_of_the_original(name: str, padded: bool, tmp_path: Path) -> None:
    family, _, masks = VARIANTS[name]
    if padded and not masks:
        pytest.skip("the original lets padding into its convolutions: test_padding_of_wav2vec2_conformer has ours")
    model, given, theirs = save(name, tmp_path), batch_for(name, padded), []
    hooks = [layer.register_forward_hook(lambda *args: theirs.append(args[-1])) for layer in encoder_of(model).layers]
    with torch.no_grad():
        logits = model(**given.theirs(family, masked=padded)).logits
    assert len(hooks) == len(theirs) == 3
    backbone = loaded(tmp_path)
    x, context, _ = backbone.embed(given.features, given.lengths)
    valid = context.valid
    for l, expected in enumerate(theirs):
        x, _, _ = backbone.layer_forward(l, x, context, None, None)
        assert x.dtype == np.float32
        close(x[valid], expected.numpy()[valid], f"layer {l}", SINGLE)
    found = backbone.readout_forward(x, context)[0]
    close(found[valid], logits.numpy()[valid], "logits", SINGLE)
    assert valid.all() if not padded else valid.sum(1).tolist() == lengths_after(model, given)


def lengths_after(model: Any, given: Inputs) -> list[int]:
    """The frames that the original counts as real behind its front end."""
    lengths = torch.tensor(given.lengths)
    for name in ("_get_subsampling_output_length", "_get_feat_extract_output_lengths"):
        if hasattr(model, name):
            return getattr(model, name)(lengths).tolist()
    return lengths.tolist()


@every_variant
def test_padded_rows_equal_unpadded_ones(name: str, tmp_path: Path) -> None:
    """Also for Wav2Vec2-Conformer, whose original lets padding into its convolutions and its group norm."""
    save(name, tmp_path)
    backbone, given = loaded(tmp_path, np.float64), batch_for(name, True)
    features = given.features.astype(np.float64)
    mask = np.arange(features.shape[1]) < given.lengths[:, None]
    y, cache = forward(backbone, np.where(mask[..., None], features, np.nan), given.lengths)
    for row, length in enumerate(given.lengths):
        alone, _ = forward(backbone, features[row : row + 1, :length], given.lengths[row : row + 1])
        close(y[row, cache.context.valid[row]], alone[0], f"row {row}", 1e-12)


# Gradients


def tables(model: Any, backbone: Conformer, frames: int, dtype: torch.dtype) -> tuple[Any, Any, torch.Tensor]:
    """The original's module of positions, our table in the form in which it gives its own, and its own."""
    attention, encoder, width = backbone.config.form.attention, encoder_of(model), backbone.config.width
    table = position_table(frames, width, attention, torch.empty(0, dtype=dtype).numpy().dtype, np)
    hidden = torch.zeros(1, frames, width, dtype=dtype)
    if attention.position == "rotary":
        module = encoder.rotary_emb
        ours, own = torch.tensor(np.stack(table))[:, None], torch.stack(module(hidden, torch.arange(frames)[None]))
    elif attention.position == "rotary_input":
        module = encoder.embed_positions
        ours, own = torch.tensor(np.stack(table))[:, :, None, None], module(hidden)
    else:
        module = getattr(encoder, "encode_positions", None) or encoder.embed_positions
        ours, own = torch.tensor(table)[None], module(hidden)
    assert ours.shape == own.shape and ours.dtype == own.dtype
    return module, ours, own


def share_tables(model: Any, backbone: Conformer, frames: int) -> None:
    """Give the original the table of positions that we have, after a look at how far its own is from it.

    It computes float32 sines in float64 models, too, and its are off from ours in their last bit. (The rotary tables of
    the wav2vec 2.0 families have float32 frequencies, but float64 angles and sines.)
    """
    if backbone.config.position in ("none", "shaw"):
        return
    module, ours, own = tables(model, backbone, frames, torch.float64)
    assert (own - ours).abs().max() < 2e-6
    if hasattr(encoder_of(model), "encode_positions"):  # Parakeet has a table for each row of the batch
        module.forward = lambda hidden: ours.expand(len(hidden), -1, -1)
    else:
        module.forward = lambda *args: ours


@pytest.mark.parametrize(("cell", "head"), [("gru", "linear"), ("indrnn", "ffn")])
@every_variant
def test_gradients_of_an_adapter_are_those_of_autograd(name: str, cell: str, head: str, tmp_path: Path) -> None:
    family, _, masks = VARIANTS[name]
    model, given, tasks = save(name, tmp_path).double(), batch_for(name, masks), ("bob", "base", "ann", "bob")
    tasks = tasks[-len(given.lengths) :]
    backbone = loaded(tmp_path, np.float64)
    blank = open_backbone(tmp_path).tokenizer().blank
    hra = HRA(backbone.config.width, 7, cell=cell, head=head, bottleneck=5 if head == "ffn" else None, dtype=np.float64)
    for task in ("ann", "bob", "eve"):
        hra.add_task(task)
    rng = np.random.default_rng(3)
    hra.p = map_leaves(lambda leaf: rng.uniform(-0.5, 0.5, leaf.shape), hra.p)

    logits, cache = forward(backbone, given.features.astype(np.float64), given.lengths, hra.edit(tasks))
    lengths = cache.context.valid.sum(1)
    letters = [n for n in range(logits.shape[2]) if n != blank]
    labels = [[letters[(5 * row + 3 * s) % len(letters)] for s in range(n // 3)] for row, n in enumerate(lengths)]
    loss, dlogits = ctc_loss(logits, cache.context.valid, pack_labels(labels, logits.shape[2], blank), blank=blank)
    assert loss.feasible.all()
    ours = dict(leaves(backward(dlogits, cache).adapter))

    adapter = Adapter(unflatten(dict(leaves(hra.p)), torch.float64), cell, hra.task_names, "gather")
    share_tables(model, backbone, logits.shape[1])
    rows = [row for row, task in enumerate(tasks) if task != "base"]
    apply, state = adapter.choose(*adapter.places([tasks[row] for row in rows], torch.device("cpu"))), {}

    def attach(module: Any, args: Any, x: torch.Tensor) -> torch.Tensor:
        h = state.get("h", torch.zeros(len(rows), x.shape[1], hra.state_size, dtype=torch.float64))
        state["h"] = adapter.controller(x[rows], h)
        return x.index_add(0, torch.tensor(rows), apply(state["h"]))

    for layer in encoder_of(model).layers:
        layer.register_forward_hook(attach)
    model.requires_grad_(False)
    its_logits = model(**given.theirs(family, torch.float64, masks)).logits
    its_losses = F.ctc_loss(
        its_logits.log_softmax(-1).transpose(0, 1),
        torch.tensor([label for row in labels for label in row]),
        torch.tensor(lengths),
        torch.tensor([len(row) for row in labels]),
        blank,
        reduction="none",
    )
    its_losses.mean().backward()
    valid = cache.context.valid
    close(logits[valid], its_logits.detach().numpy()[valid], "logits", DOUBLE)
    close(loss.utterances, its_losses.detach().numpy(), "losses", DOUBLE)
    theirs = {key: p.grad.numpy() for key, p in adapter.named_parameters() if p.grad is not None}
    assert theirs.keys() == ours.keys() and any("ann" in key for key in ours) == ("ann" in tasks)
    for key in theirs:
        close(ours[key], theirs[key], key, DOUBLE)


@every_variant
def test_long_tables_have_the_roundings_of_the_original(name: str, tmp_path: Path) -> None:
    """30 s of frames: tables in float64, or of frequencies that were rounded otherwise, are off by 1e-5 and more."""
    model, backbone = save(name, tmp_path), loaded(tmp_path)
    if backbone.config.position in ("none", "shaw"):
        pytest.skip("there is no table of positions")
    assert backbone.config.precision == "float32"
    changes = [{"precision": "float64"}]
    if backbone.config.position == "relative":
        changes.append({"exponential": not backbone.config.exponential})
    for change in [{}, *changes]:
        other = replace(backbone, config=replace(backbone.config, **change))
        _, ours, own = tables(model, other, 1500, torch.float32)
        error = (ours - own).abs().max()
        assert error > 2e-6 if change else error < 2e-7


# Weights on disk


@each_family
def test_shards_and_half_precision_give_the_weights(name: str, tmp_path: Path) -> None:
    model, folders = make(name), {part: tmp_path / part for part in ("whole", "shards", "F16", "BF16")}
    save(name, folders["whole"], model)
    save(name, folders["shards"], model, max_shard_size="20KB")
    assert len(list(folders["shards"].glob("*.safetensors"))) > 3
    whole, shards = loaded(folders["whole"]), loaded(folders["shards"])
    same(whole, shards)
    for part, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        save(name, folders[part], make(name).to(dtype))
        save(name, tmp_path / f"{part} cast", make(name).to(dtype).float())
        half = loaded(folders[part])
        same(half, loaded(tmp_path / f"{part} cast"))
        assert any((a != b).any() for a, b in zip(arrays(half), arrays(whole), strict=True))
    assert not any(leaf.flags.writeable for _, leaf in leaves(open_backbone(folders["whole"]).parameters()[0].layers))


def arrays(backbone: Conformer) -> list[Array]:
    return [leaf for _, leaf in leaves((backbone.p, backbone.statistics))]


def same(one: Conformer, other: Conformer) -> None:
    for a, b in zip(arrays(one), arrays(other), strict=True):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b)


# Whole commands


def recordings(folder: Path) -> list[Path]:
    """Made-up sound of 0.7 to 1.1 s, 16 kHz."""
    paths = [folder / f"{n}.wav" for n in range(3)]
    for n, path in enumerate(paths):
        soundfile.write(path, voice(11200 + 3001 * n, 120.0 + 50 * n), 16000, subtype="FLOAT")
    return paths


def transcripts(name: str, folder: Path, paths: list[Path]) -> list[str]:
    """What the original writes: its features, model and tokenizer."""
    from transformers import AutoModelForCTC, AutoTokenizer

    extractor, tokenizer = extractor_of(name), AutoTokenizer.from_pretrained(folder)
    model, texts = AutoModelForCTC.from_pretrained(folder).eval(), []
    for path in paths:
        samples, _ = soundfile.read(path, dtype="float32")
        given = extractor(samples, sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            logits = model(**given).logits[0]
        frames = lengths_after(model, Inputs(np.zeros((1, 1, 1)), given["attention_mask"].sum(1).numpy()))[0]
        texts.append(" ".join(tokenizer.decode(logits[:frames].argmax(-1)).split()))
    return texts


def talkative(name: str) -> Any:
    """A model whose labels all win at times, but those that stand for no text, which tokenizers treat differently."""
    model, specials = make(name), {"parakeet": (0,), "lasr": (1, 2)}.get(VARIANTS[name].family, (14,))
    given = extractor_of(name)(voice(16000), sampling_rate=16000, return_tensors="pt", return_attention_mask=True)
    with torch.no_grad():
        head = getattr(model, "lm_head", None) or model.ctc_head
        head.bias -= model(**given).logits.mean((0, 1))
        for label in specials:
            head.weight[label] *= 0.1
            head.bias[label] = -5.0
    return model


@every_variant
def test_transcripts_are_those_of_the_original(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(name, tmp_path, talkative(name))
    paths = recordings(tmp_path)
    expected = transcripts(name, tmp_path, paths)
    capsys.readouterr()
    assert main(["transcribe", "--backbone", str(tmp_path), *map(str, paths)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[-1] for line in printed] == expected
    assert max(map(len, expected)) > 3


@each_family
def test_what_a_processor_saves_is_read_alike(name: str, tmp_path: Path) -> None:
    """A processor writes processor_config.json; and LASR's tokenizer, an ordinary piece as that of the unknown."""
    import transformers

    first, second = tmp_path / "first", tmp_path / "second"
    save(name, first)
    shutil.copytree(first, second)
    (second / "preprocessor_config.json").unlink()
    tokenizer = transformers.AutoTokenizer.from_pretrained(first)
    processor = {
        "parakeet": transformers.ParakeetProcessor,
        "lasr": transformers.LasrProcessor,
        "wav2vec2_bert": transformers.Wav2Vec2BertProcessor,
        "wav2vec2_conformer": transformers.Wav2Vec2Processor,
    }[VARIANTS[name].family]
    processor(extractor_of(name), tokenizer).save_pretrained(second)
    assert (second / "processor_config.json").exists() and not (second / "preprocessor_config.json").exists()
    one, two = (open_backbone(folder) for folder in (first, second))
    assert one.features() == two.features()
    ours = [source.tokenizer() for source in (one, two)]
    for text in WORDS[:-1]:  # the last one has a letter that VOCAB lacks
        labels = ours[0].encode(text)
        assert ours[1].encode(text) == labels
        assert [each.decode(labels) for each in ours] == [text] * 2
        assert tokenizer.decode(labels, group_tokens=False) == text
    for label in range(3, 14):
        assert ours[0].decode([label]) == ours[1].decode([label]) == tokenizer.decode([label]).strip()
    with pytest.raises(ValueError, match="character 5 of 'one x'"):
        ours[1].encode("one x")


@each_family
def test_a_folder_can_be_adapted_and_evaluated(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(name, tmp_path, talkative(name))
    lines = [
        {"audio_filepath": path.name, "text": text, "speaker": speaker}
        for path, text, speaker in zip(recordings(tmp_path), ("one", "two", "to"), ("ann", "bob", "ann"), strict=True)
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    backbone = ["--backbone", str(tmp_path), "--manifest", str(manifest)]
    out = ["--task-by", "speaker", "--out", str(tmp_path / "run"), "--state-size", "4"]
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert main(["adapt", *backbone, *out, "--steps", "2"]) == 0
    capsys.readouterr()
    assert main(["eval", *backbone, "--adapter", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["utterances"] == 3 and found["tasks"].keys() == {"ann", "bob"}
    assert before == {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert set("onetw") <= set(LETTERS)


# Memory

MEMORY = """
import sys
from minihra.loaders.backbone import open_backbone

def status(key):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

source = open_backbone(sys.argv[1])
before = status("VmRSS")
parameters = source.parameters()
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured by Linux's /proc")
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_loading_takes_the_memory_of_the_weights(kind: str, tmp_path: Path) -> None:
    size = write_large(tmp_path, kind)
    assert 80e6 < size < 130e6
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert int(run.stdout) < 1.3 * size


def write_large(folder: Path, kind: str) -> int:
    """Write a Wav2Vec2-BERT of random bytes; return the bytes of its weights in float32."""
    from minihra.blocks.parameters import conformer_shapes
    from minihra.loaders.table import shape_before
    from minihra.loaders.wav2vec2_bert import rows

    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "intermediate_size": 2048, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps({"model_type": "wav2vec2-bert", "vocab_size": 32, **sizes}))
    config = open_backbone(folder).config
    p, statistics = conformer_shapes(config)
    shapes = {name: leaf.shape for name, leaf in leaves({"p": p, "statistics": statistics})}
    header, offset, width = {}, 0, 4 if kind == "F32" else 2
    for row in rows(config):
        if row.ours in shapes:
            shape = shape_before(row.form, shapes[row.ours])
            end = offset + width * int(np.prod(shape))
            header[row.theirs] = {"dtype": kind, "shape": shape, "data_offsets": [offset, end]}
            offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = np.random.default_rng(0).integers(0, 100, offset, dtype=np.uint8)
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data.tobytes())
    return offset * 4 // width


def test_the_model_can_be_cast(tmp_path: Path) -> None:
    save(FIRST[0], tmp_path)
    backbone = loaded(tmp_path, np.float64)
    assert {leaf.dtype for leaf in arrays(replace(backbone, frozen=False))} == {np.dtype(np.float64)}
