"""Phonemes as labels, and texts to phonemes by the model in the package hama; its phoneme recogniser writes them.

hama's model takes a word of any of its languages to IPA. What it does not know it answers with something else: digits
and symbols come out in Chinese. So words with digits, and with characters that its vocabulary lacks, are refused.
Punctuation parts words, as it has no sound, but for apostrophes within one. Some English words come out as if they were
of another language ("do" and "hospital" are Spanish to it, 2 % of the words in speechocean762): that goes unnoticed.
"""

import importlib.util
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

from minihra.data.json_file import read_object

if TYPE_CHECKING:
    from hama import G2PModel

BOUNDARY = "<wb>"
BLANK = "<blank>"
NO_SOUND = ("<pad>", "<sos>", "<eos>", "<unk>", " ")
LONGEST = 96  # phonemes of a word; hama cuts the answer off at 32 unless told


def hama_assets() -> Path:
    """Return the folder with the files of hama's models, without importing hama.

    Raises:
        ValueError: hama is not installed.
    """
    found = importlib.util.find_spec("hama")
    if found is None or not found.submodule_search_locations:
        raise ValueError("the package hama is missing: pip install 'minihra[hama]'")
    return Path(found.submodule_search_locations[0]) / "assets"


class Phonemes:
    """The phonemes of hama's recogniser, `tokens` in the order of their labels, with BOUNDARY and BLANK among them.

    Raises:
        ValueError: the boundary or the blank is missing.
    """

    unit = "phoneme"

    def __init__(self, tokens: Sequence[str]) -> None:
        self._tokens = tuple(tokens)
        self._labels = {token: label for label, token in enumerate(self._tokens)}
        for token in (BOUNDARY, BLANK):
            if token not in self._labels:
                raise ValueError(f"the phonemes lack {token}")
        self.blank = self._labels[BLANK]

    @classmethod
    def read(cls) -> Self:
        """Return the phonemes of the installed hama: those of its text model, the boundary and the blank.

        Raises:
            ValueError: hama is not installed, or is not the one known here.
        """
        path = hama_assets() / "g2p_vocab.json"
        phonemes = read_object(path).get("decoder")
        if not isinstance(phonemes, list) or not all(isinstance(phoneme, str) for phoneme in phonemes):
            raise ValueError(f"{path}: holds no list of phonemes")
        return cls([*phonemes, BOUNDARY, BLANK])

    def __len__(self) -> int:
        """The number of labels V, with the blank."""
        return len(self._tokens)

    def encode(self, text: str) -> list[int]:
        """Return the labels of the phonemes of a text, with a boundary between words.

        Raises:
            ValueError: hama knows no phonemes for a word (which), or is not installed.
        """
        labels: list[int] = []
        for place, word in enumerate(words_of(text), start=1):
            try:
                phonemes = [self._labels[phoneme] for phoneme in phonemes_of(word)]
            except ValueError as error:
                raise ValueError(f"word {place} of {text!r}, {word!r}, {error}") from None
            except KeyError as error:
                raise ValueError(f"word {place} of {text!r}, {word!r}, has the unknown phoneme {error}") from None
            labels += [self._labels[BOUNDARY], *phonemes] if labels else phonemes
        return labels

    def decode(self, labels: Sequence[int]) -> str:
        """Return the phonemes of labels without blanks, with spaces between phonemes and " | " between words."""
        phonemes = [self._tokens[label] for label in labels if self._tokens[label] not in (*NO_SOUND, BLANK)]
        words = " ".join("|" if phoneme == BOUNDARY else phoneme for phoneme in phonemes).split("|")
        return " | ".join(word.strip() for word in words if word.strip())

    def reference(self, text: str) -> str:
        """Return the phonemes of a text.

        Raises:
            ValueError: hama knows no phonemes for a word (which), or is not installed.
        """
        return self.decode(self.encode(text))

    def units(self, text: str) -> list[str]:
        """Return the phonemes, without the boundaries of words."""
        return [phoneme for phoneme in text.split() if phoneme != "|"]

    def describe(self) -> str:
        """Return a line for people."""
        return f"{len(self._tokens) - len(NO_SOUND) - 2} phonemes (hama)"


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation but for apostrophes within them."""
    text = text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    parted = "".join(c if c == "'" or not unicodedata.category(c).startswith("P") else " " for c in text)
    return [word for part in parted.split() if (word := part.strip("'"))]


@cache
def text_model() -> "G2PModel":
    """Return hama's model from text to phonemes, made once.

    Raises:
        ValueError: hama is not installed.
    """
    hama_assets()
    from hama import G2PModel

    model = G2PModel(max_output_len=LONGEST)
    # hama makes this table of 19,750 characters anew for every character, which takes most of its time.
    model.tokenizer.vocab = SimpleNamespace(encoder_token_to_id=model.vocab.encoder_token_to_id)
    return model


@cache
def phonemes_of(word: str) -> tuple[str, ...]:
    """Return the phonemes of one word, as hama's model has them.

    Raises:
        ValueError: the model does not know what the word is, or hama is not installed.
    """
    model = text_model()
    if any(character.isdigit() for character in word):
        raise ValueError("has digits: write numbers as words")
    spelt = model.tokenizer.encode(word)
    if model.tokenizer.vocab.encoder_token_to_id["<unk>"] in spelt.ids[: spelt.length]:
        raise ValueError("has a character that hama does not know")
    if spelt.length == model.tokenizer.max_input_len:
        raise ValueError("is too long for hama")
    answer = [alignment.phoneme for alignment in model(word, split_delimiter=None).alignments]
    phonemes = tuple(phoneme for phoneme in answer if phoneme not in NO_SOUND)
    if "<unk>" in answer or not phonemes or len(answer) == LONGEST:
        raise ValueError("has no phonemes that hama knows")
    return phonemes
