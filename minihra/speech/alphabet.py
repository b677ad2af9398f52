"""Characters as labels."""

from collections.abc import Iterable, Sequence

BLANK = 0
"""The label of CTC's blank."""


class Alphabet:
    """The characters of a model, in the order of their labels 1, 2, ...; label 0 is the blank. A `Tokenizer`."""

    blank = BLANK
    unit = "word"

    def __init__(self, characters: str) -> None:
        self.characters = characters
        self._labels = {character: label for label, character in enumerate(characters, start=1)}

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Alphabet":
        """Return the alphabet of all characters in `texts`."""
        return cls("".join(sorted(set().union(*texts))))

    def __len__(self) -> int:
        """The number of labels V, with the blank."""
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int]:
        """Return the labels of a text.

        Raises:
            ValueError: a character is outside the alphabet (which, where).
        """
        for place, character in enumerate(text, start=1):
            if character not in self._labels:
                raise ValueError(f"character {place} of {text!r}, {character!r}, is not in {self.characters!r}")
        return [self._labels[character] for character in text]

    def decode(self, labels: Sequence[int]) -> str:
        """Return the text of labels without blanks."""
        return "".join(self.characters[label - 1] for label in labels)

    def reference(self, text: str) -> str:
        """Return the text as it is: the model learnt to write it so."""
        return text

    def units(self, text: str) -> list[str]:
        """Return the words."""
        return text.split()

    def describe(self) -> str:
        """Return a line for people."""
        return f"{len(self.characters)} characters"
