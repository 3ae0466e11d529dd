"""Facts as text."""

import pytest

from stillhouse.report.html import plain


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (
            {"text": "review", "pair": None, "prefix": "", "target": "label"},
            "Text: review; Target: label",
        ),
        ({"columns": {"pair": None}, "length": 64}, "Length: 64"),
        ({"num": 0, "ok": False}, "Num: 0; Ok: False"),
        (None, "unknown"),
        ([], "none"),
    ],
)
def test_what_was_not_given_is_left_out_of_a_mapping(value, shown):
    assert plain("key", value) == shown
