"""Open checkpoints, without PyTorch: one small committed model a family gives the logits that transformers gave."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from minihra.blocks.conformer import Conformer
from minihra.loaders.backbone import load_backbone, open_backbone
from minihra.model import infer
from minihra.tree import map_leaves

GOLDEN = Path(__file__).parent / "golden_open"
FAMILIES = {
    "parakeet": ("Parakeet-CTC", 40),
    "lasr": ("LASR-CTC", 0),
    "wav2vec2_bert": ("Wav2Vec2-BERT-CTC", 0),
    "wav2vec2_conformer": ("Wav2Vec2-Conformer-CTC", 0),
}
"""The name and the blank of each family."""


def expected(family: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a golden file, and its metadata."""
    with safe_open(GOLDEN / family / "expected.safetensors", "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 2e-6)])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, dtype: type, tolerance: float) -> None:
    source, (tensors, _) = open_backbone(GOLDEN / family), expected(family)
    parameters = [map_leaves(lambda leaf: leaf.astype(dtype), tree) for tree in source.parameters()]
    logits, valid = infer(Conformer(source.config, *parameters), tensors["features"].astype(dtype), tensors["lengths"])
    assert logits.dtype == dtype and valid.sum() < valid.size
    wanted = tensors["logits"][:, : logits.shape[1]]
    assert not tensors["logits"][:, logits.shape[1] :].any()
    assert np.abs(logits - wanted)[valid].max() < tolerance * np.abs(wanted).max()
    assert source.family == FAMILIES[family][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_read_as_with_transformers(family: str) -> None:
    if family in ("parakeet", "lasr"):
        pytest.importorskip("tokenizers", reason="a tokenizer.json needs the extra: pip install 'minihra[tokenizers]'")
    recogniser, (_, metadata) = load_backbone(GOLDEN / family), expected(family)
    assert recogniser.tokenizer.blank == FAMILIES[family][1]
    assert recogniser.tokenizer.decode(json.loads(metadata["labels"])) == " ".join(metadata["text"].split())
    assert len(recogniser.tokenizer) == recogniser.model.config.labels
    assert recogniser.features.mels == recogniser.model.config.mels


def test_no_pytorch_is_asked_for() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'huggingface_hub', 'tokenizers'): sys.modules[name] = None\n"
        "from minihra.loaders.backbone import open_backbone\n"
        "for folder in sys.argv[1:]: open_backbone(folder).parameters(), open_backbone(folder).features()\n"
    )
    subprocess.run([sys.executable, "-c", code, *(str(GOLDEN / family) for family in FAMILIES)], check=True)


def test_golden_files_are_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.suffix != ".pyc") < 250_000
