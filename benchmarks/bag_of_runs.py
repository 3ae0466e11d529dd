"""Precision and recall of a text as a multiset of runs of words (benchmarks/extraction.py)."""

import math
import re
from collections import Counter

RUN_WORDS = 4
WORD = re.compile(r"\w+")


def runs_of(text: str) -> Counter[tuple[str, ...]]:
    """The runs of four words of a text; all of its words where they are fewer."""
    words = WORD.findall(text)
    if len(words) < RUN_WORDS:
        return Counter([tuple(words)] if words else [])
    return Counter(zip(*(words[start:] for start in range(RUN_WORDS)), strict=False))


def precision_and_recall(text: str, gold: str) -> tuple[float, float]:
    """Of the runs of a text the share that is gold, and of gold the share that the text has; NaN
    where there are no runs."""
    found, expected = runs_of(text), runs_of(gold)
    common = (found & expected).total()
    return (
        common / found.total() if found else math.nan,
        common / expected.total() if expected else math.nan,
    )
