"""A set of hashes answers as Python's does."""

import numpy as np
import pytest

from stillhouse.cleaning.hash_set import HashSet


@pytest.mark.parametrize("size", [0, 1, 3, 1000])
def test_set_contains_what_it_was_made_of(size):
    """Also beside hashes that share their first bits with one of the set."""
    hashes = np.random.default_rng(0).integers(0, 2**64, size, np.uint64)
    ends = np.array([0, 2**64 - 1], np.uint64)
    asked = np.concatenate([hashes, hashes + np.uint64(1), hashes - np.uint64(1), ends])
    expected = [value in set(hashes.tolist()) for value in asked.tolist()]
    assert HashSet(hashes).contains(asked).tolist() == expected


def test_equal_hashes_count_once():
    assert len(HashSet(np.array([5, 5, 7], np.uint64))) == 2
