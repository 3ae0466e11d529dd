"""The main text of web pages, without navigation, advertisements and footers, by trafilatura.

Documents that are no web pages pass unchanged. The rules of trafilatura alone are tried first;
where they find little, it compares their text with that of other algorithms, which takes as long
again (docs/guides/corpus.md has both measured).
"""

import re
from collections.abc import Callable
from typing import Any, Literal

from stillhouse.cleaning.processor_time import TookTooLongError, limited
from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.section import Section

MAX_CHARACTERS = 10 * 2**20  # of a page's source
MAX_TAGS = 200_000
MAX_SECONDS = 20.0  # of CPU time for a page
# The parser compares each attribute of a tag with all before it: 10,000 take it 0.2 s, 80,000 a
# minute, and it cannot be stopped.
MAX_ATTRIBUTES = 10_000
ATTRIBUTE = r"""[\s/]*+[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"']++)?+)?+"""
CROWDED_TAG = re.compile(rf"<[a-zA-Z][^\s/>]*+(?:{ATTRIBUTE}){{{MAX_ATTRIBUTES}}}")
DATA_URI = re.compile(r"data:[\w.+/-]*;base64,[A-Za-z0-9+/=]*+")
LITTLE_CHARACTERS = 250  # of a text; trafilatura's own limit
LITTLE_SHARE = 0.05  # of the page's characters
SHOWN = "//body//text()[not(parent::script or parent::style or parent::noscript)]"


class MainTextRecipe(Section):
    """Extraction of the main text of web pages."""

    favor: Literal["balance", "precision", "recall"] = "precision"
    """What matters more in doubt: to leave out what is not main text, or to keep what is."""
    tables: bool = True
    """Keep the text of tables."""
    comments: bool = False
    """Keep the comments of readers."""


def make(settings: MainTextRecipe) -> Judge:
    extract = extractor(settings)

    def judge(page: Page) -> str | None:
        if page.html is None:
            return None
        try:
            with limited(MAX_SECONDS):
                html = page.html
                if len(html) > MAX_CHARACTERS:
                    html = DATA_URI.sub("", html)
                if (reason := _too_large(html)) is not None:
                    return reason
                text = extract(html)
        except TookTooLongError:
            return f"took over {MAX_SECONDS:g} s of CPU time"
        except Exception as error:  # of a parser, whatever a page may do to it
            return f"extraction failed: {type(error).__name__}"
        page.html = None
        page.text = text
        return None if text.strip() else "no main text"

    return judge


def _too_large(html: str) -> str | None:
    if len(html) > MAX_CHARACTERS:
        return f"page of over {MAX_CHARACTERS // 2**20} MiB"
    if html.count("<") > MAX_TAGS:
        return f"page of over {MAX_TAGS:,} tags"
    if CROWDED_TAG.search(html):
        return f"tag of over {MAX_ATTRIBUTES:,} attributes"
    return None


def extractor(settings: MainTextRecipe) -> Callable[[str], str]:
    """What gives the main text of a page's source; empty where there is none."""
    import logging

    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    options: dict[str, Any] = {
        "favor_precision": settings.favor == "precision",
        "favor_recall": settings.favor == "recall",
        "include_tables": settings.tables,
        "include_comments": settings.comments,
    }

    def extract(html: str) -> str:
        tree = trafilatura.load_html(html)
        if tree is None:
            return ""
        text = trafilatura.extract(tree, fast=True, **options) or ""
        shown = sum(map(len, tree.xpath(SHOWN)))
        if len(text) >= max(LITTLE_CHARACTERS, LITTLE_SHARE * shown):
            return text
        return trafilatura.extract(tree, **options) or ""

    return extract


STEP = Step(MainTextRecipe, make, modules=("trafilatura",))
