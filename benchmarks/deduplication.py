"""Near duplicates: what is found of planted ones, and the speed, beside datatrove.

    taskset -c 0 python -m benchmarks.deduplication [--documents 2000] [--copies 500]
        [--repeats 5] [--data ../shared/data] [--output FILE]

Documents are chapters and passages of the English books. Of some, a copy is added in which words
are replaced, removed and inserted, each word with the probability of the edit rate. Recall is the
share of copies that are in one cluster with their original, precision the share of the pairs of
documents within clusters that are copy and original. The copies of each edit rate are compared
with the originals on their own.

Speed is that of one core, on passages of 1,000 words with a copy at 10 % of each tenth: signing a
text that is in memory, and finding duplicates in signatures on disk. datatrove runs its own stages
with its default settings, except that words are split at white space, since the tokenizers that it
would use need models to be downloaded. The plain baseline is MinHash in Python without numpy, on a
part of the same documents. All alternate.

Writes a file to benchmarks/results/deduplication, from which `make docs` makes the table of
docs/guides/corpus.md.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from benchmarks.datatrove_minhash import read_clusters, write_clusters, write_signatures
from benchmarks.planted import KINDS, documents_of, edited, read_books
from stillhouse.cleaning.deduplication import Signatures
from stillhouse.cleaning.deduplication.grouping import Rows
from stillhouse.cleaning.deduplication.near_duplicates import (
    NearDuplicatesRecipe,
    bands_of,
    clusters_of,
    find,
    sign,
)
from stillhouse.cleaning.words import hash_words, words_of

RESULTS = Path(__file__).parent / "results" / "deduplication"
BOOKS = Path("books", "en.jsonl.gz")
RATES = (0.05, 0.1, 0.2, 0.4)
SEED = 0
DATATROVE = "datatrove"
PLAIN = "plain Python"
PLAIN_SHARE = 20  # every twentieth document
SETTINGS = {
    "default": NearDuplicatesRecipe(),
    "OpenWebText": NearDuplicatesRecipe(threshold=0.5, run_words=5),
}
LIKE_DATATROVE = NearDuplicatesRecipe(threshold=0.72, run_words=5, permutations=112)
Clusters = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Planted:
    """Originals, and for each edit rate the copies of the first of them."""

    originals: list[str]
    copies: dict[float, list[str]]


def planted(books: Sequence[str], kind: str, documents: int, copies: int) -> Planted:
    """Documents of a kind, of which some have copies."""
    draw = random.Random(SEED)
    words = [word for book in books[:20] for word in book.split()]
    originals = documents_of(books, kind, documents)
    draw.shuffle(originals)
    some = originals[:copies]
    return Planted(
        originals, {rate: [edited(text, rate, words, draw) for text in some] for rate in RATES}
    )


def rates_of(clusters: Clusters, num_originals: int, num_copies: int) -> dict[str, Any]:
    """Recall and precision; document `num_originals + i` is a copy of document i."""
    pairs = [pair for cluster in clusters for pair in combinations(sorted(cluster), 2)]
    right = sum(b - num_originals == a for a, b in pairs)
    return {
        "recall": right / num_copies,
        "precision": right / len(pairs) if pairs else None,
        "pairs": len(pairs),
    }


def saved(folder: Path, name: str, rows: np.ndarray) -> Signatures:
    """Signatures of a shard, as cleaning writes them."""
    file = folder / f"{name}.npy"
    np.save(file, rows)
    return Signatures(file, np.arange(len(rows) + 1))


def signed(settings: NearDuplicatesRecipe, texts: Sequence[str]) -> np.ndarray:
    row = sign(settings)
    return np.concatenate([row(text) for text in texts])


def our_rates(settings: NearDuplicatesRecipe, texts: Planted) -> dict[float, dict[str, Any]]:
    """Recall and precision at each edit rate."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = saved(folder, "originals", signed(settings, texts.originals))
        for rate, copies in texts.copies.items():
            shards = [originals, saved(folder, str(rate), signed(settings, copies))]
            kept = [np.ones(shard.num_rows, bool) for shard in shards]
            clusters = defaultdict(list)
            for number, root in zip(*clusters_of(settings, Rows(shards), kept), strict=True):
                clusters[int(root)].append(int(number))
            found[rate] = rates_of(list(clusters.values()), len(texts.originals), len(copies))
    return found


def datatrove_rates(texts: Planted) -> dict[float, dict[str, Any]]:
    """Recall and precision of datatrove at each edit rate."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        signatures = Path(name, "signatures")
        write_signatures(signatures, {0: texts.originals})
        for rate, copies in texts.copies.items():
            write_signatures(signatures, {1: copies})
            folder = Path(name, str(rate))
            write_clusters(signatures, folder)
            sizes = len(texts.originals), len(copies)
            found[rate] = rates_of(read_clusters(folder, sizes), *sizes)
    return found


def plain_signature(settings: NearDuplicatesRecipe, text: str) -> list[int]:
    """MinHash by its definition, in plain Python."""
    hashes = hash_words(words_of(text)).tolist()
    length = settings.run_words
    runs = {hash(tuple(hashes[i : i + length])) for i in range(len(hashes) - length + 1)}
    prime = 2**61 - 1
    draw = random.Random(SEED)
    factors = [(draw.randrange(1, prime), draw.randrange(prime)) for _ in range(112)]
    return [min((a * run + b) % prime for run in runs) for a, b in factors]


def plain_finds(signatures: Sequence[Sequence[int]], bands: int, rows: int) -> Clusters:
    """Clusters of documents that agree in a band, in plain Python."""
    parent = list(range(len(signatures)))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for band in range(bands):
        first: dict[tuple[int, ...], int] = {}
        for number, signature in enumerate(signatures):
            key = tuple(signature[band * rows : (band + 1) * rows])
            a, b = root(first.setdefault(key, number)), root(number)
            parent[max(a, b)] = min(a, b)
    clusters = defaultdict(list)
    for number in range(len(signatures)):
        clusters[root(number)].append(number)
    return list(clusters.values())


def speeds(books: Sequence[str], documents: int, repeats: int) -> dict[str, Any]:
    """Seconds and MB/s of signing and of finding, by engine."""
    texts = planted(books, "passages of 1,000 words", documents, documents // 10)
    every = [*texts.originals, *texts.copies[0.1]]
    some = every[::PLAIN_SHARE]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        signatures = [plain_signature(LIKE_DATATROVE, text) for text in some]
        write_signatures(folder / "signatures", {0: every})
        ours = {
            "default": SETTINGS["default"],
            "settings of datatrove": LIKE_DATATROVE,
        }
        files = {key: saved(folder, key, signed(own, every)) for key, own in ours.items()}
        kept = [np.ones(len(every), bool)]
        number = iter(range(10**6))
        signing = {
            **{key: lambda own=own: signed(own, every) for key, own in ours.items()},
            DATATROVE: lambda: write_signatures(folder / f"s{next(number)}", {0: every}),
            PLAIN: lambda: [plain_signature(LIKE_DATATROVE, text) for text in some],
        }
        finding = {
            **{
                key: lambda key=key, own=own: find(own, [files[key]], kept)
                for key, own in ours.items()
            },
            DATATROVE: lambda: write_clusters(folder / "signatures", folder / f"f{next(number)}"),
            PLAIN: lambda: plain_finds(signatures, *bands_of(LIKE_DATATROVE)),
        }
        size = {key: _size(some if key == PLAIN else every) for key in signing}
        return {
            "documents": len(every),
            "signing": _timed(signing, size, repeats),
            "finding": _timed(finding, size, repeats),
        }


def _timed(
    steps: Mapping[str, Any], sizes: Mapping[str, int], repeats: int
) -> dict[str, dict[str, Any]]:
    seconds = measure.interleaved_seconds(steps, repeats=repeats, clock="cpu")
    return {
        name: {
            "seconds": each,
            "size_bytes": sizes[name],
            "megabytes_per_second": sizes[name] / 1e6 / statistics.median(each),
        }
        for name, each in seconds.items()
    }


def _size(texts: Sequence[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def quality(books: Sequence[str], documents: int, copies: int) -> dict[str, Any]:
    """Recall and precision of each kind of documents, by settings."""
    found = {}
    for kind in KINDS:
        texts = planted(books, kind, documents, copies)
        rates = {name: our_rates(own, texts) for name, own in SETTINGS.items()}
        rates[DATATROVE] = datatrove_rates(texts)
        found[kind] = {
            "documents": len(texts.originals),
            "copies": len(texts.copies[RATES[0]]),
            "rates": rates,
        }
    return found


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured, and how."""
    load = os.getloadavg()
    books = read_books(options.data / BOOKS)
    found = quality(books, options.documents, options.copies)
    speed = speeds(books, options.documents, options.repeats)
    settings = {
        name: own.model_dump() | dict(zip(("bands", "rows"), bands_of(own), strict=True))
        for name, own in (SETTINGS | {"settings of datatrove": LIKE_DATATROVE}).items()
    }
    return {
        "command": " ".join(["python -m benchmarks.deduplication", *sys.argv[1:]]),
        "seed": SEED,
        **measure.environment(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "settings": settings,
        "quality": found,
        "speed": speed,
    }


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.deduplication", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--documents", type=int, default=2000, help="originals of each kind")
    parser.add_argument("--copies", type=int, default=500, help="of each edit rate")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=RESULTS / f"{measure.cpu_kind()}.json")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse_options()
    measure.write_result(options.output, report(options))


if __name__ == "__main__":
    main()
