"""Documents: the text of a corpus as one stream, in bounded memory.

Contract: `read_documents` yields every document of `corpus.source` once, in a fixed order, as
chunks. Blank documents, and those whose text is null, are left out and counted. Text is kept as it
is, except that a byte order mark at the start of a file is dropped, that documents cut by line or
block lose their own line ends, and that HTML gives its visible text. A record's text is its field
`corpus.text_field`, its id the record's own `id` where that is a string or a whole number, else
`file:line`. What cannot be read raises a DataError that names the file and the row.

The split of a document follows from its id alone, not from the seed, the order or the other
documents. A document of the validation split stays there at every larger fraction.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.data.chunks import Chunk, chunk_document
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import Content, check_online, source_of
from stillhouse.data.sources.files import list_counts, ordered_counts
from stillhouse.errors import DataError
from stillhouse.wording import counted


@dataclass
class ReadSummary:
    """What was read in which format, and what was left out.

    `files` counts files (and hub datasets) by format, `skipped` files by suffix.
    """

    files: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    blank_documents: int = 0

    def facts(self) -> dict[str, Any]:
        """The counts as plain values, for a manifest."""
        return {
            "files": dict(sorted(self.files.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "blank_documents": self.blank_documents,
        }

    def __str__(self) -> str:
        """Such as "12 files as text, 3 as HTML; skipped 5: 3 .pdf, 2 .png"."""
        (first, number), *others = ordered_counts(self.files)
        parts = [f"{counted(number, 'file')} as {first}"]
        text = ", ".join(parts + [f"{number:,} as {format}" for format, number in others])
        if self.skipped:
            text += f"; skipped {self.skipped.total():,}: {list_counts(self.skipped)}"
        return text


def read_documents(
    corpus: CorpusRecipe, *, offline: bool, summary: ReadSummary | None = None
) -> Iterator[Chunk]:
    """All documents of all sources, in order; a file that two sources name is read once.

    Args:
        summary: Counts the blank documents.

    Raises:
        DataError: no such file, a damaged one, text that is not UTF-8, or no text at all.
        NetworkError: a hub dataset while offline or without a connection.
    """
    is_empty = True
    for _, content in contents_of(corpus, offline=offline):
        for document in content.documents(corpus, None):
            is_blank = True
            for chunk in chunk_document(document.id, document.parts):
                is_blank = is_empty = False
                yield chunk
            if is_blank and summary is not None:
                summary.blank_documents += 1
    if is_empty:
        raise DataError(
            f"corpus.source {', '.join(corpus.sources)} holds no text: every document is empty or "
            "blank. Give a source with text in it."
        )


def contents_of(
    corpus: CorpusRecipe, *, offline: bool = False, skipped: Counter[str] | None = None
) -> Iterator[tuple[str, Content]]:
    """Each source with what it names, in order and each file once; counts what they leave out.

    Raises:
        DataError: a source that names no file that can be read.
        NetworkError: a hub dataset while offline.
    """
    seen: set[Path] = set()
    for source in corpus.sources:
        check_online(source, "corpus.source", offline=offline)
        contents, left_out = source_of(source).find(source)
        if skipped is not None:
            skipped.update(left_out)
        for content in contents:
            if content.path not in seen:
                yield source, content
            if content.path is not None:
                seen.add(content.path)


def describe_sources(corpus: CorpusRecipe) -> list[dict[str, Any]]:
    """The files that the sources name, with their part of the text, if it has any, and the facts
    that tell whether they changed; reads no text.

    Raises:
        DataError: a source that names no file that can be read, or a file that is in two parts.
    """
    found: list[dict[str, Any]] = []
    part_of: dict[Path | None, str] = {}
    for part, own in corpus.parts.items():
        for source in own.sources:
            for content in source_of(source).find(source)[0]:
                other = part_of.setdefault(content.path, part)
                if content.path is not None and other != part:
                    raise DataError(
                        f"{content.path} is in two parts of corpus.source, {other} and {part}. A "
                        "file belongs to one part; name it in one of them."
                    )
                found.append(
                    {"source": source, **({"part": part} if part else {}), **content.facts}
                )
    return found


def summarize_sources(corpus: CorpusRecipe) -> ReadSummary:
    """How many files of each format the sources name, and what is skipped; reads no text.

    Raises:
        DataError: a source that names no file that can be read.
    """
    summary = ReadSummary()
    contents = contents_of(corpus, skipped=summary.skipped)
    summary.files.update(content.format for _, content in contents)
    return summary


def validation_point(document_id: str) -> float:
    """A hash of the id in [0, 1), uniform over ids and the same on every machine."""
    digest = hashlib.blake2b(document_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53  # 53 bits: exact as a float


def is_validation(document_id: str, fraction: float) -> bool:
    """Whether a document belongs to a validation split of this fraction of all documents."""
    return validation_point(document_id) < fraction
