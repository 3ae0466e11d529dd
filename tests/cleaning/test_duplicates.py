"""Exact duplicates: equal but for case and white space, over all shards, in bounded memory."""

import pytest
from tests.cleaning.signatures import finder, random_text, removed_rows

from stillhouse.cleaning.deduplication import grouping
from stillhouse.cleaning.deduplication.duplicates import DEDUPLICATION


@pytest.fixture
def find(tmp_path):
    return finder(tmp_path, DEDUPLICATION)


def test_first_of_equal_documents_is_kept(find):
    found = find(["a b", "c", "A\n b "], [], ["c", "d", "a b"])
    assert removed_rows(found) == [2, 3, 5]
    assert found.sizes == {2: 1, 3: 1}
    assert found.examples[0].size == 3
    assert found.examples[0].places == [(0, 0), (0, 2), (2, 2)]


def test_documents_that_differ_in_a_mark_are_kept(find):
    assert removed_rows(find(["a b", "a b.", "ab", "a c"])) == []


def test_result_does_not_depend_on_how_much_is_in_memory(find, monkeypatch):
    """Sorted all at once, or over thirteen ranges of hashes."""
    texts = [random_text(seed % 40, 3) for seed in range(100)]
    whole = find(texts[:33], texts[33:])
    monkeypatch.setattr(grouping, "ROWS_AT_ONCE", 8)
    parts = find(texts[:33], texts[33:])
    assert removed_rows(parts) == removed_rows(whole) == list(range(40, 100))
    assert (parts.sizes, parts.examples) == (whole.sizes, whole.examples)


def test_examples_are_the_largest_groups_with_their_first_documents(find):
    texts = [
        name for number, name in enumerate("abcdefghijklmnopqrstuvwxyz") for _ in range(number)
    ]
    found = find(texts)
    assert [group.size for group in found.examples] == list(range(25, 5, -1))
    assert {len(group.places) for group in found.examples} == {3}


def test_no_documents_at_all(find):
    assert find([]).removed[0].tolist() == []
