"""Sources, one module each: the files or datasets that a name stands for, and their documents. How
the name begins gives the kind of source."""

import importlib
import io
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.data.chunks import MAX_CHUNK_CHARACTERS
from stillhouse.data.formats import Fields, OnDamage, Record, WebPage
from stillhouse.data.formats.html import decode_page, visible_text
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError, NetworkError

MOST_FIELDS = 20  # of a record, that a message lists


class Document(NamedTuple):
    """A document: its id, its text in parts, its address where that is known, and what gives its
    HTML where it is a web page, whose text is then the visible one."""

    id: str
    parts: Iterable[str]
    url: str = ""
    read_html: Callable[[], str] | None = None


@dataclass(frozen=True)
class Content:
    """A file or dataset of a source.

    Args:
        format: What the logs count it as.
        facts: What changes where the content does; for fingerprints.
        documents: Reads its documents. With a second argument it reads for cleaning: web pages
            are whole, and a record that cannot be read is left out and its error given to that.
        path: Where two sources name this path, it is read once.
    """

    format: str
    facts: Mapping[str, Any]
    documents: Callable[[CorpusRecipe, OnDamage | None], Iterator[Document]]
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """A kind of source.

    Each module of this package defines its own as SOURCE, and the registry finds it there.

    Args:
        scheme: How its names begin (`hf://`), or its only name (`sample`); "" for paths.
        find: The content that a name stands for, and how many files of which suffix it leaves out.
        read_rows: The rows of a dataset that is not on this machine; None for local sources.
        check: Raises an error where such a dataset cannot be read; its argument describes it.
    """

    scheme: str
    find: Callable[[str], tuple[list[Content], Counter[str]]]
    read_rows: Callable[[str], Iterator[Fields]] | None = None
    check: Callable[[str], None] = lambda purpose: None

    @property
    def is_remote(self) -> bool:
        return self.read_rows is not None


def text_documents(name: str, blocks: Iterable[str], corpus: CorpusRecipe) -> Iterator[Document]:
    """The documents of a text file: `corpus.documents` defines what one is."""
    if corpus.documents == "per_file":
        yield Document(name, blocks)
        return
    parts = _lines(blocks) if corpus.documents == "per_line" else _paragraphs(_lines(blocks))
    for number, group in groupby(parts, key=lambda part: part[0]):
        yield Document(f"{name}:{number}", (text for _, text in group))


def page_documents(name: str, pages: Iterable[WebPage]) -> Iterator[Document]:
    """The documents of a file of web pages: their visible text."""
    for page in pages:
        own_id = f"{name}:{page.number}" if page.number else name
        if isinstance(page.content, str):
            yield Document(own_id, [page.content], page.url)
        else:
            html = partial(decode_page, page.content, page.charset)
            yield Document(own_id, _visible(html), page.url, html)


def _visible(read_html: Callable[[], str]) -> Iterator[str]:
    yield from visible_text([read_html()])


def _lines(blocks: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines as (number, text) without their ends; a very long line comes in parts."""
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    number = 1
    held = ""
    for block in blocks:
        *whole, held = (held + newlines.decode(block)).split("\n")
        yield from enumerate(whole, start=number)
        number += len(whole)
        if len(held) > MAX_CHUNK_CHARACTERS:
            yield number, held
            held = ""
    if held:
        yield number, held


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Lines between blank lines, as (number of the first line, text)."""
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


def record_documents(
    name: str,
    records: Iterable[Record],
    corpus: CorpusRecipe,
    on_damage: OnDamage | None = None,
) -> Iterator[Document]:
    """The documents of a table: the text of `corpus.text_field`, under the record's own id or its
    number.

    Raises:
        DataError: a record without that field, or one that does not hold text, unless `on_damage`
            takes it.
    """
    for record in records:
        try:
            document = _document_of(name, record, corpus.text_field)
        except DataError as error:
            if on_damage is None:
                raise
            on_damage(error)
        else:
            yield document


def _document_of(name: str, record: Record, text_field: str) -> Document:
    where, number, fields = record
    default_id = f"{name}:{number}"
    if fields is None:
        return Document(default_id, [])
    text, own_id, url = _text_of(fields, text_field, where), fields.get("id"), fields.get("url")
    if isinstance(own_id, str):
        check_characters(own_id, f"{where}: the field 'id'")
    is_id = isinstance(own_id, (str, int)) and not isinstance(own_id, bool)
    return Document(
        str(own_id) if is_id and own_id != "" else default_id,
        [text],
        url if isinstance(url, str) and url.isprintable() else "",
    )


def _text_of(fields: Fields, text_field: str, where: str) -> str:
    if text_field not in fields:
        more = f" and {len(fields) - MOST_FIELDS:,} more" if len(fields) > MOST_FIELDS else ""
        found = ", ".join(map(repr, islice(fields, MOST_FIELDS))) + more or "none"
        raise DataError(
            f"{where} has no field {text_field!r}; its fields are {found}. "
            "Give the field with the text as corpus.text_field."
        )
    text = fields[text_field]
    if text is None or text != text:
        return ""  # null or NaN: a blank document
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field {text_field!r} holds {type(text).__name__} ({text!r:.40}), not a "
            "string. Give the field with the text as corpus.text_field, or leave the record out."
        )
    check_characters(text, where)
    return text


SOURCES: dict[str, Source] = {
    module.SOURCE.scheme: module.SOURCE
    for found in pkgutil.iter_modules(__path__, f"{__name__}.")
    if hasattr(module := importlib.import_module(found.name), "SOURCE")
}


def source_of(name: str) -> Source:
    """The kind of source that a name stands for: a path, where no other knows it."""
    scheme, separator, _ = name.partition("://")
    return SOURCES.get(scheme + separator, SOURCES[""])


def check_online(name: str, key: str, *, offline: bool) -> None:
    """Refuse a remote source where the network is not allowed.

    Args:
        key: The recipe key that names it.

    Raises:
        NetworkError: it is remote, and `offline` is true.
    """
    if offline and source_of(name).is_remote:
        raise NetworkError(
            f"{key} {name!r} is on the hub, and --offline forbids the network. Fetch it where "
            "you have a network, and give a folder of its .parquet or .jsonl files."
        )


def check_access(name: str, key: str, *, offline: bool) -> None:
    """Refuse a remote source that cannot be read here.

    Raises:
        NetworkError: the network is not allowed.
        RecipeError: the package that reads it is not installed.
    """
    check_online(name, key, offline=offline)
    source_of(name).check(f"{key} {name}")
