"""The settings of a checkpoint: JSON files whose mistakes are told with the file, the setting and its value."""

from pathlib import Path
from typing import Any

from minihra.data.json_file import read_object


class Settings:
    """A JSON object of settings. What a file leaves out has the family's default."""

    def __init__(self, path: Path, content: dict[str, Any], where: str = "") -> None:
        self.path, self.content, self._where = path, content, where

    def part(self, key: str) -> "Settings":
        """Return the settings under a key; none at all where it is absent."""
        content = self.content.get(key) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{self.path}: {self._where}{key} must be an object, got {content!r}")
        return Settings(self.path, content, f"{self._where}{key}.")

    def get(self, key: str, default: Any) -> Any:
        """Return a setting, of the type of its default (a number may be whole).

        Raises:
            ValueError: it is of another type.
        """
        value = self.content.get(key, default)
        kind = (int, float) if isinstance(default, float) else type(default)
        if default is not None and (
            not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool)
        ):
            raise ValueError(f"{self.path}: {self._where}{key} must be like {default!r}, got {value!r}")
        return value

    def size(self, key: str, default: int, least: int = 1) -> int:
        """Return a setting that is a whole number of at least `least`.

        Raises:
            ValueError: it is none.
        """
        value = self.get(key, default)
        if value < least:
            raise ValueError(f"{self.path}: {self._where}{key} must be at least {least}, got {value}")
        return value

    def numbers(self, key: str, default: tuple[float, float]) -> tuple[float, float]:
        """Return a setting that is a list of two numbers.

        Raises:
            ValueError: it is none.
        """
        value = self.content.get(key, default)
        if not isinstance(value, (list, tuple)) or len(value) != 2 or any(type(n) not in (int, float) for n in value):
            raise ValueError(f"{self.path}: {self._where}{key} must be a list of two numbers, got {value!r}")
        return float(value[0]), float(value[1])

    def sizes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Return a setting that is a list of whole numbers of at least 1.

        Raises:
            ValueError: it is none.
        """
        value = self.content.get(key, default)
        if not isinstance(value, (list, tuple)) or not value or any(type(n) is not int or n < 1 for n in value):
            raise ValueError(
                f"{self.path}: {self._where}{key} must be a list of whole numbers of at least 1, got {value!r}"
            )
        return tuple(value)

    def choice(self, key: str, default: Any, known: dict[Any, Any]) -> Any:
        """Return what the table `known` has for a setting.

        Raises:
            ValueError: it has nothing; the message lists what it has.
        """
        value = self.content.get(key, default)
        if not isinstance(value, (str, int, float, type(None))) or value not in known:
            listed = ", ".join(map(str, known))
            raise ValueError(f"{self.path}: {self._where}{key} is {value!r}, which is not supported; known: {listed}")
        return known[value]


ACTIVATIONS = {"silu": "swish", "swish": "swish", "gelu": "gelu", "relu": "relu"}
"""Our names of the activations, by theirs."""


def read_settings(path: Path) -> Settings:
    """Return the settings in a JSON file.

    Raises:
        ValueError: it cannot be read, or is no JSON object.
    """
    return Settings(path, read_object(path))


def feature_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's feature extractor; none where it has no file of them.

    They stand in preprocessor_config.json, or in newer folders within processor_config.json.

    Raises:
        ValueError: the file cannot be read.
    """
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "feature_extractor")):
        if (folder / name).is_file():
            settings = read_settings(folder / name)
            return (settings if key is None else settings.part(key)).content
    return {}
