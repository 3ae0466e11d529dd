"""Steps that compare all documents, one file each; the file's name is the step's in a recipe.

Contract: a step first computes a signature of each document, while the document is cleaned, and
then, from the signatures of all, which documents or lines repeat earlier ones. The first of equals,
in the order of the shards, is kept. What is found does not depend on the number of processes.
Adding one is adding a file that defines `DEDUPLICATION`, and its name where it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int, UInt64

from stillhouse.section import Section

Place = tuple[int, int]  # of a document: the number of its shard, and its own in that


@dataclass(frozen=True)
class Signatures:
    """The signatures of a shard: those of document i are `rows[starts[i] : starts[i + 1]]`; a step
    on documents has one each, a step on lines one for each line."""

    rows: UInt64[np.ndarray, "R W"]
    starts: Int[np.ndarray, " S"]


@dataclass
class Found:
    """What repeats something earlier.

    Attributes:
        removed: For each shard, which of its rows.
        sizes: How many groups of equal or similar documents have which size, each with the
            document that is kept.
        examples: Some of the groups, the largest first.
    """

    removed: list[Bool[np.ndarray, " _"]]
    sizes: dict[int, int] = field(default_factory=dict)
    examples: list[list[Place]] = field(default_factory=list)


@dataclass(frozen=True)
class Deduplication:
    """A step that compares all documents.

    Attributes:
        unit: What it removes.
        settings: Its section in a recipe.
        sign: For a section, what computes the rows of a text.
        find: What repeats something earlier, from a section, the signatures of each shard and
            which of its rows an earlier step has left.
    """

    unit: Literal["document", "line"]
    settings: type[Section]
    sign: Callable[[Any], Callable[[str], UInt64[np.ndarray, "K W"]]]
    find: Callable[[Any, Sequence[Signatures], Sequence[Bool[np.ndarray, " _"]]], Found]


ORDER = ("duplicates",)
DEDUPLICATIONS: dict[str, Deduplication] = {
    name: import_module(f"{__name__}.{name}").DEDUPLICATION for name in ORDER
}
