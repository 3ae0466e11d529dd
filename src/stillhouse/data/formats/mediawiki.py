"""MediaWiki's XML dumps, such as Wikipedia's `pages-articles`, read as a stream.

Contract: a record for each page of the main namespace that is no redirect and is written in
wikitext: its id, with the wiki's name before it, since numbers repeat from wiki to wiki; its title,
its address where the dump names the wiki's, and the prose of its last revision (`wikitext`). Memory
is bounded by the longest page. A dump can define no entities.

Source: https://www.mediawiki.org/xml/export-0.11.xsd and the versions before it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, urlsplit
from xml.parsers import expat

from stillhouse.data.formats import Format, Record, TableFile
from stillhouse.data.text import BLOCK_BYTES, check_signature, opened
from stillhouse.data.wikitext import HIDDEN_NAMESPACES, Wikitext
from stillhouse.errors import DataError

BEGINNING_BYTES = 4096  # in which the first element of a dump is
MAX_PAGE_CHARACTERS = 64 * 2**20
HIDDEN_KEYS = ("-2", "6", "14")  # of the namespaces Media, File and Category
REDIRECT = re.compile(r"\s*#[^\W\d_]+\s*:?\s*\[\[")  # in dumps that do not mark it, in any language
# Elements of which the content is read, by their own and their parent's name.
READ = {
    ("siteinfo", "dbname"), ("siteinfo", "base"), ("namespaces", "namespace"), ("page", "title"),
    ("page", "ns"), ("page", "id"), ("revision", "model"), ("revision", "text"),
}  # fmt: skip


def read_dump(file: TableFile) -> Iterator[Record]:
    """The pages of a dump; their numbers count those of all namespaces.

    Raises:
        DataError: no dump of a MediaWiki, or one that is damaged or cut short.
    """
    dump = _Dump(file)
    with opened(file.path) as content:
        block = content.read(BLOCK_BYTES)
        check_signature(file.path, block, "an XML file")
        try:
            while block:
                dump.feed(block)
                yield from dump.take()
                block = content.read(BLOCK_BYTES)
            dump.feed(b"", is_last=True)
        except DataError:
            yield from dump.take()  # the pages before
            raise


def is_dump(path: Path) -> bool:
    """Whether an XML file begins as a dump does; true for one that is damaged, whose error says
    so when it is read."""
    try:
        with opened(path) as content:
            return b"<mediawiki" in content.read(BEGINNING_BYTES).replace(b"\0", b"")  # of UTF-16
    except DataError:
        return True


class _Dump:
    """Parses a dump, fed block by block."""

    def __init__(self, file: TableFile) -> None:
        self._file = file
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.buffer_size = 2**16
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._open: list[str] = []
        self._site: dict[str, str] = {}
        self._namespaces: dict[str, str] = {}  # keys by name in lower case
        self._key = ""  # of the namespace that is open
        self._page: dict[str, str] = {}
        self._held: list[str] | None = None  # the content of the element that is read
        self._size = 0
        self._number = 0
        self._wikitext = Wikitext()
        self._records: list[Record] = []

    def take(self) -> list[Record]:
        """The records since the last call."""
        records, self._records = self._records, []
        return records

    def feed(self, block: bytes, *, is_last: bool = False) -> None:
        try:
            self._parser.Parse(block, is_last)
        except expat.ExpatError as error:
            raise DataError(
                f"{self._file.name} is not whole XML: {error} (after page {self._number}). It is "
                "cut short or damaged; fetch it again."
            ) from error

    def _refuse_doctype(self, *_: object) -> NoReturn:
        raise DataError(
            f"{self._file.name} has a document type declaration, which a dump of a MediaWiki has "
            "not. Leave it out."
        )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._open and name != "mediawiki":
            raise DataError(
                f"{self._file.name} is XML, but no dump of a MediaWiki: it begins with "
                f"<{name:.40}>, not with <mediawiki>. Convert it to text or HTML."
            )
        parent = self._open[-1] if self._open else ""
        self._open.append(name)
        if name == "page":
            self._page = {}
            self._number += 1
        elif name == "redirect":
            self._page["redirect"] = ""
        elif name == "namespace":
            self._key = attributes.get("key", "")
        if (parent, name) in READ:
            self._held, self._size = [], 0
            self._parser.CharacterDataHandler = self._add

    def _add(self, text: str) -> None:
        assert self._held is not None
        self._size += len(text)
        if self._size <= MAX_PAGE_CHARACTERS:
            self._held.append(text)

    def _end(self, name: str) -> None:
        self._open.pop()
        if self._held is not None:
            self._parser.CharacterDataHandler = None
            self._keep(name, "".join(self._held))
            self._held = None
        if name == "siteinfo":
            named = {own for own, key in self._namespaces.items() if key in HIDDEN_KEYS}
            self._wikitext = Wikitext(HIDDEN_NAMESPACES | named)
        elif name == "page":
            self._close_page()

    def _keep(self, name: str, value: str) -> None:
        if name == "namespace":
            self._namespaces[value.lower()] = self._key
        elif name in ("dbname", "base"):
            self._site[name] = value.strip()
        else:
            self._page[name] = value
            if name == "text" and self._size > MAX_PAGE_CHARACTERS:
                self._page["too long"] = ""

    def _close_page(self) -> None:
        page, self._page = self._page, {}
        title, source = page.get("title", ""), page.get("text", "")
        prefix, colon, _ = title.partition(":")
        in_main = page["ns"] == "0" if "ns" in page else not self._is_namespace(prefix, colon)
        is_wikitext = page.get("model", "wikitext") == "wikitext"
        if not in_main or not is_wikitext or "redirect" in page or REDIRECT.match(source):
            return
        where = f"{self._file.name} page {self._number}"
        if "too long" in page:
            size = f"{MAX_PAGE_CHARACTERS // 2**20} Mi"
            self._file.damaged(DataError(f"{where} ({title:.80}) has over {size} characters."))
            return
        base = self._site.get("base", "")
        host = urlsplit(base).hostname or ""
        wiki = self._site.get("dbname") or host or self._file.path.name
        fields = {
            "id": f"{wiki}:{page.get('id', self._number)}",
            "title": title,
            "url": f"{base.rpartition('/')[0]}/{quote(title.replace(' ', '_'), _SAFE)}"
            if host
            else "",
            self._file.column: self._wikitext.prose(source),
        }
        self._records.append(Record(where, self._number, fields))

    def _is_namespace(self, prefix: str, colon: str) -> bool:
        return bool(colon) and self._namespaces.get(prefix.lower(), "0") != "0"


_SAFE = "/:;@!*(),~$"

FORMATS = (
    Format(
        "MediaWiki",
        (".xml",),
        read_records=read_dump,
        is_one=is_dump,
        by_line=False,
        documents="dumps of Wikipedia and other wikis: one document per article, its prose without "
        "lists, tables and headings",
        rows="one example per article",
    ),
)
