"""Rules of C4."""

import random
import re
from importlib import import_module

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.c4 import MAX_WORD_CHARACTERS, C4Recipe, make

SENTENCE = "This line is kept."
ANY = C4Recipe(min_sentences=0)


def cleaned(text: str, settings: C4Recipe = ANY) -> str | None:
    """The text that is left, or None for a page that is left out."""
    page = Page("1", text)
    return page.text if make(settings)(page) is None else None


@pytest.mark.parametrize(
    ("line", "is_kept"),
    [
        ("It ends in a mark!", True),
        ('He said "yes."', True),
        ("He said \u201cyes\u201d", True),
        ("Does it end in one?  ", True),
        ("It ends in none", False),
        ("It ends in three...", False),
        ("It ends in one\u2026", False),
        ("A heading:", False),
        ("Three words here.", True),
        ("Two words.", False),
        ("Please enable JavaScript to read.", False),
        ("Read our Privacy Policy for more.", False),
        ("This site uses cookies of ours.", False),
        ("We like to bake cookies.", True),
        (f"One is {'x' * (MAX_WORD_CHARACTERS - 1)}.", True),
        (f"One is {'x' * MAX_WORD_CHARACTERS}.", False),
    ],
)
def test_lines_that_are_kept(line, is_kept):
    expected = f"{SENTENCE}\n{line.strip()}\n{SENTENCE}" if is_kept else f"{SENTENCE}\n{SENTENCE}"
    assert cleaned(f"{SENTENCE}\n{line}\n{SENTENCE}") == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Lorem ipsum dolor sit amet.", "lorem ipsum"),
        ("A heading\nif (a) { return; }", "curly bracket"),
        ("No line is left of this\n", "no line is left"),
        (f"{SENTENCE} Yes. No. Why?", "under 5 sentences"),
        (f"{SENTENCE}\n" * 4, "under 5 sentences"),
        ("Pi is 3.14 and e is 2.72. They are old.", "under 5 sentences"),
    ],
)
def test_pages_that_are_left_out(text, reason):
    assert make(C4Recipe())(Page("1", text)) == reason


@pytest.mark.parametrize(
    "text",
    [
        "One is here. Two is! Three? Four. Five.",
        f"{SENTENCE}\n" * 5,
        "\n".join(["It said 'four of five'", *[SENTENCE] * 4]),  # a line without a mark of its own
        'One is "here." Two is! (Three?) Four. Five.',
    ],
)
def test_five_sentences_are_enough(text):
    assert cleaned(text, C4Recipe()) == text.strip()


def test_citations_are_removed_and_paragraphs_stay():
    text = "One is cited.[1][edit]\n\nNo mark\n\nTwo is, too.[citation needed]"
    assert cleaned(text) == "One is cited.\n\nTwo is, too."


def test_lines_without_marks_stay_if_the_recipe_says_so():
    settings = C4Recipe(min_sentences=0, terminal_punctuation=False, min_words_per_line=1)
    assert cleaned("A heading\nwith lines", settings) == "A heading\nwith lines"


def test_lines_and_verdicts_agree_with_datatrove(monkeypatch):
    """Its tokenizer of sentences needs a model that is not installed."""
    filters = import_module("datatrove.pipeline.filters.c4_filters")
    from datatrove.data import Document

    def sentences(text: str, language: str) -> list[str]:
        return [part for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]

    monkeypatch.setattr(filters, "split_into_sentences", sentences)
    theirs = filters.C4QualityFilter()
    vocabulary = ["one", "two", "three. Four", "javascript", "cookie policy", "six[3]", "seven"]
    ends = [".", "!", "?", "...", "", ":", '."']
    verdicts = set()
    for seed in range(150):
        draw = random.Random(seed)
        text = "\n".join(
            " ".join(draw.choices(vocabulary, k=draw.randint(1, 6))) + draw.choice(ends)
            for _ in range(draw.randint(1, 12))
        )
        document = Document(text=text, id="1")
        is_kept = theirs.filter(document) is True
        assert cleaned(text, C4Recipe()) == (document.text if is_kept else None), text
        verdicts.add(is_kept)
    assert verdicts == {True, False}
