"""Documents: any source of text as one stream, in bounded memory.

Contract: `read_documents` yields every document of `corpus.source` once, in a fixed order, as
pieces. Blank documents, and those whose text is null, are left out and counted. Text is kept as it
is, except that a byte order mark at the start of a file is dropped, that documents cut by line or
block lose their own line ends, and that HTML gives its visible text. A record's text is its field
`corpus.text_field`, its id the record's own `id` where that is a string or a whole number, else
`file:line`. What cannot be read raises a DataError that names the file and the place.
"""

import io
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from stillhouse.data.files import ReadSummary, SourceFile, find_files
from stillhouse.data.html import visible_text
from stillhouse.data.hub import HUB_PREFIX, HubDataset, must_be_online
from stillhouse.data.lines import decoded
from stillhouse.data.pieces import MAX_PIECE_CHARACTERS, Piece, pieces_of
from stillhouse.data.records import Fields, read_records
from stillhouse.data.sample import sample_documents, sample_files
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError

SAMPLE = "sample"

Document = tuple[str, Iterable[str]]  # its id, and its text in parts


def read_documents(
    corpus: CorpusRecipe, *, offline: bool, summary: ReadSummary | None = None
) -> Iterator[Piece]:
    """All documents of all sources, in order; a file that two sources name is read once.

    Args:
        summary: Counts the blank documents.

    Raises:
        DataError: no such file, a damaged one, text that is not UTF-8, or no text at all.
        NetworkError: a hub dataset while offline or without a connection.
    """
    seen: set[Path] = set()
    empty = True
    for source in corpus.sources:
        for name, parts in _read_source(source, corpus, seen, offline=offline):
            is_blank = True
            for piece in pieces_of(name, parts):
                is_blank = empty = False
                yield piece
            if is_blank and summary is not None:
                summary.blank_documents += 1
    if empty:
        raise DataError(
            f"corpus.source {', '.join(corpus.sources)} holds no text: every document is empty or "
            "blank. Give a source with text in it."
        )


def describe_sources(corpus: CorpusRecipe) -> list[dict[str, Any]]:
    """The files that the sources name, with what tells whether they changed; reads no text.

    Raises:
        DataError: a source that names no file that can be read.
    """
    described: list[dict[str, Any]] = []
    for source in corpus.sources:
        if source.startswith(HUB_PREFIX):
            described.append({"source": source})
        elif source == SAMPLE:
            described += [
                {"source": source, "name": name, "size_bytes": path.stat().st_size}
                for name, path in sample_files()
            ]
        else:
            for file in find_files(source)[0]:
                facts = file.path.stat()
                size, changed = facts.st_size, facts.st_mtime_ns
                described.append(
                    {"source": source, "name": file.name, "size_bytes": size, "mtime_ns": changed}
                )
    return described


def summarize_sources(corpus: CorpusRecipe) -> ReadSummary:
    """How many files the sources name of each format, and what is skipped; reads no text.

    Raises:
        DataError: a source that names no file that can be read.
    """
    summary = ReadSummary()
    seen: set[Path] = set()
    for source in corpus.sources:
        if source.startswith(HUB_PREFIX):
            summary.files["a hub dataset"] += 1
        elif source == SAMPLE:
            summary.files["text"] += len(sample_files())
        else:
            files, skipped = find_files(source)
            summary.skipped += skipped
            for file in files:
                summary.files[file.format] += file.path.resolve() not in seen
                seen.add(file.path.resolve())
    return summary


def _read_source(
    source: str, corpus: CorpusRecipe, seen: set[Path], *, offline: bool
) -> Iterator[Document]:
    if source.startswith(HUB_PREFIX):
        must_be_online(source, "corpus.source", offline=offline)
        yield from hub_documents(HubDataset.named(source), corpus)
    elif source == SAMPLE:
        yield from ((name, [text]) for name, text in sample_documents())
    else:
        for file in find_files(source)[0]:
            place = file.path.resolve()
            if place not in seen:
                seen.add(place)
                yield from _read_file(file, corpus)


def hub_documents(dataset: HubDataset, corpus: CorpusRecipe) -> Iterator[Document]:
    """The documents of a dataset, by their own ids or their numbers."""
    for number, row in enumerate(dataset.rows(), start=1):
        where, name = f"{dataset.name} row {number}", f"{dataset.name}:{number}"
        yield _of_record(row, corpus.text_field, where, name)


def _read_file(file: SourceFile, corpus: CorpusRecipe) -> Iterator[Document]:
    if file.format in ("text", "HTML"):
        text = decoded(file.path)
        if file.format == "HTML":
            text = visible_text(text)
        if corpus.documents == "per_file":
            yield file.name, text
            return
        parts = _lines(text) if corpus.documents == "per_line" else _blocks(_lines(text))
        for number, group in groupby(parts, key=lambda part: part[0]):
            yield f"{file.name}:{number}", (text for _, text in group)
        return
    field = corpus.text_field
    unit = "line" if file.format in ("JSON lines", "JSON") else "row"
    columns = (field, "id")
    for record in read_records(file.path, file.format, unit=unit, columns=columns):
        name = f"{file.name}:{record.number}"
        if record.fields is None:
            yield name, []
        else:
            yield _of_record(record.fields, field, record.where, name)


def _of_record(record: Fields, text_field: str, where: str, default_id: str) -> Document:
    if text_field not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DataError(
            f"{where} has no field {text_field!r}; its fields are {found}. "
            "Give the field with the text as corpus.text_field."
        )
    text = record[text_field]
    if text is None or text != text:
        text = ""  # null, or NaN: a blank document
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field {text_field!r} holds {type(text).__name__} ({text!r:.40}), not a "
            "string. Give the field with the text as corpus.text_field, or leave the record out."
        )
    check_characters(text, where)
    own_id = record.get("id")
    if isinstance(own_id, str):
        check_characters(own_id, f"{where}: the field 'id'")
    is_id = isinstance(own_id, (str, int)) and not isinstance(own_id, bool) and own_id != ""
    return (str(own_id) if is_id else default_id), [text]


def _lines(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines as (number, text) without their ends; a very long line comes in parts."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    number = 1
    held = ""
    for block in blocks:
        *whole, held = (held + newlines.decode(block)).split("\n")
        for line in whole:
            yield number, line
            number += 1
        if len(held) > MAX_PIECE_CHARACTERS:
            yield number, held
            held = ""
    if held:
        yield number, held


def _blocks(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Blocks of lines with blank lines between them, as (number of the first line, part)."""
    first: int | None = None
    previous: int | None = None
    for number, text in lines:
        if number != previous and not text.strip():
            first = None
        elif first is None:
            first = number
            yield first, text
        else:
            yield first, text if number == previous else f"\n{text}"
        previous = number
