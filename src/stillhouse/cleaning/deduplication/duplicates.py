"""Remove documents whose text equals that of an earlier one, but for white space and case."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from stillhouse.cleaning.deduplication import Deduplication, Found, Place, Signatures
from stillhouse.section import Section

MOST_EXAMPLES = 20


class DuplicatesRecipe(Section):
    """Exact duplicates."""


def sign(settings: DuplicatesRecipe) -> Callable[[str], np.ndarray]:
    def row(text: str) -> np.ndarray:
        content = " ".join(text.lower().split()).encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(content, digest_size=16).digest()
        return np.frombuffer(digest, "<u8").reshape(1, 2)

    return row


def find(
    settings: DuplicatesRecipe, shards: Sequence[Signatures], kept: Sequence[np.ndarray]
) -> Found:
    rows = np.concatenate([shard.rows for shard in shards])
    is_kept = np.concatenate(kept)
    places = np.flatnonzero(is_kept)
    _, group = np.unique(rows[places], axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")  # within a group, in the order of the text
    sorted_group = group[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = sorted_group[1:] != sorted_group[:-1]
    removed = np.zeros(len(rows), bool)
    removed[places[order[~is_first]]] = True
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(order)))
    largest = np.argsort(-sizes, kind="stable")[:MOST_EXAMPLES]
    ends = np.cumsum([len(shard.rows) for shard in shards])
    examples = [
        [place_of(int(places[order[i]]), ends) for i in range(starts[k], starts[k] + sizes[k])]
        for k in largest
        if sizes[k] > 1
    ]
    return Found(
        np.split(removed, ends[:-1]),
        {int(size): number for size, number in sorted(Counter(sizes.tolist()).items()) if size > 1},
        examples,
    )


def place_of(position: int, ends: np.ndarray) -> Place:
    """The shard of a document, and its number there, from its number in all."""
    shard = int(np.searchsorted(ends, position, side="right"))
    return shard, position - (int(ends[shard - 1]) if shard else 0)


DEDUPLICATION = Deduplication("document", DuplicatesRecipe, sign, find)
