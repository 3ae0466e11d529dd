"""The main text of web pages, without navigation, advertisements and footers, by trafilatura.

Documents that are no web pages pass unchanged.
"""

from typing import Literal

from stillhouse.cleaning.processor_time import TookTooLongError, limited
from stillhouse.cleaning.step import Judge, Page, Step
from stillhouse.section import Section

MAX_CHARACTERS = 10 * 2**20  # of a page's source
MAX_SECONDS = 20.0  # of processor time for a page


class MainTextRecipe(Section):
    """Extraction of the main text of web pages."""

    favor: Literal["balance", "precision", "recall"] = "balance"
    """What matters more in doubt: to leave out what is not main text, or to keep what is."""
    tables: bool = True
    """Keep the text of tables."""
    comments: bool = False
    """Keep the comments of readers."""


def make(settings: MainTextRecipe) -> Judge:
    import logging

    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)

    def judge(page: Page) -> str | None:
        if page.html is None:
            return None
        if len(page.html) > MAX_CHARACTERS:
            return f"page of over {MAX_CHARACTERS // 2**20} MiB"
        try:
            with limited(MAX_SECONDS):
                text = trafilatura.extract(
                    page.html,
                    favor_precision=settings.favor == "precision",
                    favor_recall=settings.favor == "recall",
                    include_tables=settings.tables,
                    include_comments=settings.comments,
                )
        except TookTooLongError:
            return f"took over {MAX_SECONDS:g} s of processor time"
        except (ValueError, RecursionError):
            return "page that cannot be parsed"
        page.html = None
        page.text = text or ""
        return None if page.text.strip() else "no main text"

    return judge


STEP = Step(MainTextRecipe, make, modules=("trafilatura",))
