"""Pieces of words out of a tokenizer.json, as Parakeet and LASR have them, read by the package tokenizers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minihra.data.json_file import read_object
from minihra.speech.tokenizers import Case, is_special

SPACES = "▁Ġ "
"""How pieces write a space: SentencePiece, bytes, and as it is."""


class Pieces:
    """The pieces (byte pairs, unigrams, ...) of a tokenizer.json, for a model with V = `labels` labels.

    Texts are put into the case of the pieces. Special pieces, among them the blank, are neither written nor read, and
    labels that the file lacks read as nothing.

    Raises:
        ValueError: the file is missing or damaged, has labels beyond V, or the package tokenizers is not installed.
    """

    unit = "word"

    def __init__(self, path: Path, blank: int, labels: int) -> None:
        model = read_object(path).get("model")
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise ValueError(f"{path}: reading it takes tokenizers: pip install 'minihra[tokenizers]'") from None
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises Exception itself
            raise ValueError(f"{path}: damaged, no tokenizer ({one_line(error)})") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        special = {label for label, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        if not 0 <= blank < labels:
            raise ValueError(f"{path}: the blank is label {blank}, but the model has 0 ... {labels - 1}")
        if beyond := sorted(token for token, label in vocab.items() if label >= labels and label not in special):
            raise ValueError(f"{path}: piece {beyond[0]!r} has label {vocab[beyond[0]]}, the model 0 ... {labels - 1}")
        self.blank, self._V, self._path = blank, labels, path
        unknown = unknown_labels(model, vocab)
        # LASR's tokenizers give the unknown the label of an ordinary piece, which it then is where the text is another.
        self._unknown = {label: spelling(token) for token, label in vocab.items() if label in unknown - special}
        self._unknown = {label: text for label, text in self._unknown.items() if text and not is_special(text)}
        self._unwritable = special | {blank} | (unknown - self._unknown.keys())
        self._spaces = {label for token, label in vocab.items() if not token.strip(SPACES)}
        self._case = Case(token for token, label in vocab.items() if label not in self._unwritable)

    def __len__(self) -> int:
        """The number of labels V, with the blank."""
        return self._V

    def encode(self, text: str) -> list[int]:
        """Return the labels of a text, without those that begin or end one.

        Raises:
            ValueError: there is no piece for a character (which, where).
        """
        text = self._case(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        left = {place for place, character in enumerate(text) if not character.isspace()}
        for label, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            known = label not in self._unwritable and self._unknown.get(label) in (None, spelling(text[start:end]))
            if known and label not in self._spaces:  # a space before a word has the place of its first letter
                left.difference_update(range(start, end))
        if left:
            place = min(left)
            raise ValueError(f"character {place + 1} of {text!r}, {text[place]!r}, is in no piece of {self._path.name}")
        return [label for label in encoding.ids if label not in self._unwritable]

    def decode(self, labels: Sequence[int]) -> str:
        """Return the text of labels without blanks."""
        known = [label for label in labels if label not in self._unwritable]
        return " ".join(self._tokenizer.decode(known, skip_special_tokens=True).split())

    def reference(self, text: str) -> str:
        """Return the text as its pieces read; a word that has none stays as it is, in the case of the model."""
        try:
            return self.decode(self.encode(text))
        except ValueError:
            return " ".join(self._word(word) for word in self._case(text).split())

    def _word(self, word: str) -> str:
        try:
            return self.decode(self.encode(word))
        except ValueError:
            return word

    def units(self, text: str) -> list[str]:
        """Return the words."""
        return text.split()

    def describe(self) -> str:
        """Return a line for people."""
        return f"{self._V} word pieces, {self._case}"


def spelling(piece: str) -> str:
    """Return what a piece writes, without spaces, in lower case."""
    return piece.strip(SPACES).lower()


def unknown_labels(model: dict, vocab: dict[str, int]) -> set[int]:
    """Return the label of what a tokenizer.json cannot write, if it has one, by name or (unigrams) by number."""
    labels = {vocab.get(model.get("unk_token")), model.get("unk_id")} if isinstance(model, dict) else set()
    return labels - {None}


def one_line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
