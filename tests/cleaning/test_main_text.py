"""The main text of web pages, and pages that would take a parser minutes."""

import random
import time

import pytest

from stillhouse.cleaning import processor_time
from stillhouse.cleaning.processor_time import TookTooLongError, limited
from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps import main_text
from stillhouse.cleaning.steps.main_text import MAX_CHARACTERS, MainTextRecipe, make

WORDS = "The keeper counted the ships that came back before the winter closed the harbor. "
ARTICLE = "".join(f"<p>Part {number}. {WORDS * 2}</p>" for number in range(4))
PAGE = f"""<html><head><title>Title</title><style>p {{}}</style></head><body>
<nav><a href="/">Home</a> <a href="/news">News</a></nav>
<article><h1>The keeper</h1>{ARTICLE}<table><tr><td>Ships</td><td>seven</td></tr></table></article>
<div id="comments"><p>First comment of a reader, long enough to be kept.</p></div>
<footer>Copyright, terms, contact</footer></body></html>"""


def judged(html: str, settings: MainTextRecipe | None = None) -> tuple[str | None, str]:
    page = Page("1", "", html=html)
    return make(settings or MainTextRecipe())(page), page.text


def test_the_article_is_told_from_the_rest():
    reason, text = judged(PAGE)
    assert reason is None
    for number in range(4):
        assert f"Part {number}. {WORDS.strip()}" in text
    for other in ("Home", "Copyright", "comment", "p {}", "<"):
        assert other not in text


def test_tables_and_comments_as_the_recipe_says():
    assert "seven" in judged(PAGE)[1]
    assert "seven" not in judged(PAGE, MainTextRecipe(tables=False))[1]
    assert "comment of a reader" in judged(PAGE, MainTextRecipe(comments=True))[1]


def test_a_page_whose_rules_find_little_is_compared_with_other_algorithms():
    """Text in `div` elements with a paragraph at the top: the rules alone take the paragraph."""
    import trafilatura

    blocks = "".join(f"<div>Block {number}. {WORDS * 3}</div>" for number in range(60))
    html = f"<html><body><p>{WORDS * 4}</p><section>{blocks}</section></body></html>"
    alone = trafilatura.extract(html, fast=True, favor_precision=True) or ""
    text = judged(html)[1]
    assert "Block 59." not in alone
    assert "Block 59." in text


def test_a_document_that_is_no_page_passes_unchanged():
    page = Page("1", "plain <p>text</p>")
    assert make(MainTextRecipe())(page) is None
    assert page.text == "plain <p>text</p>"


def test_a_page_of_which_text_was_taken_keeps_no_source():
    page = Page("1", "", html=PAGE)
    assert make(MainTextRecipe())(page) is None
    assert page.html is None


NOTHING = "no main text"
MANY = 100_000
HOSTILE = {
    "empty": ("", NOTHING),
    "blank": (" \n ", NOTHING),
    "no body": ("<html><head><title>Title</title></head></html>", NOTHING),
    "binary": (random.Random(0).randbytes(50_000).decode("latin1"), NOTHING),
    "deep": ("<div>" * MANY, NOTHING),
    "deep with text": (f"<p>{WORDS * 9}</p>" + "<div>" * MANY + "x", None),
    "nested tables": ("<table><tr><td>cell" * (MAX_CHARACTERS // 20), "page of over 200,000 tags"),
    "tags": ("<br>" * 200_001, "page of over 200,000 tags"),
    "attributes": (
        f"<p {' '.join(f'a{number}=1' for number in range(MANY))}>",
        "tag of over 10,000 attributes",
    ),
    "attributes in quotes": (
        f"<p {' '.join(f'''a{number}='<>' ''' for number in range(MANY))}>",
        "tag of over 10,000 attributes",
    ),
    "too large": ("x" * (MAX_CHARACTERS + 1), "page of over 10 MiB"),
    "unclosed quotes": ("<a href=\"x>'" * 1000, None),  # whose quotes are text
    "surrogates": (PAGE.replace("Part 0", "Part \ud800"), None),
    "other charset": (PAGE.replace("<head>", '<head><meta charset="utf-16">'), None),
    "xml declaration": (f'<?xml version="1.0" encoding="utf-16"?>{PAGE}', None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_page_is_left_out_for_a_reason_or_read(name):
    html, expected = HOSTILE[name]
    started = time.process_time()
    reason, text = judged(html)
    assert reason == expected
    assert bool(text.strip()) == (reason is None)
    assert time.process_time() - started < 2


def test_images_inside_a_page_do_not_count_to_its_size():
    image = f'<img src="data:image/png;base64,{"A" * MAX_CHARACTERS}">'
    assert judged(PAGE.replace("</article>", f"{image}</article>"))[0] is None


def test_many_attributes_in_many_tags_are_none_of_one_tag():
    assert judged(PAGE + "<i a=1 b=2 c=3></i>" * 5000)[0] is None


def test_a_page_that_takes_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(main_text, "MAX_SECONDS", 0.05)
    body = "".join(f"<div><p>{WORDS}{number}</p></div>" for number in range(20_000))
    started = time.process_time()
    reason, _ = judged(f"<html><body>{body}</body></html>")
    assert reason == "took over 0.05 s of CPU time"
    assert time.process_time() - started < 1.5


def test_an_error_of_the_parser_is_a_reason(monkeypatch):
    import trafilatura

    def fail(*arguments: object, **options: object) -> None:
        raise RecursionError

    monkeypatch.setattr(trafilatura, "load_html", fail)
    assert judged(PAGE)[0] == "extraction failed: RecursionError"


def test_the_limit_of_time_passes_through_what_handles_every_exception(monkeypatch):
    """As trafilatura does around each of its algorithms; a signal that is lost comes again."""
    monkeypatch.setattr(processor_time, "AGAIN_SECONDS", 0.02)
    lost = False

    def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                sum(range(1000))
            except Exception:
                pass
            except TookTooLongError:
                if lost:
                    raise
                lost = True

    with pytest.raises(TookTooLongError), limited(0.02):
        stubborn()
    assert lost


def test_a_block_within_its_time_is_not_stopped():
    with limited(5.0):
        total = sum(range(1000))
    assert total == 499_500
