"""The open models on the scale of model_cases.py: what each changes of its CONFIG, whose width is 8."""

from typing import Any

from minihra.blocks.config import Stages, Subsampling
from minihra.blocks.stages import Stage

OPEN: dict[str, dict[str, Any]] = {
    "LASR": {
        "kernel": 4,
        "position": "rotary",
        "bias": False,
        "conv_bias": False,
        "norm_bias": False,
        "eps": 1e-6,
        "weights": ((1.5, 0.5), (1.0, 1.0), (2.0, 1.0), (1.5, 0.5)),
        "out_norm": 1e-6,
        "front_end": Stages(
            (
                Stage(8, activation="relu"),
                Stage(8, 5, 2, activation="relu"),
                Stage(7, 5, 2, activation="relu"),
                Stage(8),
            )
        ),
    },
    "Wav2Vec2-BERT": {
        "position": "shaw",
        "shaw": (2, 1),
        "conv_norm": "layer",
        "causal": True,
        "conv_bias": False,
        "eps": 1e-3,  # so that norms of few channels are smooth enough for differences
        "front_end": Stages((Stage(norm="layer"), Stage(8))),
    },
    "Wav2Vec2-Conformer": {
        "position": "rotary_input",
        "activation": "gelu",
        "conv_bias": False,
        "out_norm": 1e-5,
        "front_end": Stages(
            (
                Stage(6, 4, 3, bias=False, norm="instance", activation="gelu"),
                Stage(7, 3, 2, bias=False, norm="layer", activation="gelu"),
                Stage(norm="layer", eps=1e-3),
                Stage(8),
            )
        ),
    },
    "hama": {
        "position": "none",
        "conv_norm": "none",
        "front_end": Stages((Stage(8, 3, 2, pad=1, activation="gelu"),)),
    },
    "Parakeet": {"front_end": Subsampling(convs=2, channels=5, separable=True, scale=1.5)},
}
"""By the name of the family."""
