"""E-books without what is not the book, and books of which nothing is removed."""

import pytest

from stillhouse.cleaning.step import Page
from stillhouse.cleaning.steps.books import BooksRecipe, body_of, make

PROSE = (
    "I was born in the year 1801, in a house by the river, and lived there with my uncle.\n"
    "It was produced by nobody, and the contents of its rooms were of no value.\n\n"
    "\u201cMix me a drink,\u201d he said.\n\n"
)
STORY = PROSE * 40 + "And so it ended."
BOOK = (
    f"A TALE OF A HOUSE\n\nby Someone\n\n\nCHAPTER I\n\n{STORY}\n\nCHAPTER II\n\n{STORY}\n\nTHE END"
)
HEADER = """The Project Gutenberg EBook of A Tale of a House, by Someone

This eBook is for the use of anyone anywhere at no cost and with
almost no restrictions whatsoever.  See www.gutenberg.org

Title: A Tale of a House

*** START OF THE PROJECT GUTENBERG EBOOK A TALE OF A HOUSE ***

"""
LICENCE = "START: FULL LICENSE\n\n" + "You may copy it, give it away or re-use it.\n" * 300
CONTENTS = """CONTENTS

   CHAPTER                                   PAGE

   I. THE HOUSE                                1
   II. OF THE RIVER, AND WHAT FLOATED IN IT
       WHEN NOBODY LOOKED                     12
   III. The Uncle                             40


"""
BARE_CONTENTS = "CONTENTS\n\nCHAPTER I\nCHAPTER II\nCHAPTER III\n\n"
TITLES = "Inhalt\n\nDas Haus\nDer Flu\u00df\nEin Onkel\n\n\n"
ADVERTISEMENTS = """

BY THE SAME AUTHOR

A House by the Sea. Crown 8vo, cloth, 6s.
A House on a Hill. Crown 8vo, cloth, 3s. 6d. net.
A House in Town. Demy 8vo. 7s. 6d. net. Postage 4d.

LONDON: SOMEBODY AND SONS
"""


def clean(text: str) -> str:
    page = Page("a", text)
    assert make(BooksRecipe())(page) is None
    return page.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (HEADER, f"\n\n*** END OF THE PROJECT GUTENBERG EBOOK A TALE ***\n\n{LICENCE}"),
        (HEADER, f"\n\nEnd of Project Gutenberg's A Tale of a House, by Someone\n\n{LICENCE}"),
        (HEADER.replace("*** START OF THE", "***START OF THIS"), f"\n\n{LICENCE}"),
        (f"{HEADER}Produced by A. Volunteer and the Online Distributed\nProofreading Team\n\n", ""),
        ("This etext was prepared by A. Volunteer, Somewhere.\n\n\n", ""),
        (
            "No warranty.\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04*END*\n",
            "\n\nEnd of the Project Gutenberg Etext of A Tale",
        ),
        ("[Transcriber\u2019s Note: two words were corrected.]\n\n", ""),
        ("Transcriber's Notes\n\nTwo words were corrected.\n\n", ""),
        ("", "\n\nTRANSCRIBER'S NOTE:\n\nPage 4: \"teh\".\n\nPage 9: \"adn\"."),
        ("", ADVERTISEMENTS),
        ("", ADVERTISEMENTS.replace("BY THE SAME AUTHOR", "SOME BOOKS TO BUY")),
        ("\n\n", "\n\n\n"),
    ],
    ids=[
        "markers", "end of", "this", "credits", "etext", "small print", "note", "heading",
        "at the end", "advertisements", "advertisements after the end", "blank lines",
    ],
)  # fmt: skip
def test_front_and_back_matter_is_removed(before, after):
    """And the book is left, to the character."""
    assert clean(before + BOOK + after).strip("\n") == BOOK


@pytest.mark.parametrize("contents", [CONTENTS, BARE_CONTENTS, BARE_CONTENTS.upper() + "\n\n"])
def test_a_table_of_contents_is_removed(contents):
    """Up to the first chapter, whose heading repeats an entry."""
    title, first, rest = BOOK.partition("CHAPTER I\n")
    assert clean(f"{title}{contents}{first}{rest}") == BOOK


def test_a_table_of_titles_is_one_where_they_are_headings_later():
    """Without numbers or pages."""
    body = "Das Haus\n\nText.\n\nDer Flu\u00df\n\nText.\n\nEin Onkel\n\nText."
    assert clean(TITLES + body) == body
    without = f"{TITLES}Text.\n\nText."
    assert clean(without) == without


@pytest.mark.parametrize(
    "text",
    [
        BOOK,
        STORY,
        "",
        "\ufeff\n\n  A line with spaces.  \n\n\n\n",
        "Contents\n\n" + PROSE,
        f"The list of contents:\n\nContents\n\nCHAPTER I\n\n{PROSE}\n\nCHAPTER II\n\n{PROSE}",
        f"{PROSE}They had cloth, and a net. The end\n\nof the rope was near. Net and cloth.\n\n"
        * 20,
        f"{PROSE}By the same author, he thought.\n\n{PROSE}",
        f"{BOOK}\n\nNOTES\n\n1. The house was in 8vo Street.\n\n2. Cloth was $5 in 1801.",
        f"{PROSE * 30}The project was Gutenberg's own.\n\n{PROSE * 30}",
    ],
)
def test_a_text_without_them_is_left_as_it_is(text):
    """To the character, spaces included."""
    assert body_of(text) == text


def test_a_licence_is_not_as_long_as_a_book():
    """A marker of the end in the wrong place costs its line alone."""
    book = f"{PROSE * 300}".strip()
    assert clean(f"*** END OF THE PROJECT GUTENBERG EBOOK A ***\n\n{book}") == book


def test_what_is_removed_does_not_come_back():
    """Cleaning a clean book changes nothing."""
    once = body_of(HEADER + CONTENTS + BOOK + ADVERTISEMENTS)
    assert body_of(once) == once


def test_a_document_of_nothing_else_is_left_out():
    page = Page("a", f"{HEADER}\n*** END OF THE PROJECT GUTENBERG EBOOK A ***\n{LICENCE}")
    assert make(BooksRecipe())(page) == "nothing but front and back matter"
