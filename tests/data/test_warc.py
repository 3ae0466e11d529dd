"""Web archives: the pages of WARC and WET files, and what is damaged in them."""

import gzip
import random
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest

from stillhouse.data.documents import read_documents
from stillhouse.data.formats import TableFile, WebPage, warc
from stillhouse.data.formats.html import decode_page
from stillhouse.data.settings import CorpusRecipe
from stillhouse.errors import DataError

HTML = b"<title>no</title><p>One page.</p>"
Headers = list[tuple[str, str]]


class Archive:
    """Writes a WARC file record by record."""

    def __init__(self, path: Path, *, compress: bool = False) -> None:
        self.path = path
        self._compress = compress
        path.write_bytes(b"")

    def add(
        self,
        body: bytes = HTML,
        headers: Headers | None = None,
        *,
        url: str = "http://a.org/",
        status: str = "200 OK",
        kind: str = "response",
    ) -> None:
        if kind in ("response", "request"):
            named = [("Content-Type", "text/html")] if headers is None else headers
            lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named), "", ""]
            body = "\r\n".join(lines).encode() + body
        type = "application/http; msgtype=response" if kind == "response" else "text/plain"
        lines = [
            "WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", f"Content-Type: {type}",
            f"Content-Length: {len(body)}", "", "",
        ]  # fmt: skip
        record = "\r\n".join(lines).encode() + body + b"\r\n\r\n"
        with self.path.open("ab") as file:
            file.write(gzip.compress(record) if self._compress else record)


def read(path: Path, damage: list[str] | None = None) -> list[WebPage]:
    def on_damage(error: DataError) -> None:
        assert damage is not None
        damage.append(str(error))

    callback = None if damage is None else on_damage
    return list(warc.read_pages(TableFile(path, str(path), on_damage=callback)))


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "a.warc")


def typed(*headers: tuple[str, str]) -> Headers:
    return [("Content-Type", "text/html"), *headers]


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gzip"])
def test_pages_are_responses_with_html(tmp_path, compress):
    """Redirects, errors, pictures, requests and metadata are no pages; numbers count all records."""
    archive = Archive(tmp_path / f"a.warc{'.gz' if compress else ''}", compress=compress)
    archive.add(b"software: test", kind="warcinfo")
    archive.add(url="http://a.org/1")
    archive.add(b"", kind="request")
    archive.add(b"\x89PNG", [("Content-Type", "image/png")])
    archive.add(status="404 Not Found")
    archive.add(status="301 Moved Permanently")
    archive.add(b"a: b", kind="metadata")
    archive.add(headers=[("content-type", "Application/XHTML+XML;charset=UTF-8")], url="http://a/2")
    archive.add(headers=[])
    assert read(archive.path) == [
        WebPage(2, "http://a.org/1", HTML),
        WebPage(8, "http://a/2", HTML, "UTF-8"),
    ]


def test_wet_gives_its_text(tmp_path):
    """Under the suffix of Common Crawl."""
    archive = Archive(tmp_path / "a.warc.wet.gz", compress=True)
    archive.add("Schöner Text.".encode(), kind="conversion")
    archive.add(b"not \xff UTF-8", kind="conversion")
    archive.add(b"NUL \0", kind="conversion")
    archive.add(b"last", kind="conversion")
    damage: list[str] = []
    assert [page.content for page in read(archive.path, damage)] == ["Schöner Text.", "last"]
    assert ["record 2 is not UTF-8" in damage[0], "record 3 holds a NUL" in damage[1]] == [True] * 2


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("br", brotli.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
        ("deflate, gzip", lambda body: gzip.compress(zlib.compress(body))),
        ("gzip", bytes),  # a crawler has decompressed it and kept the header
        ("identity", bytes),
    ],
)
@pytest.mark.parametrize("is_chunked", [False, True])
def test_content_is_as_the_server_made_it(
    archive, encoding: str, compress: Callable[[bytes], bytes], is_chunked
):
    """Chunks joined and compression undone."""
    body, headers = compress(HTML * 50), typed(("Content-Encoding", encoding))
    if is_chunked:
        halves = body[:30], body[30:]
        body = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves) + b"0\r\n\r\n"
        headers.append(("Transfer-Encoding", "chunked"))
    archive.add(body, headers)
    archive.add()
    assert [page.content for page in read(archive.path)] == [HTML * 50, HTML]


def test_the_charset_is_that_of_the_server(archive):
    """One that is unknown or wrong does no harm."""
    for charset in ("windows-1251", '"utf-8"', "no-such"):
        body = "Привет".encode("cp1251" if charset == "windows-1251" else "utf-8")
        archive.add(body, [("Content-Type", f"text/html; charset={charset}")])
    texts = [decode_page(page.content, page.charset) for page in read(archive.path)]
    assert texts == ["Привет"] * 3


def test_a_corpus_has_the_visible_text_and_the_addresses(archive):
    """Ids are the file's name and the number of the record."""
    archive.add()
    archive.add(b"<p>Two.</p>")
    corpus = CorpusRecipe(source=str(archive.path))
    found = [(chunk.document_id, chunk.text) for chunk in read_documents(corpus, offline=True)]
    assert found == [("a.warc:1", "One page."), ("a.warc:2", "Two.")]


@pytest.mark.parametrize("change", [-7, 9])
def test_a_wrong_length_costs_one_page(archive, capfd, change):
    """Reading goes on with the next record; nothing is printed."""
    archive.add(b"<p>first</p>")
    archive.add(b"<p>second</p>\n<p>second</p>\n<p>second</p>")
    archive.add(b"<p>third</p>")
    archive.add(b"<p>last</p>")
    whole = archive.path.read_bytes()
    at = whole.index(b"Content-Length: ", whole.index(b"first</p>")) + 16
    length = int(whole[at : whole.index(b"\r\n", at)])
    wrong = b"%d" % (length + change)
    archive.path.write_bytes(whole.replace(whole[at : whole.index(b"\r\n", at)], wrong, 3))
    damage: list[str] = []
    pages = read(archive.path, damage)
    assert pages[-1].content == b"<p>last</p>"
    assert all("second" not in str(page.content) for page in pages)
    assert any("a.warc record 2" in each and "Content-Length" in each for each in damage)
    with pytest.raises(DataError, match=r"a\.warc record 2 .*Content-Length"):
        read(archive.path)
    assert capfd.readouterr() == ("", "")


def test_every_truncation_keeps_what_comes_before_and_names_the_record(archive):
    """Wherever the file ends: whole pages, and an error unless it ends between records."""
    ends = [0]
    for number in range(3):
        archive.add(b"<p>%d</p>" % number)
        ends.append(archive.path.stat().st_size)
    whole = archive.path.read_bytes()
    for size in range(0, len(whole), 7):
        archive.path.write_bytes(whole[:size])
        pages: list[WebPage] = []
        damage: list[str] = []
        message = ""
        try:
            pages = read(archive.path, damage)
        except DataError as error:
            message = str(error)
        num_whole = sum(end <= size + 4 for end in ends[1:])  # without the blank lines at its end
        if not message:  # what follows a page may be taken as its rest
            assert [page.content for page in pages] == [b"<p>%d</p>" % n for n in range(len(pages))]
            assert num_whole - bool(damage) <= len(pages) <= num_whole
        is_whole = any(end - 4 <= size <= end for end in ends)
        assert is_whole or "a.warc" in "".join([message, *damage]), size


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "broken"])
def test_a_damaged_gzip_member_ends_the_file(tmp_path, is_cut):
    """The pages before it are read, and the error names the record."""
    archive = Archive(tmp_path / "a.warc.gz", compress=True)
    archive.add(b"<p>first</p>" + random.Random(0).randbytes(5 * 2**20))
    first = archive.path.stat().st_size
    archive.add(random.Random(1).randbytes(2**20))
    whole = bytearray(archive.path.read_bytes())
    if is_cut:
        del whole[-30:]
    else:
        whole[first + 2**19 : first + 2**19 + 10] = bytes(10)
    archive.path.write_bytes(whole)
    pages = warc.read_pages(TableFile(archive.path, "a.warc.gz"))
    assert bytes(next(pages).content)[:12] == b"<p>first</p>"
    with pytest.raises(DataError, match=r"a\.warc\.gz cannot be read beyond record [12] .*damaged"):
        list(pages)


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (gzip.compress(HTML * 9)[:40] + b"\0" * 90, [("Content-Encoding", "gzip")], "decompressed"),
        (b"\xff" + brotli.compress(HTML), [("Content-Encoding", "br")], "decompressed"),
        (HTML, [("Content-Encoding", "magic")], "content encoding 'magic'"),
        (gzip.compress(bytes(2000)), [("Content-Encoding", "gzip")], "longer than"),
        (brotli.compress(bytes(2000)), [("Content-Encoding", "br")], "longer than"),
        (bytes(2000), [], "longer than"),
    ],
    ids=["gzip", "brotli", "unknown", "bomb", "brotli bomb", "long"],
)
def test_a_damaged_or_huge_page_is_left_out_alone(archive, monkeypatch, body, headers, message):
    """With its number and the reason."""
    monkeypatch.setattr(warc, "MAX_PAGE_BYTES", 1000)
    archive.add(body, typed(*headers))
    archive.add()
    damage: list[str] = []
    assert [page.content for page in read(archive.path, damage)] == [HTML]
    assert len(damage) == 1
    assert "a.warc record 1 " in damage[0]
    assert message in damage[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not a WARC file"),
        (gzip.compress(b"WARC/1.0"), "gzip-compressed. Rename it"),
        (b"WARC/9.9\r\n\r\n", "beyond record 0"),
    ],
)
def test_another_format_is_named(tmp_path, content, message):
    (tmp_path / "a.warc").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.warc")


def test_an_empty_archive_has_no_pages(tmp_path):
    (tmp_path / "a.warc").write_bytes(b"")
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(b""))
    assert read(tmp_path / "a.warc") == read(tmp_path / "b.warc.gz") == []
