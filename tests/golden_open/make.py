"""Makes the folders here, one a family: a tiny random checkpoint as transformers saves it, and what it gives.

    python -m tests.golden_open.make          needs minihra[parity]

expected.safetensors holds a ragged batch, `features` (B, T, F) and `lengths` (B,), and `logits` (B, T', V), 0 on padded
frames; its metadata holds `labels` and the `text` that they stand for. Wav2Vec2-Conformer, which lets padding into its
convolutions, was given its utterances one by one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from tests.open_models import FIRST, VARIANTS, inputs_of, make, save

HERE = Path(__file__).parent
LENGTHS = (9, 7, 2)
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}


def logits_of(model: Any, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, lengths and logits of the original."""
    family, _, masks = VARIANTS[name]
    given = inputs_of(name, LENGTHS)
    with torch.no_grad():
        if not masks:
            rows = [
                model(torch.tensor(row[:length, 0])[None]).logits[0]
                for row, length in zip(given.features, given.lengths, strict=True)
            ]
            logits = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        else:
            logits = model(**given.theirs(family)).logits
            count = getattr(model, "_get_subsampling_output_length", lambda lengths: lengths)
            frames = count(torch.tensor(given.lengths))
            logits = logits * (torch.arange(logits.shape[1]) < frames[:, None])[..., None]
    return given.features, given.lengths, np.ascontiguousarray(logits.numpy())  # safetensors writes bytes as they lie


def main() -> None:
    """Write all folders anew."""
    for name in FIRST:
        family = VARIANTS[name].family
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        groups = {"num_conv_pos_embedding_groups": 2} if family == "wav2vec2_conformer" else {}
        model = make(name, **SMALL, **groups)
        save(name, folder, model)
        features, lengths, logits = logits_of(model, name)
        labels = [label for label in range(3, 15) if label != 14 or family in ("parakeet", "lasr")]
        text = transformers.AutoTokenizer.from_pretrained(folder).decode(labels)
        metadata = {"labels": json.dumps(labels), "text": text}
        tensors = {"features": features, "lengths": lengths, "logits": logits}
        save_file(tensors, folder / "expected.safetensors", metadata)
        (folder / "generation_config.json").unlink(missing_ok=True)  # which nothing here reads
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{folder.name}: {size:,} bytes, {text!r}")


if __name__ == "__main__":
    main()
