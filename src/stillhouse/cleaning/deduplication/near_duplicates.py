"""Remove documents that are nearly the same as an earlier one, by MinHash.

The similarity of two documents is the Jaccard similarity of their sets of runs of `run_words`
words. The smallest of a set's hashes is the same for two sets with that probability, so the share
of equal minima over many hash functions estimates it (Broder 1997, "On the resemblance and
containment of documents", section 2). Of each minimum 16 bits are kept, which adds 2^-16 of the
dissimilarity (Li and König 2010, "b-Bit Minwise Hashing", theorem 1).

Locality-sensitive hashing finds the pairs to compare: the minima are divided into bands, and
documents that agree in a whole band are candidates (Leskovec, Rajaraman and Ullman 2020, "Mining of
Massive Datasets", section 3.4). A candidate counts if the estimate over the whole signature reaches
the threshold. Clusters are transitive; of each the first document is kept.

A document takes 2 bytes for each permutation on disk, and about 130 bytes of memory while documents
are compared: with 128 permutations the 8 million of OpenWebText take 2.1 GB and 1.1 GB.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt16, UInt32, UInt64
from pydantic import Field, PositiveInt

from stillhouse.cleaning.deduplication import Deduplication, Found, Signatures
from stillhouse.cleaning.deduplication.grouping import Clusters, Grouping, Rows
from stillhouse.cleaning.words import BASE, hash_runs, hash_words, mixed, words_of
from stillhouse.section import Section

RUNS_AT_ONCE = 1024  # times the permutations: what fits into the cache of a core
BANDS_AT_ONCE = 8  # whose keys are in memory, 8 bytes for each document
PAIRS_AT_ONCE = 2**16  # whose signatures are in memory
NEIGHBORS = 32  # with how many of the documents after it, in the same bucket, one is compared
CANDIDATE_PROBABILITY = 0.9  # of a pair whose similarity is the threshold


class NearDuplicatesRecipe(Section):
    """Near duplicates."""

    threshold: float = Field(default=0.4, gt=0, le=1)
    """Jaccard similarity of the sets of runs from which on documents are the same; 0.5 with
    `run_words: 5` are the settings of OpenWebText."""
    run_words: PositiveInt = 3
    """Words of a run."""
    permutations: int = Field(default=128, ge=16, le=1024, multiple_of=4)
    """Hash functions of a signature; the similarity's standard error is at most half of the inverse
    of their square root."""


def sign(settings: NearDuplicatesRecipe) -> Callable[[str], UInt64[np.ndarray, "1 W"]]:
    factors = _factors(settings.permutations)
    products = np.empty((len(factors), RUNS_AT_ONCE), np.uint32)

    def row(text: str) -> UInt64[np.ndarray, "1 W"]:
        hashes = hash_words(words_of(text))
        if not len(hashes):  # all zeros are compared with nothing
            return np.zeros((1, len(factors) // 4), np.uint64)
        runs = hash_runs(hashes, min(settings.run_words, len(hashes)))
        minima = _minima((runs >> np.uint64(32)).astype(np.uint32), factors, products)
        kept = (mixed(minima.astype(np.uint64)) >> np.uint64(48)).astype(np.uint16)
        return kept.view(np.uint64).reshape(1, -1)

    return row


def _factors(number: int) -> UInt32[np.ndarray, " P"]:
    """Odd numbers; multiplication by one permutes the numbers below 2^32."""
    return mixed(np.arange(1, number + 1, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)


def _minima(
    values: UInt32[np.ndarray, " R"],
    factors: UInt32[np.ndarray, " P"],
    products: UInt32[np.ndarray, "P B"],
) -> UInt32[np.ndarray, " P"]:
    """min over values of factor * value mod 2^32, for each factor."""
    smallest = np.full(len(factors), 2**32 - 1, np.uint32)
    for start in range(0, len(values), products.shape[1]):
        block = values[start : start + products.shape[1]]
        own = np.multiply(factors[:, None], block, out=products[:, : len(block)])
        np.minimum(smallest, own.min(axis=1), out=smallest)
    return smallest


def similarity(
    a: UInt64[np.ndarray, "N W"], b: UInt64[np.ndarray, "N W"]
) -> Float[np.ndarray, " N"]:
    """The share of equal minima of each pair of signatures."""
    return (_minima_of(a) == _minima_of(b)).mean(axis=1)


def _minima_of(rows: UInt64[np.ndarray, "N W"]) -> UInt16[np.ndarray, "N P"]:
    return np.ascontiguousarray(rows).view(np.uint16)


def bands_of(settings: NearDuplicatesRecipe) -> tuple[int, int]:
    """The number of bands and the rows of each: the most rows, hence the fewest candidates, with
    which two documents whose similarity is the threshold are candidates often enough:

        1 - (1 - threshold^rows)^bands >= CANDIDATE_PROBABILITY
    """
    for rows in range(settings.permutations, 1, -1):
        bands = settings.permutations // rows
        if 1 - (1 - settings.threshold**rows) ** bands >= CANDIDATE_PROBABILITY:
            return bands, rows
    return settings.permutations, 1


def find(
    settings: NearDuplicatesRecipe,
    shards: Sequence[Signatures],
    kept: Sequence[Bool[np.ndarray, " _"]],
) -> Found:
    rows = Rows(shards)
    numbers, roots = clusters_of(settings, rows, kept)
    order = np.argsort(roots, kind="stable")
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.diff(roots[order]) != 0
    grouping = Grouping(rows)
    grouping.add(numbers[order], is_first)
    return grouping.found()


def clusters_of(
    settings: NearDuplicatesRecipe, rows: Rows, kept: Sequence[Bool[np.ndarray, " _"]]
) -> tuple[Int[np.ndarray, " N"], Int[np.ndarray, " N"]]:
    """The numbers of the documents that are compared, and for each the first of its cluster, as its
    place among these."""
    num_bands, rows_of_band = bands_of(settings)
    compared = [
        own & (block != 0).any(axis=1) for (_, block), own in zip(rows.blocks(), kept, strict=True)
    ]
    numbers = np.flatnonzero(np.concatenate(compared)) if compared else np.zeros(0, np.int64)
    clusters = Clusters(len(numbers))
    for first in range(0, num_bands, BANDS_AT_ONCE):
        num_keys = min(BANDS_AT_ONCE, num_bands - first)
        for keys in _keys(rows, compared, range(first, first + num_keys), rows_of_band):
            for a, b in _candidates(keys):
                is_apart = clusters.roots(a) != clusters.roots(b)
                a, b = a[is_apart], b[is_apart]
                if len(a):
                    found = similarity(rows.take(numbers[a]), rows.take(numbers[b]))
                    is_same = found >= settings.threshold
                    clusters.unite(a[is_same], b[is_same])
    return numbers, clusters.roots(np.arange(len(numbers)))


def _keys(
    rows: Rows, compared: Sequence[Bool[np.ndarray, " _"]], bands: range, rows_of_band: int
) -> UInt64[np.ndarray, "B N"]:
    """For each of some bands, a hash of it of each document that is compared."""
    keys = np.empty((len(bands), sum(int(own.sum()) for own in compared)), np.uint64)
    start = 0
    for (_, block), own in zip(rows.blocks(), compared, strict=True):
        minima = _minima_of(block)[own]
        for key, band in zip(keys, bands, strict=True):
            part = minima[:, band * rows_of_band : (band + 1) * rows_of_band]
            key[start : start + len(minima)] = _key(part)
        start += len(minima)
    return keys


def _key(minima: UInt16[np.ndarray, "N r"]) -> UInt64[np.ndarray, " N"]:
    """A hash of each row of a band."""
    key = np.zeros(len(minima), np.uint64)
    for column in minima.T:
        key *= BASE
        key += column
    return key


def _candidates(
    keys: UInt64[np.ndarray, " N"],
) -> Iterator[tuple[Int[np.ndarray, " C"], Int[np.ndarray, " C"]]]:
    """Pairs of documents with the same key, some at a time: each with the next ones that have it.

    In a bucket of different documents that is larger than NEIGHBORS not all pairs are compared:
    their number would grow with its square.
    """
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    places = np.arange(len(keys))
    for distance in range(1, NEIGHBORS + 1):
        places = places[places < len(keys) - distance]
        places = places[keys[places] == keys[places + distance]]
        for start in range(0, len(places), PAIRS_AT_ONCE):
            some = places[start : start + PAIRS_AT_ONCE]
            yield order[some], order[some + distance]


DEDUPLICATION = Deduplication("document", NearDuplicatesRecipe, sign, find)
