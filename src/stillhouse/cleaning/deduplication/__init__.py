"""Steps that compare all documents, one file each; the file's name is the step's in a recipe.

Contract: a step first computes a signature of each document, while the document is cleaned, and
then, from the signatures of all, which documents or lines repeat earlier ones. The first of equals,
in the order of the shards, is kept. What is found does not depend on the number of processes.
Adding one is adding a file that defines `DEDUPLICATION`, and its name where it runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt64

from stillhouse.section import Section

Place = tuple[int, int]  # of a row: the number of its shard, and its own in that


@dataclass(frozen=True)
class Signatures:
    """The signatures of a shard: those of document i are `rows[starts[i] : starts[i + 1]]`; a step
    on documents has one each, a step on lines one for each line.

    Attributes:
        file: Of the rows, as `numpy.save` writes it.
    """

    file: Path
    starts: Int[np.ndarray, " S"]  # one more than there are documents

    @property
    def num_rows(self) -> int:
        return int(self.starts[-1])

    @property
    def rows(self) -> UInt64[np.ndarray, "R W"]:
        """The rows, mapped into memory while they are in use: a mapping holds a file open, and
        there may be more shards than a process may open files."""
        return np.load(self.file, mmap_mode="r")


class Group(NamedTuple):
    """Equal or similar rows: how many there are, and the first of them."""

    size: int
    places: list[Place]


@dataclass
class Found:
    """What repeats something earlier.

    Attributes:
        removed: For each shard, which of its rows.
        sizes: How many groups of equal or similar rows have which size, each with the row that is
            kept.
        examples: Some of the groups, the largest first.
    """

    removed: list[Bool[np.ndarray, " _"]]
    sizes: dict[int, int] = field(default_factory=dict)
    examples: list[Group] = field(default_factory=list)


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


ORDER = ("duplicates", "near_duplicates", "duplicate_lines")
DEDUPLICATIONS: dict[str, Deduplication] = {
    name: import_module(f"{__name__}.{name}").DEDUPLICATION for name in ORDER
}
