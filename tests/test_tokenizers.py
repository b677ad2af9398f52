"""From texts to labels and back, for models of others."""

import json
import sys

import pytest

from minihra.speech.alphabet import Alphabet
from minihra.speech.phonemes import BLANK, BOUNDARY, Phonemes, words_of
from minihra.speech.pieces import Pieces
from minihra.speech.tokenizers import Characters

UPPER = {token: label for label, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", "|", *"EFORTUW'"])}
LOWER = {token: label for label, token in enumerate([*"abcdenot", "|", "[UNK]", "[PAD]"])}
TEXTS = ["two to one", "a boat to the moon", "he had not eaten", "the man on the boat", "one two one two", "no one did"]


def test_the_alphabet_is_a_tokenizer():
    alphabet = Alphabet(" abc")
    assert (alphabet.blank, alphabet.unit, len(alphabet)) == (0, "word", 5)
    assert alphabet.reference("ab  c") == "ab  c"
    assert alphabet.units("ab  c") == ["ab", "c"]
    assert alphabet.describe() == "4 characters"


@pytest.mark.parametrize(("vocab", "blank", "written"), [(UPPER, 0, "TWO FOUR"), (LOWER, 10, "note boat")])
def test_characters_there_and_back(vocab, blank, written):
    characters = Characters(vocab, blank, labels=20)
    for text in (written.upper(), f" {written.lower()} "):
        labels = characters.encode(text)
        assert blank not in labels
        assert characters.decode(labels) == characters.reference(text) == written
        assert characters.units(written) == written.split()
    assert (characters.blank, characters.unit, len(characters)) == (blank, "word", 20)
    assert characters.decode([*range(20)]).replace(" ", "") in ("EFORTUW'", "abcdenot")  # 11 ... 19 say nothing
    assert characters.describe() == ("9 characters, upper case" if vocab is UPPER else "9 characters, lower case")


def test_characters_in_both_cases_are_left_alone():
    characters = Characters({"a": 1, "B": 2, "b": 3}, 0)
    assert [characters.decode(characters.encode(text)) for text in ("aB", "ab")] == ["aB", "ab"]
    assert len(characters) == 4


def test_the_longest_token_is_taken():
    characters = Characters({"a": 1, "aa": 2, "aab": 3, "b": 4}, 0)
    assert characters.encode("aabaaa") == [3, 2, 1]


def test_a_delimiter_may_be_a_space_or_missing():
    assert Characters({"a": 1, " ": 2}, 0, delimiter=" ").encode("a  a") == [1, 2, 1]
    with pytest.raises(ValueError, match="character 2 of 'a a', ' '"):
        Characters({"a": 1}, 0).encode("a a")


@pytest.mark.parametrize(
    ("text", "message"),
    [("two, four", "character 4 of 'TWO, FOUR', ','"), ("two|", "character 4"), ("<s>", "character 1 of '<S>'")],
)
def test_what_characters_cannot_write_is_named(text, message):
    characters = Characters(UPPER, 0)
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        characters.encode(text)
    assert characters.reference(text) == text.upper()


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ({"eng": {"a": 1}, "deu": {"a": 1}}, r"one vocabulary for each language \(eng, deu, \.\.\.\)"),
        ({"a": 1, "b": 1}, "a label has two tokens"),
        ({"a": "1"}, "token 'a' has the label '1', but the model has 0 ... 3"),
        ({"a": 7}, "token 'a' has the label 7"),
        ({"": 1}, "a token no character"),
    ],
)
def test_bad_vocabularies_are_named(tmp_path, vocab, message):
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match=message) as caught:
        Characters.read(tmp_path, 0, 4)
    assert str(caught.value).startswith(f"{tmp_path / 'vocab.json'}: ")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), ("{", "not JSON"), ("[1]", "not a JSON object")]
)
def test_damaged_files_are_named_in_a_line(tmp_path, content, message):
    for name, read in (
        ("vocab.json", lambda: Characters.read(tmp_path, 0, 4)),
        ("tokenizer.json", lambda: Pieces(tmp_path / "tokenizer.json", 0, 4)),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            read()
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_configuration_of_characters_is_read(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({"A": 1, "B": 2, "_": 3, "U": 4}))
    assert Characters.read(tmp_path, 0, 5).decode([1, 3, 4]) == "A_U"
    config = {"word_delimiter_token": {"content": "_"}, "unk_token": "U", "do_lower_case": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    characters = Characters.read(tmp_path, 0, 5)
    assert characters.decode([1, 3, 2, 4]) == characters.reference("A b") == "a b"
    assert characters.encode("a b") == [1, 3, 2]


@pytest.mark.parametrize(
    ("vocab", "pad", "unknown", "lower"),
    [(UPPER, "<pad>", "<unk>", False), (UPPER, "<pad>", "<unk>", True), (LOWER, "[PAD]", "[UNK]", False)],
)
def test_characters_equal_those_of_transformers(tmp_path, vocab, pad, unknown, lower):
    pytest.importorskip("transformers", reason="needs minihra[parity]")
    from transformers import Wav2Vec2CTCTokenizer

    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    theirs = Wav2Vec2CTCTokenizer(
        str(tmp_path / "vocab.json"), pad_token=pad, unk_token=unknown, bos_token=None, eos_token=None
    )
    theirs.do_lower_case = lower
    ours = Characters(vocab, vocab[pad], unknown=unknown, lower=lower)
    text = "TWO FOUR" if vocab is UPPER else "note boat"
    labels = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == labels
    assert ours.decode(labels) == theirs.decode(labels, group_tokens=False, skip_special_tokens=True)


def trained(path, kind):
    """Train a small tokenizer of a kind, with a blank behind its pieces as in Parakeet (BPE) or as 0 (Unigram)."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs minihra[tokenizers]")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if kind == "bpe":
        made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    elif kind == "silent":
        made = tokenizers.Tokenizer(models.BPE())  # without a piece for the unknown, which it leaves out
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<pad>"], show_progress=False)
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        special = ["<pad>", "</s>", "<unk>"]
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(TEXTS, trainer)
    made.enable_padding(length=50)
    made.enable_truncation(max_length=3)
    made.save(str(path))
    return made.get_vocab_size()


@pytest.mark.parametrize("kind", ["bpe", "silent", "unigram"])
def test_pieces_there_and_back(tmp_path, kind):
    path = tmp_path / "tokenizer.json"
    size = trained(path, kind)
    blank, labels = (size, size + 1) if kind == "bpe" else (0, size)
    pieces = Pieces(path, blank, labels)
    assert (pieces.blank, pieces.unit, len(pieces)) == (blank, "word", labels)
    for text in TEXTS:
        written = pieces.encode(text)
        assert pieces.decode(written) == text
        assert pieces.encode(text.upper()) == written  # the pieces are in lower case
        assert pieces.reference(f" {text.upper()}  ") == text
        assert max(written) < labels
        assert blank not in written
    assert len(pieces.encode("one two one two")) < len("one two one two")
    assert pieces.decode([*pieces.encode("one"), blank, size + 7]) == "one"
    assert pieces.units("one two") == ["one", "two"]
    assert pieces.describe() == f"{labels} word pieces, lower case"


@pytest.mark.parametrize("kind", ["bpe", "silent", "unigram"])
def test_what_pieces_cannot_write_is_named(tmp_path, kind):
    path = tmp_path / "tokenizer.json"
    size = trained(path, kind)
    pieces = Pieces(path, size if kind == "bpe" else 0, size + 1)
    with pytest.raises(ValueError, match=r"character 5 of 'one 2 two', '2', is in no piece of tokenizer\.json"):
        pieces.encode("One 2 two")
    assert pieces.reference("One 2 two") == "one 2 two"


def test_pieces_of_another_model_are_named(tmp_path):
    path = tmp_path / "tokenizer.json"
    size = trained(path, "bpe")
    with pytest.raises(ValueError, match=rf"{path}: piece '.*' has label \d+, the model 0 \.\.\. {size - 2}"):
        Pieces(path, 0, size - 1)
    with pytest.raises(ValueError, match=f"the blank is label {size}, but"):
        Pieces(path, size, size)
    path.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(ValueError, match="damaged, no tokenizer"):
        Pieces(path, 0, 4)


def test_pieces_equal_those_of_transformers(tmp_path):
    pytest.importorskip("transformers", reason="needs minihra[parity]")
    path = tmp_path / "tokenizer.json"
    size = trained(path, "unigram")
    from transformers import PreTrainedTokenizerFast

    theirs, pieces = PreTrainedTokenizerFast(tokenizer_file=str(path)), Pieces(path, 0, size)
    for text in TEXTS:
        labels = theirs(text, add_special_tokens=False, padding=False, truncation=False).input_ids
        assert pieces.encode(text) == labels
        assert pieces.decode(labels) == theirs.decode(labels, skip_special_tokens=True)


@pytest.mark.parametrize("package", ["tokenizers", "hama"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install 'minihra\[{package}\]'"):
        Pieces(tmp_path / "tokenizer.json", 0, 4) if package == "tokenizers" else Phonemes.read()


def test_phonemes_are_read_by_words():
    phonemes = Phonemes(["<pad>", " ", "t", "oʊ", "w", BOUNDARY, BLANK])
    assert (phonemes.blank, phonemes.unit, len(phonemes)) == (6, "phoneme", 7)
    assert phonemes.decode([5, 2, 4, 1, 0, 3, 5, 5, 2, 5]) == "t w oʊ | t"
    assert phonemes.units("t w oʊ | t") == ["t", "w", "oʊ", "t"]
    assert phonemes.decode([]) == phonemes.decode([5]) == ""
    with pytest.raises(ValueError, match="lack <blank>"):
        Phonemes([BOUNDARY])


def test_words_have_no_punctuation_but_apostrophes():
    assert words_of("Don’t (stop), 'tis forty-two; e-mail — it's.") == [
        *("don't", "stop", "tis", "forty", "two", "e", "mail", "it's"),
    ]


def test_phonemes_of_hama():
    hama = pytest.importorskip("hama", reason="needs minihra[hama]")
    phonemes = Phonemes.read()
    assert (len(phonemes), phonemes.blank, phonemes.describe()) == (191, 190, "184 phonemes (hama)")
    assert phonemes.reference("Hello, world") == "h ɛ l oʊ | w ɝ l d"
    assert phonemes.encode("hello world").count(189) == 1
    assert phonemes.encode("-") == []
    model = hama.G2PModel()
    for word in ("question", "don't", "antidisestablishmentarianism", "seven"):
        assert "".join(phonemes.reference(word).split()) == model(word).ipa
    for text, message in (
        ("room 42", "word 2 of 'room 42', '42', has digits"),
        ("αβγ", "'αβγ', has a character that hama does not know"),
        ("ab" * 70, "is too long for hama"),
    ):
        with pytest.raises(ValueError, match=message):
            phonemes.encode(text)
