"""Repeated lines: whole lines that occurred before in the corpus, and what is left of documents."""

import numpy as np
import pytest
from tests.cleaning.signatures import finder, removed_rows

from stillhouse.cleaning.deduplication.duplicate_lines import DEDUPLICATION, DuplicateLinesRecipe
from stillhouse.cleaning.shard_work import _Repeats

LINE = "Share this page with all of your friends on the network"
SENTENCE = "It was a bright cold day and the clocks were striking"


@pytest.fixture
def find(tmp_path):
    return finder(tmp_path, DEDUPLICATION)


def test_first_occurrence_of_a_line_is_kept(find):
    found = find([f"One\n{LINE}", f"{SENTENCE}\n{LINE}"], [f"{LINE}\nTwo", SENTENCE])
    assert removed_rows(found) == [3, 4, 6]
    assert found.sizes == {2: 1, 3: 1}
    assert found.examples[0].places == [(0, 1), (0, 3), (1, 0)]


def test_a_line_repeated_in_one_document_is_removed(find):
    assert removed_rows(find([f"{LINE}\n\n{LINE}"])) == [2]


def test_case_digits_marks_and_white_space_do_not_count(find):
    lines = (
        "Posted on March 12, 2019 by the editors of this page",
        "  posted on march 07 1998: by the EDITORS of this page!",
        "Posted on March 123, 2019 by the editors of this page",
    )
    assert removed_rows(find(["\n".join(lines)])) == [1]


def test_short_lines_are_kept(find):
    """Letters and digits are counted; blank lines, too, are short."""
    text = "Yes.\n\nYes.\n\n--------------------------------------------------\n" * 2
    assert removed_rows(find([text])) == []
    assert removed_rows(find([text], min_characters=3)) == [2, 5, 7]


def test_each_line_has_a_row():
    """Also where a character ends a line elsewhere, or changes its length in lower case."""
    sign = DEDUPLICATION.sign(DuplicateLinesRecipe())
    for text in ("", "\n", "a\u2028b\r\nc\x0bd\x85\u0130\u0130", f"{LINE}\n"):
        assert sign(text).shape == (len(text.split("\n")), 1)


def without(text: str, lines: list[int]) -> str:
    """A text without these lines."""
    starts = np.array([0, len(text.split("\n"))])
    removed = np.isin(np.arange(starts[1]), lines)
    return _Repeats(removed, starts).without(0, text, "line")


@pytest.mark.parametrize(
    ("lines", "left"),
    [([], "a\n\nb\nc\n\nd"), ([2, 3], "a\n\nd"), ([0], "b\nc\n\nd"), ([5], "a\n\nb\nc")],
)
def test_what_is_left_has_no_gap_where_a_paragraph_was(lines, left):
    assert without("a\n\nb\nc\n\nd", lines) == left


def test_a_document_of_repeated_lines_is_empty():
    assert without(f"{LINE}\n\n{LINE}", [0, 2]) == ""
