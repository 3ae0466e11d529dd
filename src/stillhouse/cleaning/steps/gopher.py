"""Quality and repetition rules of Gopher (Rae et al. 2021, appendix A.1.1, table A1).

Words are runs of letters and digits; shares of symbols and of words with a letter are those of the
words between white space. Shares of characters leave out white space and marks.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, UInt64
from pydantic import PositiveInt

from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.cleaning.words import hash_runs, hash_words, words_of
from stillhouse.section import Section

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
BULLETS = ("•", "-", "*", "‣", "●")
ELLIPSES = ("...", "…")
LARGEST_TOP_RUN = {2: 0.20, 3: 0.18, 4: 0.16}  # share of the characters, by number of words
LARGEST_REPEATED_RUNS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
LETTER = re.compile(r"[^\W\d_]")
PARAGRAPH_END = re.compile(r"\n{2,}")


class GopherRecipe(Section):
    """Rules of Gopher."""

    min_words: PositiveInt = 50
    """Fewest words of a document."""
    max_words: PositiveInt = 100_000
    """Most words of a document; books are longer."""
    stop_words: bool = True
    """Leave out documents with fewer than two of eight frequent English words."""


def make(settings: GopherRecipe) -> Judge:
    def judge(page: Page) -> str | None:
        return next(_problems(page.text, settings), None)

    return judge


def _problems(text: str, settings: GopherRecipe) -> Iterator[str]:
    words = words_of(text)
    if len(words) < settings.min_words:
        yield f"under {settings.min_words} words"
        return
    if len(words) > settings.max_words:
        yield f"over {settings.max_words:,} words"
    mean = sum(map(len, words)) / len(words)
    if not 3 <= mean <= 10:
        yield f"mean word length {'under 3' if mean < 3 else 'over 10'}"
    spaced = text.split()
    if text.count("#") > 0.1 * len(spaced):
        yield "hash signs over 0.1 of the words"
    if sum(map(text.count, ELLIPSES)) > 0.1 * len(spaced):
        yield "ellipses over 0.1 of the words"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines):
        yield "lines with a bullet over 0.9"
    if sum(line.endswith(ELLIPSES) for line in lines) > 0.3 * len(lines):
        yield "lines that end with an ellipsis over 0.3"
    if sum(word[0].isalpha() or bool(LETTER.search(word)) for word in spaced) < 0.8 * len(spaced):
        yield "words with a letter under 0.8"
    if settings.stop_words and len(STOP_WORDS.intersection(words)) < 2:
        yield "fewer than 2 stop words"
    yield from _repetitions(text, lines)
    yield from _repeated_runs(words)


def _repetitions(text: str, lines: Sequence[str]) -> Iterator[str]:
    paragraphs = [part.strip() for part in PARAGRAPH_END.split(text) if part.strip()]
    for name, parts in (("paragraphs", paragraphs), ("lines", lines)):
        repeated = [part for part, count in Counter(parts).items() for _ in range(count - 1)]
        if len(repeated) > 0.3 * len(parts):
            yield f"repeated {name} over 0.3"
        if sum(map(len, repeated)) > 0.2 * len(text):
            yield f"characters of repeated {name} over 0.2"


def _repeated_runs(words: Sequence[str]) -> Iterator[str]:
    """The rules of runs; no more lengths are looked at than can break one."""
    hashes = hash_words(words)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.concatenate([[0], np.cumsum(lengths)])
    longest = max(LARGEST_TOP_RUN)
    largest = (ends[longest:] - ends[:-longest]).max(initial=0)  # characters of a run
    for length, most in LARGEST_TOP_RUN.items():
        _, first, counts = np.unique(
            hash_runs(hashes, length), return_index=True, return_counts=True
        )
        if not len(counts) or counts.max() < 2:
            return  # then no longer run is repeated either
        sizes = counts * (ends[first + length] - ends[first])
        if sizes[counts == counts.max()].max() > most * ends[-1]:
            yield f"most frequent run of {length} words over {most}"
        # A longer run is no more frequent than the most frequent one of this length.
        if counts.max() * largest <= min(LARGEST_TOP_RUN.values()) * ends[-1]:
            break
    for length, most in LARGEST_REPEATED_RUNS.items():
        covered = repeated_words(hash_runs(hashes, length), length, len(words))
        characters = lengths[covered].sum()
        if characters > most * ends[-1]:
            yield f"repeated runs of {length} words over {most}"
        # Longer repeated runs cover no other words.
        if characters <= min(LARGEST_REPEATED_RUNS.values()) * ends[-1]:
            return


def repeated_words(
    runs: UInt64[np.ndarray, " R"], length: int, num_words: int
) -> Bool[np.ndarray, " N"]:
    """Which words are in a run that has occurred before it."""
    _, first = np.unique(runs, return_index=True)
    is_repeated = np.ones(len(runs), bool)
    is_repeated[first] = False
    starts = np.zeros(num_words + 1, np.int64)
    starts[: len(runs)] += is_repeated
    starts[length : length + len(runs)] -= is_repeated
    return np.cumsum(starts)[:num_words] > 0


STEP = Step(GopherRecipe, make)
