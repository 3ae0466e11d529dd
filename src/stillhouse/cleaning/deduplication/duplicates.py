"""Remove documents whose text equals that of an earlier one, but for white space and case."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt64

from stillhouse.cleaning.deduplication import Deduplication, Found, Signatures
from stillhouse.cleaning.deduplication.grouping import equal_rows
from stillhouse.section import Section


class DuplicatesRecipe(Section):
    """Exact duplicates."""


def sign(settings: DuplicatesRecipe) -> Callable[[str], UInt64[np.ndarray, "1 2"]]:
    def row(text: str) -> UInt64[np.ndarray, "1 2"]:
        content = " ".join(text.lower().split()).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        return np.frombuffer(digest, "<u8").reshape(1, 2)

    return row


def find(
    settings: DuplicatesRecipe,
    shards: Sequence[Signatures],
    kept: Sequence[Bool[np.ndarray, " _"]],
) -> Found:
    return equal_rows(shards, kept)


DEDUPLICATION = Deduplication("document", DuplicatesRecipe, sign, find)
