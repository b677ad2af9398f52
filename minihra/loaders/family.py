"""What a family of checkpoints is: how its settings, tensors, features and tokenizer are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from minihra.blocks.config import ConformerConfig
from minihra.loaders.settings import Settings
from minihra.loaders.table import Row
from minihra.speech.features import Features
from minihra.speech.tokenizers import Tokenizer


class Family(NamedTuple):
    """A family of Hugging Face folders."""

    name: str
    model_type: str  # in config.json
    config: Callable[[Settings], ConformerConfig]
    default_blank: int  # where config.json has no pad_token_id
    rows: Callable[[ConformerConfig], list[Row]]
    unused: tuple[str, ...]  # patterns of tensors that the forward does not use
    features: Callable[[dict[str, Any], ConformerConfig], Features]
    tokenizer: Callable[[Path, int, int], Tokenizer]  # folder, blank, labels
