"""Characters: words are those of `str.split`, code points those of `ord`."""

import pytest

from stillhouse.tokens.characters import code_points, word_starts

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
