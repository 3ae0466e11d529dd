"""Reading for cleaning: what cannot be read is left out and counted, and reading continues.

Contract: a record that is damaged is left out alone, where the format allows it; otherwise the rest
of the file is. Documents keep the order of the files and of their records.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stillhouse.cleaning.step import Page
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import Content, Document
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError

MAX_CHARACTERS = 64 * 2**20  # of a document; longer ones are left out
MOST_MESSAGES = 20  # of damage, for the report


@dataclass
class ReadCounts:
    """What was read, and what was left out while reading.

    Attributes:
        bytes: Of the documents' text, or of their HTML.
        damaged: Left out by kind: records, documents, or ends of files.
        messages: The first errors.
    """

    documents: int = 0
    bytes: int = 0
    blank: int = 0
    damaged: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def damage(self, kind: str, error: Exception) -> None:
        self.damaged[kind] = self.damaged.get(kind, 0) + 1
        if len(self.messages) < MOST_MESSAGES:
            self.messages.append(str(error))

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the facts of other files."""
        for key in ("documents", "bytes", "blank"):
            setattr(self, key, getattr(self, key) + other[key])
        for kind, number in other["damaged"].items():
            self.damaged[kind] = self.damaged.get(kind, 0) + number
        self.messages = [*self.messages, *other["messages"]][:MOST_MESSAGES]

    def facts(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "blank": self.blank,
            "damaged": dict(sorted(self.damaged.items())),
            "messages": self.messages,
        }


def read_pages(content: Content, corpus: CorpusRecipe, counts: ReadCounts) -> Iterator[Page]:
    """The documents of a file or dataset, each whole in memory."""

    def damaged_record(error: DataError) -> None:
        counts.damage("records", error)

    documents = content.documents(corpus, damaged_record)
    while (document := _next(documents, counts)) is not None:
        page = _page_of(document, counts)
        if page is None:
            continue
        text = page.text if page.html is None else page.html
        if text.strip():
            counts.documents += 1
            counts.bytes += len(text.encode())
            yield page
        else:
            counts.blank += 1


def _next(documents: Iterator[Document], counts: ReadCounts) -> Document | None:
    try:
        return next(documents, None)
    except (DataError, OSError) as error:
        counts.damage("ends of files", error)
        return None


def _page_of(document: Document, counts: ReadCounts) -> Page | None:
    read: Callable[[], str] = document.read_html or (lambda: _joined(document))
    try:
        text = read()
        check_characters(text, document.id)
    except (DataError, OSError) as error:
        counts.damage("documents", error)
        return None
    if document.read_html is None:
        return Page(document.id, text, document.url)
    return Page(document.id, "", document.url, html=text)


def _joined(document: Document) -> str:
    parts: list[str] = []
    size = 0
    for part in document.parts:
        parts.append(part)
        size += len(part)
        if size > MAX_CHARACTERS:
            raise DataError(
                f"{document.id} has over {MAX_CHARACTERS:,} characters. Store its parts as "
                "documents of their own."
            )
    return "".join(parts)
