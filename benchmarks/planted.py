"""Texts with planted near duplicates: passages of books, and copies of some of them whose words are
edited."""

import gzip
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

HEADING = re.compile(r"^\s*chapter\b.*$", re.IGNORECASE | re.MULTILINE)
FEWEST_WORDS = 500  # of a chapter; shorter ones are lines of a table of contents
MOST_WORDS = 20_000  # longer ones are books whose chapters have other headings
KINDS = {"chapters": None, "passages of 1,000 words": 1000, "passages of 200 words": 200}


def read_books(path: Path) -> list[str]:
    """The texts of a file of books, one JSON line each."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def chapters_of(book: str) -> list[str]:
    """The parts between lines that begin with "chapter"."""
    return [part for part in HEADING.split(book) if FEWEST_WORDS <= len(part.split()) <= MOST_WORDS]


def passages_of(book: str, num_words: int) -> list[str]:
    """Consecutive parts of `num_words` words."""
    words = book.split()
    starts = range(0, len(words) - num_words + 1, num_words)
    return [" ".join(words[start : start + num_words]) for start in starts]


def documents_of(books: Sequence[str], kind: str, most: int) -> list[str]:
    """Different documents of a kind, all of the first books."""
    found: list[str] = []
    for book in books:
        size = KINDS[kind]
        found += chapters_of(book) if size is None else passages_of(book, size)
        if len(found) >= most:
            break
    return found[:most]


def edited(text: str, rate: float, words: Sequence[str], draw: random.Random) -> str:
    """Each word is edited with the probability `rate`: replaced by one of `words`, removed, or
    followed by one of them, each as often."""
    parts: list[str] = []
    for word in text.split():
        if draw.random() >= rate:
            parts.append(word)
            continue
        kind = draw.randrange(3)
        if kind == 0:
            parts.append(draw.choice(words))
        elif kind == 1:
            parts += [word, draw.choice(words)]
    return " ".join(parts)
