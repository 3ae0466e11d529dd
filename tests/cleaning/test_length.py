"""Documents that are too short or too long."""

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.length import LengthRecipe, make


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("one two", 2), ("Well, yes!", 4), ("don't", 3), ("l'été", 3), ("中文 网页", 2), (" \n", 0)],
)
def test_words_and_marks_are_tokens(text, tokens):
    """A document is kept at its number of tokens, and not above."""
    assert make(LengthRecipe(min_tokens=tokens))(Page("1", text)) is None
    too_short = make(LengthRecipe(min_tokens=tokens + 1))(Page("1", text))
    assert too_short == f"under {tokens + 1} tokens"


def test_characters_at_most():
    judge = make(LengthRecipe(min_tokens=0, max_characters=1000))
    assert judge(Page("1", "x" * 1000)) is None
    assert judge(Page("1", "x" * 1001)) == "over 1,000 characters"


def test_openwebtext_left_out_documents_under_128_tokens():
    judge = make(LengthRecipe())
    assert judge(Page("1", "word " * 128)) is None
    assert judge(Page("1", "word " * 127)) == "under 128 tokens"
