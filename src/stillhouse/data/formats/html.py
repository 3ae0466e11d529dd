"""The visible text of an HTML page: no markup, scripts, styles or navigation.

Contract: the text of the page in order, with a blank line between paragraphs, white space collapsed
as in a browser. The article is not told apart from the rest of the page.
"""

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from stillhouse.data.formats.base import Format
from stillhouse.data.text import read_blocks

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
SPACES = re.compile(r"\s+")


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
        self._separate(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._separate(tag)  # such as <br/>, or an <svg/> without content

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            while self._hidden.pop() != tag:
                pass
        if tag == "pre" and self._preformatted:
            self._preformatted -= 1
        self._separate(tag)

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        if self._preformatted:
            data = data.replace("\r\n", "\n")
            if data:
                self._add(data)
            return
        words = SPACES.sub(" ", data)
        if words.startswith(" "):
            self._gap = self._gap or " "
        if words.strip():
            self._add(words.strip(" "))
            self._gap = " " if words.endswith(" ") else ""

    def _add(self, text: str) -> None:
        self._parts.append(text if self._is_empty else self._gap + text)
        self._gap = ""
        self._is_empty = False

    def _separate(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self._gap = "\n\n"
        elif tag in LINES and self._gap != "\n\n":
            self._gap = "\n"
        elif tag in ("td", "th") and not self._gap.startswith("\n"):
            self._gap = "\t"


FORMATS = (Format("HTML", (".html", ".htm", ".xhtml"), read_text=read_html),)
