"""Texts made of words, and signatures of shards as cleaning writes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.cleaning.deduplication import Deduplication, Found, Signatures
from stillhouse.section import Section

Find = Callable[..., Found]


def text_of(numbers: Sequence[int]) -> str:
    """A text with a word for each number."""
    return " ".join(f"w{number}" for number in numbers)


def random_text(seed: int, num_words: int = 60) -> str:
    """A text of words that no text of another seed shares."""
    return text_of(
        (1000 * seed + np.random.default_rng(seed).integers(0, 1000, num_words)).tolist()
    )


def signatures(
    folder: Path, step: Deduplication, settings: Section, texts: Sequence[str]
) -> Signatures:
    """The signatures of a shard of texts."""
    sign = step.sign(settings)
    rows = [sign(text) for text in texts]
    file = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(file, np.concatenate(rows) if rows else np.zeros((0, 1), np.uint64))
    return Signatures(
        file, np.concatenate([[0], np.cumsum([len(own) for own in rows])]).astype(int)
    )


def removed_rows(found: Found) -> list[int]:
    """The numbers over all shards of the rows that are removed."""
    return np.flatnonzero(np.concatenate(found.removed)).tolist()


def finder(folder: Path, step: Deduplication) -> Find:
    """What finds repetitions in shards of texts."""

    def find(*shards: Sequence[str], without: Sequence[int] = (), **settings: Any) -> Found:
        own = step.settings(**settings)
        signed = [signatures(folder, step, own, texts) for texts in shards]
        kept = [np.ones(each.num_rows, bool) for each in signed]
        for row in without:  # of the first shard
            kept[0][row] = False
        return step.find(own, signed, kept)

    return find
