"""Groups of equal or similar rows over all shards, in bounded memory.

Contract: rows are numbered over all shards, in their order; the first of a group is kept. Groups do
not depend on where the shards begin or end.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from tempfile import TemporaryFile

import numpy as np
from jaxtyping import Bool, Int, UInt64

from stillhouse.cleaning.deduplication import Found, Group, Place, Signatures

MOST_EXAMPLES = 20  # groups
MOST_PLACES = 3  # of a group
ROWS_AT_ONCE = 2**21  # that are sorted, at up to 80 bytes each
MOST_PARTS = 128  # each an open file; above that many times ROWS_AT_ONCE, a part has more rows

Admit = Callable[[UInt64[np.ndarray, "R W"]], Bool[np.ndarray, " R"]]


class Rows:
    """The rows of all shards; none of them is held in memory."""

    def __init__(self, shards: Sequence[Signatures]) -> None:
        self._shards = shards
        self._ends = np.cumsum([shard.num_rows for shard in shards], dtype=np.int64)
        self._starts = np.concatenate([[0], self._ends[:-1]]).astype(np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def blocks(self) -> Iterator[tuple[int, UInt64[np.ndarray, "R W"]]]:
        """The rows of each shard, with the number of the first."""
        for start, shard in zip(self._starts.tolist(), self._shards, strict=True):
            yield start, shard.rows

    def take(self, numbers: Int[np.ndarray, " N"]) -> UInt64[np.ndarray, "N W"]:
        """The rows with these numbers, at least one."""
        order = np.argsort(numbers, kind="stable")
        rising = numbers[order]
        bounds = np.searchsorted(rising, np.append(self._starts, len(self))).tolist()
        parts = [
            self._shards[shard].rows[rising[low:high] - self._starts[shard]]
            for shard, (low, high) in enumerate(pairwise(bounds))
            if low < high
        ]
        taken = np.concatenate(parts)
        rows = np.empty_like(taken)
        rows[order] = taken
        return rows

    def place(self, number: int) -> Place:
        """The shard of a row, and its number there."""
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return shard, number - int(self._starts[shard])

    def split(self, values: Bool[np.ndarray, " R"]) -> list[Bool[np.ndarray, " _"]]:
        """The part of each shard."""
        return np.split(values, self._ends[:-1]) if len(self._ends) else []


class Grouping:
    """What is known of the groups that were added."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._removed = np.zeros(len(rows), bool)
        self._sizes = Counter[int]()
        self._largest: list[tuple[int, list[int]]] = []

    def add(self, numbers: Int[np.ndarray, " N"], is_first: Bool[np.ndarray, " N"]) -> None:
        """Add whole groups: the numbers of their rows, group by group and rising in each, and which
        of these begin a group."""
        self._removed[numbers[~is_first]] = True
        starts = np.flatnonzero(is_first)
        sizes = np.diff(np.append(starts, len(numbers)))
        starts, sizes = starts[sizes > 1], sizes[sizes > 1]
        found, counts = np.unique(sizes, return_counts=True)
        self._sizes.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        largest = np.lexsort((numbers[starts], -sizes))[:MOST_EXAMPLES]
        for start, size in zip(starts[largest].tolist(), sizes[largest].tolist(), strict=True):
            self._largest.append((size, numbers[start : start + min(size, MOST_PLACES)].tolist()))
        self._largest = sorted(self._largest, key=lambda group: (-group[0], group[1]))
        del self._largest[MOST_EXAMPLES:]

    def found(self) -> Found:
        """All groups."""
        return Found(
            self._rows.split(self._removed),
            dict(sorted(self._sizes.items())),
            [Group(size, [self._rows.place(one) for one in ones]) for size, ones in self._largest],
        )


def equal_rows(
    shards: Sequence[Signatures],
    kept: Sequence[Bool[np.ndarray, " _"]],
    admit: Admit | None = None,
) -> Found:
    """Groups of rows that are equal.

    Rows are spread by their first word, which must be a hash, over parts that are sorted one after
    another. A part is a file without a name beside the signatures, with the rows and their numbers.

    Args:
        kept: Of each shard, the rows that are compared,
        admit: if it admits them, too.
    """
    rows = Rows(shards)
    grouping = Grouping(rows)
    num_bits = (min(MOST_PARTS, -(-len(rows) // ROWS_AT_ONCE) or 1) - 1).bit_length()
    with contextlib.ExitStack() as stack:
        parts = [
            stack.enter_context(TemporaryFile(dir=shards[0].file.parent))
            for _ in range(2**num_bits if shards else 0)
        ]
        width = 0
        for (start, block), own in zip(rows.blocks(), kept, strict=True):
            chosen = own if admit is None else own & admit(block)
            numbers = start + np.flatnonzero(chosen)
            numbered = np.column_stack([numbers.astype(np.uint64), block[chosen]])
            width = numbered.shape[1]
            part = (numbered[:, 1] >> np.uint64(63 - num_bits)) >> np.uint64(1)
            order = np.argsort(part, kind="stable")
            bounds = np.searchsorted(part[order], np.arange(len(parts) + 1)).tolist()
            for file, (low, high) in zip(parts, pairwise(bounds), strict=True):
                file.write(numbered[order[low:high]].tobytes())
        for file in parts:
            file.seek(0)
            grouping.add(*_sorted_groups(np.fromfile(file, np.uint64).reshape(-1, width)))
    return grouping.found()


def _sorted_groups(
    numbered: UInt64[np.ndarray, "N V"],
) -> tuple[Int[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """The numbers of rows, group by group, and which begin a group; `numbered` has the number of a
    row before its words."""
    numbered = numbered[np.lexsort(numbered.T[:0:-1])]  # stable: equal rows stay in order
    is_first = np.ones(len(numbered), bool)
    is_first[1:] = (numbered[1:, 1:] != numbered[:-1, 1:]).any(axis=1)
    return numbered[:, 0].astype(np.int64), is_first


class Clusters:
    """A partition of numbered rows that grows by uniting pairs; a cluster's root is its first row.

    Parents are never larger than their children, so the root of a cluster is its smallest number,
    whatever the order of the pairs.
    """

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size, dtype=np.int64)

    def roots(self, rows: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
        """The root of each row's cluster."""
        found = self._parent[rows]
        while ((above := self._parent[found]) != found).any():
            found = above
        self._parent[rows] = found
        return found

    def unite(self, a: Int[np.ndarray, " N"], b: Int[np.ndarray, " N"]) -> None:
        """Unite the clusters of a[i] and b[i], for each i."""
        while len(a):
            a, b = self.roots(a), self.roots(b)
            is_apart = a != b
            a, b = a[is_apart], b[is_apart]
            np.minimum.at(self._parent, np.maximum(a, b), np.minimum(a, b))
