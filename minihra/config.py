"""Configurations: named sizes, and TOML files with the sections [model], [features], [training] and [augment].

The settings and their defaults stand beside what they configure: ConformerConfig, LogMel, TrainingConfig, SpecAugment.
"""

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from minihra.blocks.config import ConformerConfig, as_tuples
from minihra.speech.augment import SpecAugment
from minihra.speech.features import LogMel
from minihra.train import TrainingConfig

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},  # 1.1 M parameters: a few hundred words of one second, in minutes on a CPU
    "small": {"width": 144, "layers": 8},  # 4.4 M parameters
}
"""What each size changes of ConformerConfig's defaults."""

GIVEN = {
    "model": ("labels", "mels", "front_end"),
    "features": ("sample_rate",),
    "training": ("augment", "together"),
    "augment": (),
}
"""What no file may set: it follows from the data, or has a section of its own."""

SECTIONS = {"model": ConformerConfig, "features": LogMel, "training": TrainingConfig, "augment": SpecAugment}


@dataclass
class Settings:
    """The settings of each section, as far as they differ from the defaults."""

    model: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    augment: dict[str, Any] | None = None


def read_config(path: str | Path) -> Settings:
    """Return the settings of a TOML file.

    Raises:
        ValueError: it cannot be read, is not TOML, or has an unknown section or setting (the message lists the known).
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    for section, values in content.items():
        if section not in SECTIONS or not isinstance(values, dict):
            raise ValueError(f"{path}: unknown section {section!r}; known: {', '.join(SECTIONS)}")
        known = [f.name for f in fields(SECTIONS[section]) if f.name not in GIVEN[section]]
        for name in values:
            if name not in known:
                raise ValueError(f"{path}: unknown setting {name!r} in [{section}]; known: {', '.join(known)}")
    return Settings(**content)


def named_size(name: str) -> Settings:
    """Return the settings of a size.

    Raises:
        ValueError: there is no such size.
    """
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; known: {', '.join(SIZES)}")
    return Settings(model=dict(SIZES[name]))


def build(section: str, **values: Any) -> Any:
    """Return the configuration of a section.

    Raises:
        ValueError: a value is impossible or of the wrong type.
    """
    try:
        return SECTIONS[section](**{name: as_tuples(value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"[{section}]: {error}") from None
