"""Which documents and lines repeat earlier ones, from the signatures of all shards."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.cleaning.counts import SAMPLE_CHARACTERS
from stillhouse.cleaning.deduplication import DEDUPLICATIONS, Found, Signatures
from stillhouse.cleaning.job import Cleaning
from stillhouse.cleaning.shards import Shard
from stillhouse.cleaning.tables import read_rows
from stillhouse.runs.manifest import commit_folder, is_up_to_date
from stillhouse.runs.paths import DOCUMENTS


def find_duplicates(cleaning: Cleaning, shards: list[Shard], say: Callable[[str], None]) -> None:
    """Write which documents and lines of each shard repeat earlier ones."""
    if is_up_to_date(cleaning.removed, cleaning.inputs):
        return
    facts: dict[str, Any] = {}
    with commit_folder(cleaning.removed, cleaning.inputs, facts, overwrite=True) as folder:
        kept: list[np.ndarray] | None = None
        for name, own in cleaning.recipe.deduplications().items():
            step = DEDUPLICATIONS[name]
            say(f"comparing the documents: {name.replace('_', ' ')}")
            started = time.process_time()
            signatures = [_signatures(cleaning.cleaned(shard), name) for shard in shards]
            if kept is None:
                kept = [np.ones(len(each.starts) - 1, bool) for each in signatures]
            rows_kept = [
                np.repeat(own_kept, np.diff(each.starts))
                for own_kept, each in zip(kept, signatures, strict=True)
            ]
            found = step.find(own, signatures, rows_kept)
            if step.unit == "document":
                kept = [a & ~b for a, b in zip(kept, found.removed, strict=True)]
            for shard, removed in zip(shards, found.removed, strict=True):
                np.save(folder / f"{name}-{shard.name}.npy", removed)
            facts[name] = _found_facts(cleaning, shards, signatures, found) | {
                "seconds": time.process_time() - started
            }


def _signatures(folder: Path, name: str) -> Signatures:
    return Signatures(folder / f"{name}.npy", np.load(folder / f"{name}-starts.npy"))


def _found_facts(
    cleaning: Cleaning, shards: list[Shard], signatures: list[Signatures], found: Found
) -> dict[str, Any]:
    """What a report says of a step that compares documents or lines, with some groups of them."""
    wanted: dict[int, set[int]] = {}
    for shard, row in (place for group in found.examples for place in group.places):
        wanted.setdefault(shard, set()).add(row)
    texts = {
        (shard, row): text
        for shard, rows in wanted.items()
        for row, text in _texts(cleaning.cleaned(shards[shard]), signatures[shard], rows)
    }
    return {
        "removed": sum(int(own.sum()) for own in found.removed),
        "group_sizes": {str(size): number for size, number in sorted(found.sizes.items())},
        "examples": [
            {"size": group.size, "texts": [texts[place] for place in group.places]}
            for group in found.examples
        ],
    }


def _texts(
    folder: Path, signatures: Signatures, rows: set[int]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """For each of these rows the id of its document, and the beginning of what the row stands for:
    the document's text, or one of its lines where it has a row for each."""
    documents: dict[int, list[int]] = {}
    for row in sorted(rows):
        document = int(np.searchsorted(signatures.starts, row, side="right")) - 1
        documents.setdefault(document, []).append(row)
    for number, (id, _, _, text) in enumerate(read_rows(folder / DOCUMENTS)):
        for row in documents.get(number, ()):
            start, end = signatures.starts[number : number + 2]
            own = text if end - start == 1 else text.split("\n")[row - start]
            yield row, (id, own[:SAMPLE_CHARACTERS])
