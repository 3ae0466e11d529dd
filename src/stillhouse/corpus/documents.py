"""Documents: any source of text as one stream, in bounded memory.

Contract: `read_documents` yields every document of `corpus.source` once, in a fixed order, as
pieces. Blank documents are left out. Text is kept as it is, except that a byte order mark at the
start of a file is dropped, and that documents cut by line or block lose their own line ends. What
cannot be read raises a DataError that names the file and the place.
"""

import codecs
import io
from collections.abc import Iterator
from io import BufferedIOBase
from itertools import groupby
from pathlib import Path
from typing import Any

from stillhouse.corpus.files import JSON_SUFFIXES, SourceFile, find_files
from stillhouse.corpus.pieces import MAX_PIECE_CHARACTERS, Piece, pieces_of
from stillhouse.corpus.records import read_json_lines, read_parquet, record_pieces
from stillhouse.data.compression import opened
from stillhouse.data.hub import HUB_PREFIX, HubDataset, must_be_online
from stillhouse.data.sample import sample_documents, sample_files
from stillhouse.errors import DataError
from stillhouse.recipe import CorpusRecipe

SAMPLE = "sample"
BLOCK_BYTES = 2**20


def read_documents(corpus: CorpusRecipe, *, offline: bool) -> Iterator[Piece]:
    """All documents of all sources, in order; a file that two sources name is read once.

    Raises:
        DataError: no such file, a damaged one, text that is not UTF-8, or no text at all.
        NetworkError: a hub dataset while offline or without a connection.
    """
    seen: set[Path] = set()
    empty = True
    for source in corpus.sources:
        for piece in _read_source(source, corpus, seen, offline=offline):
            empty = False
            yield piece
    if empty:
        raise DataError(
            f"corpus.source {', '.join(corpus.sources)} holds no text: every document is empty or "
            "blank. Give a source with text in it."
        )


def describe_sources(corpus: CorpusRecipe) -> list[dict[str, Any]]:
    """The files that the sources name, with what tells whether they changed; reads no text."""
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
            for file in find_files(source):
                facts = file.path.stat()
                size, changed = facts.st_size, facts.st_mtime_ns
                described.append(
                    {"source": source, "name": file.name, "size_bytes": size, "mtime_ns": changed}
                )
    return described


def _read_source(
    source: str, corpus: CorpusRecipe, seen: set[Path], *, offline: bool
) -> Iterator[Piece]:
    if source.startswith(HUB_PREFIX):
        must_be_online(source, "corpus.source", offline=offline)
        yield from hub_pieces(HubDataset.named(source), corpus)
    elif source == SAMPLE:
        for name, text in sample_documents():
            yield from pieces_of(name, [text])
    else:
        for file in find_files(source):
            place = file.path.resolve()
            if place not in seen:
                seen.add(place)
                yield from _read_file(file, corpus)


def hub_pieces(dataset: HubDataset, corpus: CorpusRecipe) -> Iterator[Piece]:
    """The documents of a dataset, by their own ids or their numbers."""
    for number, row in enumerate(dataset.rows(), start=1):
        where, name = f"{dataset.name} row {number}", f"{dataset.name}:{number}"
        yield from record_pieces(row, corpus.text_field, where, name)


def _read_file(file: SourceFile, corpus: CorpusRecipe) -> Iterator[Piece]:
    if file.format == ".parquet":
        yield from read_parquet(file, corpus.text_field)
        return
    with opened(file.path) as content:
        if file.format in JSON_SUFFIXES:
            yield from read_json_lines(content, file, corpus.text_field)
        elif corpus.documents == "per_file":
            yield from pieces_of(file.name, _decoded(content, file.path))
        else:
            lines = _lines(_decoded(content, file.path))
            parts = lines if corpus.documents == "per_line" else _blocks(lines)
            for number, group in groupby(parts, key=lambda part: part[0]):
                yield from pieces_of(f"{file.name}:{number}", (text for _, text in group))


def _decoded(content: BufferedIOBase, path: Path) -> Iterator[str]:
    """A file's text in blocks, checked to be UTF-8 without NUL characters."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0  # of the first byte that is not yet decoded
    line = 1
    while True:
        block = content.read(BLOCK_BYTES)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            found = error.object[error.start]
            end = offset + len(block)
            start = end - len(error.object) + error.start
            raise DataError(
                f"{path} is not UTF-8: byte {start} is 0x{found:02x} ({error.reason}). "
                "Convert the file, such as with `iconv -f LATIN1 -t UTF-8`, or leave it out."
            ) from error
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            raise DataError(
                f"{path} holds a NUL character in line {line}: it looks like a binary file. "
                "Leave it out, or convert it to plain UTF-8 text."
            )
        if not block:
            if text:
                yield text
            return
        yield text
        offset += len(block)
        line += text.count("\n")


def _lines(blocks: Iterator[str]) -> Iterator[tuple[int, str]]:
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
