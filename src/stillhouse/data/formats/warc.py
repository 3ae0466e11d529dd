"""Web archives: WARC, as crawlers write it, and WET, the text that Common Crawl makes of it
(ISO 28500).

Contract: a page is a `response` record of HTTP with a status of 200 to 299 and a content type of
HTML, as its server wrote it: chunks joined, compression undone. Of a `conversion` record it is the
text. Other records are no pages: requests, revisits, redirects, pictures. A record that is cut
short, or whose length is wrong, is left out, and reading goes on with the next line that begins a
record.
"""

import io
import logging
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from stillhouse.data.formats import Format, TableFile, WebPage
from stillhouse.data.text import DAMAGE, check_characters, check_signature, opened
from stillhouse.errors import DataError
from stillhouse.extras import require

MAX_PAGE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 2**16  # of a header; a longer line is read in parts
READ_BYTES = 2**16
TOO_LONG = f"is longer than {MAX_PAGE_BYTES // 2**20} MiB"
BEGINNING = b"WARC/"
HTML = ("text/html", "application/xhtml+xml")
CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([\w:.-]+)""", re.IGNORECASE)
# Window bits of zlib for each content encoding.
GZIP, DEFLATE, RAW_DEFLATE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS


def read_pages(file: TableFile) -> Iterator[WebPage]:
    """The pages of an archive; their numbers count all records.

    Raises:
        DataError: no WARC file, one that cannot be decompressed to its end, or, without
            `file.on_damage`, a damaged record.
    """
    require("text", "warcio", "brotli", purpose=f"Reading {file.name}", error=DataError)
    from warcio.exceptions import ArchiveLoadFailed

    _check_beginning(file)
    number = 0
    with opened(file.path) as content:
        records = _records(content.read)
        try:
            for number, record in enumerate(records, start=1):
                page, problem = None, ""
                try:
                    page = _page_of(record, number)
                except ValueError as error:
                    problem = str(error)
                problem = _finish(records) or problem
                if problem:
                    file.damaged(DataError(f"{file.name} record {number} {problem}."))
                elif page is not None:
                    yield page
        except ArchiveLoadFailed as error:
            raise DataError(
                f"{file.name} cannot be read beyond record {number} ({error!s:.200}). Fetch it "
                "again."
            ) from error


def _check_beginning(file: TableFile) -> None:
    with opened(file.path) as content:
        start = content.read(len(BEGINNING))
    check_signature(file.path, start, "a WARC file")
    if start and start != BEGINNING:
        raise DataError(
            f"{file.name} is not a WARC file: its first bytes are {start!r}, not {BEGINNING!r}. "
            "Leave it out, or rename it."
        )


class _Content:
    """The bytes of a file. Of its errors, those of a decompressor are a damaged archive's: warcio
    takes an EOFError for the end of the file."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read

    def read(self, size: int) -> bytes:
        from warcio.exceptions import ArchiveLoadFailed

        try:
            return self._read(size)
        except tuple(DAMAGE) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise ArchiveLoadFailed(f"it is damaged or cut short: {error}") from error


def _records(read: Callable[[int], bytes]) -> Any:
    """warcio's iterator over the records of a file, which does not parse what is in them."""
    from warcio.archiveiterator import WARCIterator

    logging.getLogger("warcio").setLevel(logging.CRITICAL)
    records = WARCIterator(_Content(read), no_record_parse=True)
    records.INC_RECORD = ""  # what it prints of a record that nothing follows; `_finish` checks
    read_line = records.reader.readline

    def read_part(length: int | None = None) -> bytes:
        return read_line(min(length or MAX_LINE_BYTES, MAX_LINE_BYTES))

    records.reader.readline = read_part
    return records


def _finish(records: Any) -> str:
    """Read up to the beginning of the next record; what is wrong with the end of this one."""
    record, problem = records.record, ""
    if not (record.rec_headers.get_header("Content-Length") or "").isdecimal():
        record.raw_stream = io.BytesIO()
        problem = "has no Content-Length that is a number"
    while record.raw_stream.read(READ_BYTES):
        pass
    if not problem and record.raw_stream.limit > 0:
        problem = "is cut short, or its Content-Length is too large"
    num_errors = records.err_count
    records.read_to_end()
    is_followed = records.err_count > num_errors
    while records.next_line and not records.next_line.startswith(BEGINNING):
        is_followed = True
        records.next_line = records.reader.readline()
    if is_followed and not problem:
        problem = "has a wrong Content-Length, or the file is damaged: what follows is no record"
    return problem


def _page_of(record: Any, number: int) -> WebPage | None:
    """The page of a record; None where it has none.

    Raises:
        ValueError: it is damaged.
    """
    kind, url = record.rec_type, record.rec_headers.get_header("WARC-Target-URI") or ""
    is_http = (record.content_type or "").lower().startswith("application/http")
    if kind != "conversion" and not (kind == "response" and is_http):
        return None
    if record.length is None:
        return None  # which `_finish` finds
    if record.length > MAX_PAGE_BYTES:
        raise ValueError(TOO_LONG)
    if kind == "response":
        return _html_page(record, number, url)
    try:
        text = record.raw_stream.read().decode("utf-8-sig")
        check_characters(text, f"record {number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8: byte {error.start} ({error.reason})") from error
    except DataError as error:
        raise ValueError("holds a NUL character") from error
    return WebPage(number, url, text)


def _html_page(record: Any, number: int, url: str) -> WebPage | None:
    from warcio.bufferedreaders import ChunkedDataReader
    from warcio.statusandheaders import StatusAndHeadersParser

    try:
        headers = StatusAndHeadersParser([], verify=False).parse(record.raw_stream)
    except EOFError:  # a record without anything
        return None
    content_type = headers.get_header("Content-Type") or ""
    kind = content_type.partition(";")[0].strip().lower()
    if not headers.statusline.startswith("2") or kind not in HTML:
        return None
    is_chunked = "chunked" in (headers.get_header("Transfer-Encoding") or "").lower()
    stream = ChunkedDataReader(record.raw_stream) if is_chunked else record.raw_stream
    content = stream.read()
    for encoding in reversed((headers.get_header("Content-Encoding") or "").lower().split(",")):
        content = _decompressed(content, encoding.strip())
    charset = CHARSET.search(content_type)
    return WebPage(number, url, content, charset[1] if charset else None)


def _decompressed(content: bytes, encoding: str) -> bytes:
    """Undo a content encoding. Content that is not compressed, as where a crawler has undone it and
    kept the header, stays as it is.

    Raises:
        ValueError: it is damaged or too long, or its encoding is unknown.
    """
    if encoding in ("", "identity", "utf-8") or not content:
        return content
    if encoding == "br":
        return _unbrotlied(content)
    if encoding == "deflate":
        return _inflated(content, (DEFLATE, RAW_DEFLATE))
    if encoding in ("gzip", "x-gzip"):
        return _inflated(content, (GZIP,))
    raise ValueError(f"has the content encoding {encoding!r:.40}, which is not known")


def _inflated(content: bytes, window_bits: tuple[int, ...]) -> bytes:
    """Decompressed by the first kind of window that fits. What is cut short, as crawlers do with
    long pages, gives its beginning."""
    for bits in window_bits:
        inflater = zlib.decompressobj(bits)
        try:
            found = inflater.decompress(content, MAX_PAGE_BYTES)
        except zlib.error as error:
            if _begins_well(content, bits):
                raise ValueError(f"cannot be decompressed ({error})") from error
        else:
            if inflater.unconsumed_tail:
                raise ValueError(TOO_LONG)
            return found
    return content


def _begins_well(content: bytes, bits: int) -> bool:
    """Whether the first bytes can be decompressed, so that what follows is damaged."""
    try:
        return bool(zlib.decompressobj(bits).decompress(content[:64], 1))
    except zlib.error:
        return False


def _unbrotlied(content: bytes) -> bytes:
    import brotli

    decompressor = brotli.Decompressor()
    try:
        found = decompressor.process(content, output_buffer_limit=MAX_PAGE_BYTES)
    except brotli.error as error:
        raise ValueError(f"cannot be decompressed ({error})") from error
    if len(found) >= MAX_PAGE_BYTES:
        raise ValueError(TOO_LONG)
    return found


FORMATS = (
    Format(
        "WARC",
        (".warc", ".wet"),
        read_pages=read_pages,
        documents="one document per page: the visible text of a `response` with HTML, the text of "
        "a `conversion` (WET); needs the extra `text`",
    ),
)
