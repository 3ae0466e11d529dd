"""Words of a text and hashes of runs of them.

Contract: hashes are 64 bits, the same on every machine and in every process. Two words, or two runs
of words, that differ have the same hash with a probability of about 2^-64.
"""

import hashlib
import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt64

WORD = re.compile(r"\w+")
TOKEN = re.compile(r"\w+|[^\w\s]")
MOST_KNOWN = 2**20  # words whose hash is kept
BASE = np.uint64(0x9E3779B97F4A7C15)  # of the polynomial over a run; odd, hence invertible


class _Hashes(dict[str, int]):
    """The hash of each word; most words of a text were seen before."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_KNOWN:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = self[word] = int.from_bytes(digest, "little")
        return found


_HASHES = _Hashes()


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return WORD.findall(text.lower())


def tokens_of(text: str) -> list[str]:
    """Runs of letters and digits, and each other mark that is not white space."""
    return TOKEN.findall(text)


def hash_words(words: Iterable[str]) -> UInt64[np.ndarray, " N"]:
    """The hash of each word."""
    return np.fromiter(map(_HASHES.__getitem__, words), np.uint64)


def hash_runs(hashes: UInt64[np.ndarray, " N"], length: int) -> UInt64[np.ndarray, " R"]:
    """The hash of each run of `length` consecutive words; none where there are fewer words.

    With h the hashes of the words, mix(sum over k of h[i + k] * BASE^(length - 1 - k)) mod 2^64.
    """
    number = max(0, len(hashes) - length + 1)
    runs = np.zeros(number, np.uint64)
    for start in range(length):
        runs *= BASE
        runs += hashes[start : start + number]
    return mixed(runs)


def mixed(values: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """A bijection of 64-bit numbers whose output bits each depend on all input bits.

    Source: the finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom
    Number Generators", variant 13 of Stafford's mixers).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
