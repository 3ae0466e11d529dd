"""Tokens to text as they come: the whole text in the end, no half characters on the way, and
nothing of a text that stops it."""

import random

import pytest
from tests.byte_fallback import byte_fallback_tokenizer

from stillhouse.inference.engine.text_stream import TextStream
from stillhouse.tokens.tokenizer import load_tokenizer
from stillhouse.tokens.tokenizer_training import train_tokenizer

TEXT = "Ein süßer Schluck, 一滴一滴 🥃🏴‍☠️ and once more.\n\nA line."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Bytes and few words: most of the text's characters take several tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_tokenizer("byte_bpe", 268, iter(["and once more and once more"]), "causal")
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def pieces(tokenizer, ids, prompt_ids=(), stop=()):
    """What is shown for each token, and what is left for the end."""
    stream = TextStream(tokenizer, prompt_ids, stop)
    shown = []
    for token in ids:
        shown.append(stream.push(token))
        if stream.stopped:
            break
    return [*shown, stream.finish()], stream


def test_the_pieces_are_the_text(tokenizer):
    """Joined they are what the tokenizer decodes at once, and no piece has half a character."""
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) > len(TEXT)
    shown, _ = pieces(tokenizer, ids)
    assert "".join(shown) == TEXT
    assert not any("\ufffd" in piece for piece in shown)


def test_a_prompt_may_end_inside_a_character(tokenizer):
    """Given as ids it can; what follows completes it."""
    ids = tokenizer("süß")["input_ids"]
    shown, _ = pieces(tokenizer, ids[2:], prompt_ids=ids[:2])
    assert "".join(shown) == "üß"


def test_bytes_that_are_no_character_come_at_the_end(tokenizer):
    """They are shown as the tokenizer shows them, not lost."""
    ids = [*tokenizer("more ")["input_ids"], *tokenizer("🥃")["input_ids"][:2]]
    shown, _ = pieces(tokenizer, ids)
    assert "".join(shown) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (("\n\n",), TEXT.split("\n\n")[0]),
        (("滴 ", "Schl"), "Ein süßer "),
        (("once more", "and once"), "Ein süßer Schluck, 一滴一滴 🥃🏴‍☠️ "),
        (("never there", "A line.."), TEXT),
    ],
)
def test_a_text_stops_where_the_first_of_these_begins(tokenizer, stop, expected):
    """Nothing of it is shown before it is known, and what only looked like it is."""
    shown, stream = pieces(tokenizer, tokenizer(TEXT)["input_ids"], stop=stop)
    assert "".join(shown) == expected
    assert stream.stopped == (expected != TEXT)


@pytest.fixture(scope="module")
def byte_fallback():
    """A run of bytes is decoded to characters only where the whole run is text."""
    return byte_fallback_tokenizer()


def test_bytes_of_many_characters_are_the_text(byte_fallback):
    """From the start, and after a prompt of which the last tokens are bytes."""
    ids = byte_fallback(TEXT)["input_ids"]
    shown, _ = pieces(byte_fallback, ids)
    assert "".join(shown) == byte_fallback.decode(ids) == TEXT
    assert not any("\ufffd" in piece for piece in shown)
    ids = byte_fallback("一滴一滴滴一 no")["input_ids"]
    for length in range(7, len(ids) - 2, 3):  # whole characters, after the space that is added
        shown, _ = pieces(byte_fallback, ids[length:], prompt_ids=ids[:length])
        assert byte_fallback.decode(ids[:length]) + "".join(shown) == "一滴一滴滴一 no"


def test_any_bytes_can_be_generated(byte_fallback):
    """A model of random weights, or a high temperature, writes what is no text: the letters between
    are all shown."""

    def letters(text):
        return [character for character in text if character != "\ufffd" and character < "\x80"]

    generator = random.Random(0)
    for _ in range(200):
        ids = [generator.randrange(2 + 0x80, len(byte_fallback)) for _ in range(24)]
        shown, _ = pieces(byte_fallback, ids)
        assert letters("".join(shown)) == letters(byte_fallback.decode(ids))
