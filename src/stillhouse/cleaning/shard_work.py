"""The work on one shard: dividing a large file, the steps, and removing what repeats something
earlier."""

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.cleaning.counts import StepCounts, TextShape
from stillhouse.cleaning.deduplication import DEDUPLICATIONS
from stillhouse.cleaning.job import Cleaning
from stillhouse.cleaning.reading import ReadCounts, read_pages
from stillhouse.cleaning.shards import Shard, contents_of_group
from stillhouse.cleaning.step import Judge, Page
from stillhouse.cleaning.tables import (
    KEPT_COLUMNS,
    PIECE_COLUMNS,
    REJECTED,
    REJECTED_COLUMNS,
    TableWriter,
    page_of_piece,
    piece_row,
    read_rows,
)
from stillhouse.data.formats.html import visible_text
from stillhouse.runs.manifest import commit_folder, facts_of
from stillhouse.runs.paths import DOCUMENTS

# Why nothing is left of a document, by what a step removes.
REPEATED = {
    "document": "repeats an earlier document",
    "line": "every line repeats an earlier one",
}
BLANK_LINES = re.compile(r"\n{3,}")


def divide(cleaning: Cleaning, shard: Shard) -> None:
    """Write the documents of a large file to pieces."""
    group = shard.group
    counts = ReadCounts()
    facts: dict[str, Any] = {}
    pages = (
        page
        for content in contents_of_group(group)
        for page in read_pages(content, cleaning.corpus, counts)
    )
    target = cleaning.divided(group)
    with commit_folder(target, cleaning.inputs_of(group), facts, overwrite=True) as folder:
        facts["pieces"] = _write_pieces(pages, folder, cleaning.recipe.shard_bytes)
        facts["read"] = counts.facts()


def _write_pieces(pages: Iterator[Page], folder: Path, shard_bytes: int) -> int:
    number = 0
    page = next(pages, None)
    while page is not None:
        size = 0
        with TableWriter(folder / f"{number:05d}.arrow", PIECE_COLUMNS) as piece:
            while page is not None and size < shard_bytes:
                piece.add(piece_row(page))
                size += len(page.text if page.html is None else page.html)
                page = next(pages, None)
        number += 1
    return number


def clean_shard(cleaning: Cleaning, shard: Shard) -> None:
    """Run the steps over the documents of a shard."""
    counts = ReadCounts()
    file = cleaning.divided(shard.group) / f"{shard.piece:05d}.arrow"
    if shard.group.is_divided:
        pages = map(page_of_piece, read_rows(file))
    else:
        pages = (
            page
            for content in contents_of_group(shard.group)
            for page in read_pages(content, cleaning.corpus, counts)
        )
    facts: dict[str, Any] = {}
    inputs = cleaning.inputs_of(shard.group)
    with commit_folder(cleaning.cleaned(shard), inputs, facts, overwrite=True) as folder:
        facts |= _write_cleaned(cleaning, pages, folder)
        facts["read"] = counts.facts()
    if shard.group.is_divided:
        file.unlink()


def _write_cleaned(cleaning: Cleaning, pages: Iterator[Page], folder: Path) -> dict[str, Any]:
    recipe = cleaning.recipe
    steps = {name: StepCounts() for name, _ in cleaning.judges}
    signing = {
        name: (DEDUPLICATIONS[name].sign(own), StepCounts())
        for name, own in recipe.deduplications().items()
    }
    rows: dict[str, list[np.ndarray]] = {name: [] for name in signing}
    with (
        TableWriter(folder / DOCUMENTS, KEPT_COLUMNS) as documents,
        TableWriter(folder / REJECTED, REJECTED_COLUMNS) as rejected,
    ):
        for page in pages:
            found = _judged(page, cleaning.judges, steps)
            if found is not None:
                if recipe.keep_rejected:
                    rejected.add((*found, page.id, page.url, page.text or page.html))
                continue
            documents.add((page.id, page.url, page.language, page.text))
            for name, (sign, own) in signing.items():
                started = time.thread_time()
                rows[name].append(sign(page.text))
                own.seconds += time.thread_time() - started
    for name, own in rows.items():
        starts = np.concatenate([[0], np.cumsum([len(each) for each in own], dtype=np.int64)])
        none = signing[name][0]("")[:0]
        np.save(folder / f"{name}.npy", np.concatenate([none, *own]))
        np.save(folder / f"{name}-starts.npy", starts.astype(np.int64))
    return {
        "steps": {name: own.facts() for name, own in steps.items()},
        "signing": {name: own.seconds for name, (_, own) in signing.items()},
    }


def _judged(
    page: Page, judges: list[tuple[str, Judge]], steps: dict[str, StepCounts]
) -> tuple[str, str] | None:
    """The step that leaves a page out, and why; None where all keep it."""
    if page.html is not None and "main_text" not in steps:
        page.text, page.html = "".join(visible_text([page.html])), None
    size = len((page.text if page.html is None else page.html).encode())
    for name, judge in judges:
        own, before, source = steps[name], page.text, page.html
        own.documents_in += 1
        own.bytes_in += size
        started = time.thread_time()
        reason = judge(page)
        own.seconds += time.thread_time() - started
        if reason is not None:
            own.reject(reason, page.id, page.url, page.text or page.html or "")
            return name, reason
        if page.text is not before:
            size = len(page.text.encode())
            if page.text != before:
                own.change(page.id, partial(_text_before, before, source), page.text)
        own.documents_out += 1
        own.bytes_out += size
    return None


def _text_before(text: str, html: str | None = None) -> str:
    """What a step changed; of a web page, the visible text."""
    return text if html is None else "".join(visible_text([html]))


def finish_shard(cleaning: Cleaning, shard: Shard) -> None:
    """Write the documents of a shard that repeat nothing, and remove what it was made from."""
    source = cleaning.cleaned(shard)
    facts = dict(facts_of(source))
    inputs = cleaning.final_inputs(shard)
    with commit_folder(cleaning.part(shard), inputs, facts, overwrite=True) as folder:
        steps, shape = _write_finished(cleaning, shard, folder)
        facts["steps"] = facts["steps"] | {name: own.facts() for name, own in steps.items()}
        facts["text"] = shape.facts()
    shutil.rmtree(source)


def _write_finished(
    cleaning: Cleaning, shard: Shard, folder: Path
) -> tuple[dict[str, StepCounts], TextShape]:
    source, keep_rejected = cleaning.cleaned(shard), cleaning.recipe.keep_rejected
    steps = {name: StepCounts() for name in cleaning.recipe.deduplications()}
    repeats = {
        name: _Repeats(
            np.load(cleaning.removed / f"{name}-{shard.name}.npy"),
            np.load(source / f"{name}-starts.npy"),
        )
        for name in steps
    }
    shape = TextShape()
    with contextlib.ExitStack() as stack:
        documents = stack.enter_context(TableWriter(folder / DOCUMENTS, KEPT_COLUMNS))
        rejected = None
        if keep_rejected:
            rejected = stack.enter_context(TableWriter(folder / REJECTED, REJECTED_COLUMNS))
            for row in read_rows(source / REJECTED):
                rejected.add(row)
        for number, (id, url, language, text) in enumerate(read_rows(source / DOCUMENTS)):
            left = text
            for name, own in steps.items():
                before, size = left, len(left.encode())
                unit = DEDUPLICATIONS[name].unit
                left = repeats[name].without(number, left, unit)
                own.documents_in += 1
                own.bytes_in += size
                if not left.strip():
                    own.reject(REPEATED[unit], id, url, before)
                    if rejected is not None:
                        rejected.add((name, REPEATED[unit], id, url, before))
                    break
                own.documents_out += 1
                own.bytes_out += len(left.encode())
                if left is not before:
                    own.change(id, partial(_text_before, before), left)
            else:
                documents.add((id, url, language, left))
                shape.add_text(left, language)
    return steps, shape


@dataclass(frozen=True)
class _Repeats:
    """What a step found in a shard: which rows repeat something, and each document's first row."""

    removed: np.ndarray
    starts: np.ndarray

    def without(self, document: int, text: str, unit: str) -> str:
        """A text without what repeats something; empty where nothing is left."""
        own = self.removed[self.starts[document] : self.starts[document + 1]]
        if not own.any():
            return text
        if unit == "document":
            return ""
        lines = zip(text.split("\n"), own, strict=True)
        left = "\n".join(line for line, is_removed in lines if not is_removed)
        return BLANK_LINES.sub("\n\n", left).strip("\n")  # those around a paragraph that is gone
