"""The visible text of an HTML page: no markup, scripts, styles or navigation.

Contract: the text of the page in order, with a blank line between paragraphs, white space collapsed
as in a browser. The article is not told apart from the rest of the page.
"""

import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from stillhouse.data.formats import Format, TableFile, WebPage
from stillhouse.data.text import opened, read_blocks

# Elements whose content is not shown as text of the page; each has an end tag.
HIDDEN = {
    "audio", "button", "canvas", "iframe", "math", "nav", "noscript", "object", "script", "select",
    "style", "svg", "template", "textarea", "title", "video",
}  # fmt: skip
PARAGRAPHS = {
    "address", "article", "aside", "blockquote", "body", "dl", "fieldset", "figure", "footer",
    "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "ol", "p", "pre", "section",
    "table", "ul",
}  # fmt: skip
LINES = {"br", "caption", "dd", "div", "dt", "figcaption", "legend", "li", "summary", "tr"}
GAPS = ["", " ", "\t", "\n", "\n\n"]  # from narrow to wide
SEPARATORS = {
    **dict.fromkeys(PARAGRAPHS, "\n\n"),
    **dict.fromkeys(LINES, "\n"),
    **dict.fromkeys(("td", "th"), "\t"),
}
SPACES = re.compile(r"\s+")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
META_CHARSET = re.compile(rb"""<meta[^>]+charset\s*=\s*["']?\s*([\w:.-]+)""", re.IGNORECASE)
XML_CHARSET = re.compile(rb"""\s*<\?xml[^>]+encoding\s*=\s*["']([\w:.-]+)""")
NAMED_BYTES = 1024  # a page names its charset within these
# The charsets that a page may name, by Python's names, and the larger one of which each is a part,
# which pages that name it are written in. Python knows more, such as of escapes and of host names.
CHARSETS = re.compile(
    r"utf-8|ascii|iso8859-\d+|cp(125\d|866|874|932|949)|koi8-[ru]|mac-(roman|cyrillic)|tis-620"
    r"|gb2312|gbk|gb18030|hz|big5(hkscs)?|euc_(jp|kr)|shift_jis|iso2022_jp"
)
LARGER = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
LABELS = {  # that Python does not know
    "windows-31j": "cp932",
    "windows-874": "cp874",
    "x-euc-jp": "euc_jp",
    "x-gbk": "gb18030",
    "x-mac-cyrillic": "mac-cyrillic",
    "x-sjis": "cp932",
}
SEVEN_BIT = {"hz", "iso2022_jp"}  # charsets whose bytes are ASCII


def visible_text(blocks: Iterable[str]) -> Iterator[str]:
    """The visible text of a page, both in blocks of any size."""
    page = _Page()
    for block in blocks:
        page.feed(block)
        yield page.take()
    page.close()
    yield page.take()


def read_html(path: Path) -> Iterator[str]:
    """The visible text of a file."""
    return visible_text(read_blocks(path))


def decode_page(content: bytes, charset: str | None = None) -> str:
    """A page as text: by its byte order mark; else as UTF-8 where its bytes are that, whatever
    it is said to be, since text of another charset almost never is; else by the charset that its
    server names, else by that which the page names, else as Windows-1252. Bytes that are not of the
    charset become U+FFFD.

    Source: but for the place of UTF-8, WHATWG HTML, section 13.2.3.2, "Determining the character
    encoding", and WHATWG Encoding, section 4.2, "Names and labels".
    """
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.removeprefix(mark).decode(encoding, "replace")
    named = XML_CHARSET.match(content, 0, NAMED_BYTES) or META_CHARSET.search(
        content, 0, NAMED_BYTES
    )
    labels = (charset, named and named[1].decode("ascii", "replace"))
    encoding = next(filter(None, map(_encoding, labels)), "cp1252")
    if encoding not in SEVEN_BIT:
        with contextlib.suppress(UnicodeDecodeError):
            return content.decode("utf-8")
    return content.decode(encoding, "replace")


def _encoding(label: str | None) -> str | None:
    """Python's name of a charset; None for one that is unknown."""
    label = (label or "").strip().lower()
    try:
        name = codecs.lookup(LABELS.get(label, label)).name
    except (LookupError, ValueError):
        return None
    if not CHARSETS.fullmatch(name):
        return None
    return LARGER.get(name, name)


def read_pages(file: TableFile) -> Iterator[WebPage]:
    """The page of a file."""
    with opened(file.path) as content:
        yield WebPage(0, "", content.read())


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._parts: list[str] = []
        self._hidden: list[str] = []  # the open elements whose content is not shown
        self._preformatted = 0
        self._gap = ""  # white space before the next text
        self._is_empty = True

    def take(self) -> str:
        """The text found since the last call."""
        text = "".join(self._parts)
        self._parts.clear()
        return text

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # ends every hidden element of the head, closed or not
            self._hidden.clear()
        if tag in HIDDEN:
            self._hidden.append(tag)
        self._preformatted += tag == "pre"
        self._widen(SEPARATORS.get(tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._widen(SEPARATORS.get(tag, ""))  # such as <br/>, or an <svg/> without content

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        if tag == "pre" and self._preformatted:
            self._preformatted -= 1
        self._widen(SEPARATORS.get(tag, ""))

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._preformatted:
            self._add(data.replace("\r\n", "\n"))
            return
        words = SPACES.sub(" ", data)
        if words.startswith(" "):
            self._widen(" ")
        if words.strip():
            self._add(words.strip(" "))
            self._gap = " " if words.endswith(" ") else ""

    def _add(self, text: str) -> None:
        self._parts.append(text if self._is_empty else self._gap + text)
        self._gap, self._is_empty = "", False

    def _widen(self, gap: str) -> None:
        """Leave at least this white space before the next text."""
        self._gap = max(self._gap, gap, key=GAPS.index)


FORMATS = (
    Format(
        "HTML",
        (".html", ".htm", ".xhtml"),
        read_text=read_html,
        read_pages=read_pages,
        documents="the visible text, without markup, scripts, styles or navigation",
    ),
)
