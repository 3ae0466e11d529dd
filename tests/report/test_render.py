"""Facts as text."""

import pytest

from stillhouse.report.render import plain


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
def test_unset_values_of_a_mapping_are_omitted(value, shown):
    assert plain("key", value) == shown
