"""Rules of C4: lines without terminal punctuation and the like are removed, and pages with few
sentences, code or placeholder text left out (Raffel et al. 2020, section 2.2).

Words are those between white space; sentences end at `.`, `!` or `?` before white space, and at the
end of a line. Typographic quotation marks end a line, too. The list of offensive words is not
applied.
"""

import re

from pydantic import NonNegativeInt

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.section import Section

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
LINE_ENDS = (".", "?", "!", '"', "'", "\u201d", "\u2019")  # the last two are closing quotes
SENTENCE_END = re.compile(r"[.!?][\"'\u201d\u2019)]*(?=\s|$)")
MAX_WORD_CHARACTERS = 1000
POLICIES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip


class C4Recipe(Section):
    """Rules of C4."""

    min_sentences: NonNegativeInt = 5
    """Fewest sentences of a document."""
    min_words_per_line: NonNegativeInt = 3
    """Fewest words of a line."""
    terminal_punctuation: bool = True
    """Remove lines that end in no sentence mark."""


def make(settings: C4Recipe) -> Judge:
    def judge(page: Page) -> str | None:
        lowered = page.text.lower()
        if "lorem ipsum" in lowered:
            return "lorem ipsum"
        if "{" in page.text:
            return "curly bracket"
        lines = [CITATION.sub("", line).strip() for line in page.text.splitlines()]
        kept = [line for line in lines if not line or _is_kept(line, settings)]
        text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
        if not text:
            return "no line is left"
        if sum(map(_num_sentences, text.splitlines())) < settings.min_sentences:
            return f"under {settings.min_sentences} sentences"
        page.text = text
        return None

    return judge


def _num_sentences(line: str) -> int:
    return sum(not part.isspace() for part in SENTENCE_END.split(line) if part)


def _is_kept(line: str, settings: C4Recipe) -> bool:
    ends = line.endswith(LINE_ENDS) and not line.endswith("...")
    if settings.terminal_punctuation and not ends:
        return False
    words = line.split()
    if len(words) < settings.min_words_per_line or max(map(len, words)) > MAX_WORD_CHARACTERS:
        return False
    lowered = line.lower()
    return "javascript" not in lowered and not any(policy in lowered for policy in POLICIES)


STEP = Step(C4Recipe, make)
