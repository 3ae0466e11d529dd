"""Rules of FineWeb on lines: few with punctuation at their end, many short or repeated ones
(Penedo et al. 2024, section 3.6)."""

from collections import Counter

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.cleaning.words import tokens_of
from stillhouse.section import Section, UnitInterval

# The last ones are marks of Chinese, Arabic and Hindi.
LINE_ENDS = tuple(".!?\"'\u2019\u201d\u2026\u3002\uff01\uff1f\u061f\u0964")
SHORT_LINE = 30  # characters


class FinewebRecipe(Section):
    """Rules of FineWeb."""

    min_punctuated_lines: UnitInterval = 0.12
    """Lowest share of lines that end in punctuation."""
    max_repeated_characters: UnitInterval = 0.1
    """Highest share of characters in repeated lines (the paper's; FineWeb's code has 0.01)."""
    max_short_lines: UnitInterval = 0.67
    """Highest share of lines of under 30 characters."""
    max_lines_per_word: UnitInterval = 0.3
    """Most line ends per word."""


def make(settings: FinewebRecipe) -> Judge:
    def judge(page: Page) -> str | None:
        lines = [line.strip() for line in page.text.splitlines() if line.strip()]
        if not lines:
            return "no text"
        number = len(lines)
        if sum(line.endswith(LINE_ENDS) for line in lines) < settings.min_punctuated_lines * number:
            return f"lines with punctuation under {settings.min_punctuated_lines:g}"
        if sum(len(line) < SHORT_LINE for line in lines) > settings.max_short_lines * number:
            return f"short lines over {settings.max_short_lines:g}"
        counts = Counter(lines)
        repeated = sum((count - 1) * len(line) for line, count in counts.items())
        if repeated > settings.max_repeated_characters * sum(map(len, lines)):
            return f"characters of repeated lines over {settings.max_repeated_characters:g}"
        ends, most = page.text.count("\n"), settings.max_lines_per_word
        # There are at least as many words and marks as parts between white space.
        if ends > most * len(page.text.split()) and ends > most * len(tokens_of(page.text)):
            return f"lines per word over {most:g}"
        return None

    return judge


STEP = Step(FinewebRecipe, make)
