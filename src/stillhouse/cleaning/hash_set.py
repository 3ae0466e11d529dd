"""A set of 64-bit hashes that is asked for many at once."""

import numpy as np
from jaxtyping import Bool, UInt64

MOST_BITS = 26  # of a prefix: a table of 64 MiB
SLOTS = 8  # of the table, for each hash


class HashSet:
    """A fixed set of hashes.

    Most hashes that are asked for are not in it, and a table of their first bits says so in one
    access to memory; the others are searched for.
    """

    def __init__(self, hashes: UInt64[np.ndarray, " N"]) -> None:
        self._sorted = np.unique(hashes)
        bits = min(MOST_BITS, (SLOTS * len(self._sorted)).bit_length() + 1)
        self._shift = np.uint64(64 - bits)
        self._prefixes = np.zeros(2**bits, bool)
        self._prefixes[self._sorted >> self._shift] = True

    def __len__(self) -> int:
        return len(self._sorted)

    def contains(self, hashes: UInt64[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """Which of the hashes are in it."""
        is_in = self._prefixes[hashes >> self._shift]
        places = np.flatnonzero(is_in)
        if len(places):
            rest = hashes[places]
            near = np.searchsorted(self._sorted, rest)
            is_in[places] = self._sorted[np.minimum(near, len(self) - 1)] == rest
        return is_in
