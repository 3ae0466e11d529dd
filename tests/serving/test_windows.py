"""A text longer than a context, in windows."""

import pytest

from stillhouse.serving.dialects.editor import windows


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 8, 9, 40, 41])
def test_every_token_is_new_once_and_sees_half_a_context(num_tokens):
    new = []
    for start, first, end in windows(num_tokens, 8):
        assert end - start <= 8
        assert start == 0 or first - start >= 4
        new += range(first, end)
    assert new == list(range(num_tokens))
