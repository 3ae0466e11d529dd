"""Remove lines that have occurred before, in the same document or an earlier one.

Case, digits, marks and white space do not count (Wenzek et al. 2020, "CCNet", section 3.2, which
compares paragraphs this way). Whole lines only: what is left of a document are lines as they were.
"""

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt64
from pydantic import PositiveInt

from stillhouse.cleaning.deduplication import Deduplication, Found, Signatures
from stillhouse.cleaning.deduplication.grouping import equal_rows
from stillhouse.section import Section

DIGIT = re.compile(r"\d")
NOT_OF_A_WORD = re.compile(r"[^\w\n]+")
NOT_COMPARED = 0  # the row of a line that is too short


class DuplicateLinesRecipe(Section):
    """Repeated lines."""

    min_characters: PositiveInt = 30
    """Fewest letters and digits of a line that is compared; shorter ones are kept."""


def sign(settings: DuplicateLinesRecipe) -> Callable[[str], UInt64[np.ndarray, "L 1"]]:
    def rows(text: str) -> UInt64[np.ndarray, "L 1"]:
        lines = NOT_OF_A_WORD.sub("", DIGIT.sub("0", text.lower())).split("\n")
        hashes = [
            _hash(line) if len(line) >= settings.min_characters else NOT_COMPARED for line in lines
        ]
        return np.array(hashes, np.uint64).reshape(-1, 1)

    return rows


def _hash(line: str) -> int:
    digest = hashlib.blake2b(line.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def find(
    settings: DuplicateLinesRecipe,
    shards: Sequence[Signatures],
    kept: Sequence[Bool[np.ndarray, " _"]],
) -> Found:
    return equal_rows(shards, kept, lambda rows: rows[:, 0] != NOT_COMPARED)


DEDUPLICATION = Deduplication("line", DuplicateLinesRecipe, sign, find)
