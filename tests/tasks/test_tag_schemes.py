"""The scheme of a model's tags, where they have none, and of a text without words."""

import pytest

from stillhouse.tasks.tagged import as_scheme, scheme_of


def test_labels_without_a_tag_scheme():
    """LABEL_0 is no last token of a span, and EVENT no end."""
    assert scheme_of(["LABEL_0", "LABEL_1"]) == "IOB2"
    assert scheme_of(["O", "EVENT"]) == "IOB2"
    assert scheme_of(["O", "B-PER", "L-PER"]) == "BILOU"


@pytest.mark.parametrize("scheme", ["IOB2", "IO", "IOBES", "BILOU"])
def test_a_text_without_words_has_no_tags(scheme):
    assert as_scheme([], scheme) == []
