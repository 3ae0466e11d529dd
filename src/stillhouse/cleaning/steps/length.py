"""Leave out documents that are too short or too long.

OpenWebText left out those under 128 tokens of GPT-2 (Gokaslan and Cohen 2019). Here a token is a
run of letters and digits or a punctuation mark, which needs no tokenizer.
"""

from pydantic import NonNegativeInt, PositiveInt

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.cleaning.words import TOKEN
from stillhouse.section import Section


class LengthRecipe(Section):
    """Shortest and longest documents that are kept."""

    min_tokens: NonNegativeInt = 128
    """Fewest tokens of a document; here a token is a run of letters and digits, or a mark."""
    max_characters: PositiveInt = 20_000_000
    """Most characters of a document."""


def make(settings: LengthRecipe) -> Judge:
    least, most = settings.min_tokens, settings.max_characters

    def judge(page: Page) -> str | None:
        if len(page.text) > most:
            return f"over {most:,} characters"
        # A document of this many characters without white space in it is not worth counting.
        if len(page.text) < least or not _has_tokens(page.text, least):
            return f"under {least} tokens"
        return None

    return judge


def _has_tokens(text: str, number: int) -> bool:
    tokens = TOKEN.finditer(text)
    return all(next(tokens, None) is not None for _ in range(number))


STEP = Step(LengthRecipe, make)
