"""Nouns and numbers in messages."""

import pytest

from stillhouse.wording import counted


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (counted(1, "document"), "1 document"),
        (counted(0, "document"), "0 documents"),
        (counted(1_234, "entry", "entries"), "1,234 entries"),
        (counted(1, "entry", "entries"), "1 entry"),
    ],
)
def test_a_noun_agrees_with_its_number(shown, expected):
    assert shown == expected
