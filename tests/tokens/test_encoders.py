"""The fast encoder: used only where its ids equal those of `tokenizers`. Words are those of
`str.split`, code points those of `ord`."""

import sys
from collections.abc import Iterable

import numpy as np
import pytest
from tokenizers import normalizers, pre_tokenizers

from stillhouse.section import LanguageModeling
from stillhouse.tokens.encoders import (
    FIRST_CHARACTERS,
    SHARE,
    CheckedEncoder,
    FastTokenizerMismatchError,
    code_points,
    open_fast,
    word_starts,
)
from stillhouse.tokens.tokenizer import text_encoder
from stillhouse.tokens.tokenizer_training import train_tokenizer

LINES = [
    f"The stillhouse keeps {number} spirits and it's {number * 7} barrels.\n"
    for number in range(500)
]
ODD = "  two  spaces\t\ttabs\r\n\r\n<|endoftext|> 日本語 \u2003é e\u0301 🙂 \u200b x\u00a0y <mask>"


def trained(size=400, language_modeling: LanguageModeling = "causal"):
    return train_tokenizer("byte_bpe", size, iter(LINES), language_modeling)


def letters(texts):
    """A reference encoder: one token per character."""
    return [np.array([ord(letter) for letter in text], np.int64) for text in texts]


def wrong_at(mark: str):
    """The same, which loses a token wherever `mark` is."""

    def encode(texts):
        return letters([text.replace(mark, mark[1:]) for text in texts])

    return encode


def encode_all(encode: CheckedEncoder, texts: Iterable[str]) -> None:
    """A corpus from head to end, text by text."""
    with encode:
        for text in texts:
            encode([text])


def checked(fast, *, reference=letters, added_tokens=()):
    return CheckedEncoder(fast, reference, added_tokens)


@pytest.mark.parametrize("language_modeling", ["causal", "masked"])
def test_gigatoken_ids_equal_tokenizers_ids(language_modeling):
    """Token for token, in every text, special tokens in it included."""
    tokenizer = trained(language_modeling=language_modeling)
    texts = [*LINES, ODD, "", ODD * 50, "x" * 5000, ""]
    with open_fast(tokenizer) as encode:
        found = encode(texts)
    for ids, expected in zip(found, text_encoder(tokenizer)(texts), strict=True):
        assert ids.tolist() == expected.tolist()


CONFIGURATIONS = {
    "composed": lambda backend: setattr(backend, "normalizer", normalizers.NFC()),
    "lower case": lambda backend: setattr(backend, "normalizer", normalizers.Lowercase()),
    "stripped": lambda backend: setattr(backend, "normalizer", normalizers.Strip()),
    "a space before": lambda backend: setattr(
        backend, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "words of its own": lambda backend: backend.add_tokens(["spirits", "it's 7"]),
    "cut and padded": lambda backend: (
        backend.enable_truncation(4),
        backend.enable_padding(length=8),
    ),
    "single digits": lambda backend: setattr(
        backend,
        "pre_tokenizer",
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_tokenizer_with_other_rules_gives_equal_ids_or_is_refused(name):
    """What gigatoken does not do as `tokenizers` does, it is not given to do."""
    tokenizer = trained()
    CONFIGURATIONS[name](tokenizer.backend_tokenizer)
    texts = [*LINES[:50], ODD, ODD.upper()]
    try:
        with open_fast(tokenizer) as encode:
            found = encode(texts)
    except FastTokenizerMismatchError:
        return
    for ids, expected in zip(found, text_encoder(tokenizer)(texts), strict=True):
        assert ids.tolist() == expected.tolist()


def test_wordpiece_is_refused_by_the_fast_encoder():
    """gigatoken is for byte-level BPE alone."""
    with pytest.raises(FastTokenizerMismatchError, match="gigatoken is for byte-level BPE"):
        open_fast(train_tokenizer("wordpiece", 120, iter(LINES), "masked"))


def test_a_missing_gigatoken_names_the_install_command(monkeypatch):
    """The reason names the extra."""
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    with pytest.raises(
        FastTokenizerMismatchError, match=r"not installed \(pip install 'stillhouse\[fast\]'\)"
    ):
        open_fast(trained())


def test_different_merges_are_detected():
    """A tokenizer trained a little longer differs in the first text; the reason shows where."""
    encode = checked(text_encoder(trained(410)), reference=text_encoder(trained(400)))
    with pytest.raises(
        FastTokenizerMismatchError, match=r"gives \[.*\] from token \d+ of .The still.*\[.*\]"
    ):
        encode(LINES)


def test_a_missing_last_token_is_detected():
    """Equal as far as they go is not equal."""
    with pytest.raises(FastTokenizerMismatchError, match=r"gives \[\] from token 3 of 'abc'"):
        checked(lambda texts: [ids[:-1] for ids in letters(texts)])(["abc"])


@pytest.mark.parametrize("mark", ["é", "\u2003", "語", "\x07", "<end>"])
def test_the_first_occurrence_of_a_character_or_added_token_is_compared(mark):
    """However far into the text it is, between comparisons of whole texts."""
    encode = checked(wrong_at(mark), added_tokens=["<end>"])
    usual = "abc def end <> " * 2000
    corpus = [*[usual] * 20, f"{usual}{mark}{usual}", *[usual] * 20]
    with pytest.raises(FastTokenizerMismatchError):
        encode_all(encode, corpus)


def test_a_recurring_mismatch_is_detected():
    """One character in `SHARE` is compared, throughout the text."""
    good, bad = "ab " * 1000, "ba " * 1000
    head = [good] * (FIRST_CHARACTERS // len(good) + 2)
    with pytest.raises(FastTokenizerMismatchError):
        encode_all(checked(wrong_at("ba ba")), [*head, *[bad] * 2 * SHARE, good])


def test_the_last_text_is_compared():
    """A fault at the very end of the corpus is found when the text ends."""
    good, bad = "ab " * 1000, "ba " * 1000
    head = [good] * (FIRST_CHARACTERS // len(good) + 2)
    encode_all(checked(wrong_at("ba ba")), head)
    with pytest.raises(FastTokenizerMismatchError):
        encode_all(checked(wrong_at("ba ba")), [*head, bad])


def test_few_characters_are_compared():
    """The reference encodes the head, and then little more than its share."""
    seen = []

    def reference(texts):
        seen.extend(texts)
        return letters(texts)

    text = "ab " * 1000
    encode_all(checked(letters, reference=reference), [text] * 2000)
    allowed = FIRST_CHARACTERS + 2000 * len(text) // SHARE
    assert allowed <= sum(map(len, seen)) <= allowed + 3 * len(text)


@pytest.mark.parametrize(
    "broken",
    [lambda texts: letters(texts)[1:], lambda texts: 1 / 0, lambda texts: None],
    ids=["one result too few", "an error", "no result"],
)
def test_an_exception_or_panic_of_the_fast_encoder_is_a_mismatch(broken):
    """Its errors are a reason to do without it, not to stop."""
    with pytest.raises(FastTokenizerMismatchError, match=r"gigatoken .* failed \(.+\)$"):
        checked(broken)(["one", "two"])


TEXTS = [
    "",
    " ",
    "one",
    " one  two\n",
    "a\u00a0b\u2003c\u3000d\u200be\u0085f",
    "日本語 の 文字",
    "\x1c x \x1f",
    "🙂 🙂\U0010ffff ",
    "".join(f"x{chr(point)}" for point in range(0x4000)),
]


@pytest.mark.parametrize("text", TEXTS)
def test_word_starts_agrees_with_str_split(text):
    """White space is Python's own, outside ASCII too."""
    assert word_starts(text) == len(text.split())


@pytest.mark.parametrize("text", TEXTS)
def test_a_word_that_started_before_is_not_counted_twice(text):
    """A text cut anywhere holds the words of both parts."""
    for cut in range(0, len(text), max(1, len(text) // 50)):
        head, tail = text[:cut], text[cut:]
        inside = bool(head) and not head[-1].isspace()
        assert word_starts(head) + word_starts(tail, inside_word=inside) == len(text.split())


@pytest.mark.parametrize("text", TEXTS)
def test_code_points_are_those_of_the_characters(text):
    """One number a character, in order."""
    assert code_points(text).tolist() == [ord(character) for character in text]
