"""From texts to a model's labels and back: the protocol that all tokenizers keep, and characters out of a vocab.json.

`Alphabet` (alphabet.py), `Characters` (here), `Pieces` (pieces.py) and `Phonemes` (phonemes.py) keep the protocol.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, Self

from minihra.data.json_file import read_object


class Tokenizer(Protocol):
    """What writes a text in labels 0 ... V-1 of a CTC model, and reads them."""

    blank: int  # the label of CTC's blank
    unit: str  # "word" or "phoneme": what error rates count

    def __len__(self) -> int:
        """The number of labels V, with the blank."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the labels of a text, without blanks.

        Raises:
            ValueError: the model cannot write a part of it (which, where).
        """
        ...

    def decode(self, labels: Sequence[int]) -> str:
        """Return the text of labels without blanks, whose repeats are already merged."""
        ...

    def reference(self, text: str) -> str:
        """Return a text as the model would write it, to compare hypotheses with; what it cannot write stays an error.

        Raises:
            ValueError: the model writes other units than the text does, and no one knows those of a word in it.
        """
        ...

    def units(self, text: str) -> list[str]:
        """Return what is counted of a reference or a hypothesis."""
        ...

    def describe(self) -> str:
        """Return a line for people."""
        ...


def is_special(token: str) -> bool:
    """Whether a token stands for no text: <s>, <pad>, [UNK], ..."""
    return re.fullmatch(r"<.+>|\[.+\]", token) is not None


class Case:
    """The case in which a model writes: upper or lower, if none of its tokens has a letter in the other, or both."""

    def __init__(self, tokens: Iterable[str]) -> None:
        letters = "".join(token for token in tokens if not is_special(token))
        self.upper = letters == letters.upper() != letters.lower()
        self.lower = letters == letters.lower() != letters.upper()

    def __call__(self, text: str) -> str:
        """Return the text in the case of the model."""
        return text.upper() if self.upper else text.lower() if self.lower else text

    def __str__(self) -> str:
        return "upper case" if self.upper else "lower case" if self.lower else "case as in the text"


class Characters:
    """The tokens of a vocab.json, characters or a few of them together, of which the longest that fits is taken.

    `delimiter` is the token between words. Texts are put into the case of the vocabulary; with `lower`, what the model
    writes is put into lower case instead. Tokens such as <pad>, the blank and `unknown` never decode to text, nor do
    labels of the model, V = `labels` in all, that the vocabulary lacks.

    Raises:
        ValueError: the vocabulary is not one of tokens and different labels below V.
    """

    unit = "word"

    def __init__(
        self,
        vocab: dict[str, int],
        blank: int,
        *,
        delimiter: str = "|",
        unknown: str | None = None,
        lower: bool = False,
        labels: int | None = None,
    ) -> None:
        if any(isinstance(label, dict) for label in vocab.values()):
            raise ValueError(
                f"one vocabulary for each language ({', '.join(list(vocab)[:3])}, ...): save that of one language alone"
            )
        V = labels if labels is not None else 1 + max([blank, *(v for v in vocab.values() if isinstance(v, int))])
        for token, label in vocab.items():
            if not isinstance(label, int) or not 0 <= label < V:
                raise ValueError(f"token {token!r} has the label {label!r}, but the model has 0 ... {V - 1}")
        if len(set(vocab.values())) < len(vocab) or "" in vocab:
            raise ValueError("a label has two tokens, or a token no character")
        if not 0 <= blank < V:
            raise ValueError(f"the blank is label {blank}, but the model has 0 ... {V - 1}")
        self.blank, self.lower, self._V = blank, lower, V
        self._labels = {
            token: label
            for token, label in vocab.items()
            if label != blank and token not in (unknown, delimiter) and not is_special(token)
        }
        self._case = Case(self._labels)
        if delimiter in vocab:
            self._labels[" "] = vocab[delimiter]
        self._texts = {label: text for text, label in self._labels.items()}
        self._longest = max(map(len, self._labels), default=1)

    @classmethod
    def read(cls, folder: Path, blank: int, labels: int) -> Self:
        """Return the tokenizer of a Hugging Face folder with vocab.json, and tokenizer_config.json if it is there.

        Raises:
            ValueError: a file is damaged, or the vocabulary is not that of one language and of V = `labels` labels.
        """
        vocab, path = read_object(folder / "vocab.json"), folder / "tokenizer_config.json"
        config = read_object(path) if path.exists() else {}
        try:
            return cls(
                vocab,
                blank,
                delimiter=text_of(config.get("word_delimiter_token")) or "|",
                unknown=text_of(config.get("unk_token")),
                lower=config.get("do_lower_case") is True,
                labels=labels,
            )
        except ValueError as error:
            raise ValueError(f"{folder / 'vocab.json'}: {error}") from None

    def __len__(self) -> int:
        """The number of labels V, with the blank."""
        return self._V

    def encode(self, text: str) -> list[int]:
        """Return the labels of a text, with one delimiter between words.

        Raises:
            ValueError: no token fits at a place.
        """
        text, labels, place = " ".join(self._case(text).split()), [], 0
        while place < len(text):
            for end in range(min(place + self._longest, len(text)), place, -1):
                if text[place:end] in self._labels:
                    labels.append(self._labels[text[place:end]])
                    break
            else:
                known = "".join(sorted(token for token in self._labels if len(token) == 1))
                raise ValueError(f"character {place + 1} of {text!r}, {text[place]!r}, is not in {known!r}")
            place = end
        return labels

    def decode(self, labels: Sequence[int]) -> str:
        """Return the text of labels without blanks."""
        text = " ".join("".join(self._texts.get(label, "") for label in labels).split())
        return text.lower() if self.lower else text

    def reference(self, text: str) -> str:
        """Return the text in the case of the model, with single spaces."""
        text = " ".join(self._case(text).split())
        return text.lower() if self.lower else text

    def units(self, text: str) -> list[str]:
        """Return the words."""
        return text.split()

    def describe(self) -> str:
        """Return a line for people."""
        return f"{len(self._labels)} characters, {'lower case' if self.lower else self._case}"


def text_of(token: str | dict | None) -> str | None:
    """Return a token of tokenizer_config.json, which writes it as text or as {"content": text, ...}."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
