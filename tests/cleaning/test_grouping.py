"""Rows of several shards as one, groups of equal rows, and clusters of pairs."""

import resource

import numpy as np
import pytest

from stillhouse.cleaning.deduplication import Signatures
from stillhouse.cleaning.deduplication.grouping import Clusters, Rows, equal_rows


@pytest.fixture
def shards(tmp_path):
    """Shards of the given rows."""

    def made(*tables: list[list[int]]) -> list[Signatures]:
        found = []
        for number, table in enumerate(tables):
            file = tmp_path / f"{number}.npy"
            np.save(file, np.array(table, np.uint64).reshape(len(table), 2))
            found.append(Signatures(file, np.arange(len(table) + 1)))
        return found

    return made


def test_rows_are_taken_in_the_order_asked_for(shards):
    rows = Rows(shards([[0, 10], [1, 11]], [], [[2, 12], [3, 13], [4, 14]]))
    asked = [4, 0, 3, 0, 1]
    assert rows.take(np.array(asked)).tolist() == [[number, number + 10] for number in asked]
    assert [rows.place(number) for number in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]


def test_rows_are_equal_only_if_all_their_words_are(shards):
    own = shards([[1, 2], [1, 3], [4, 2]], [[1, 3]])
    found = equal_rows(own, [np.ones(3, bool), np.ones(1, bool)])
    assert [each.tolist() for each in found.removed] == [[False] * 3, [True]]


@pytest.fixture
def few_files():
    """At most 256 open files, as on a system with a low limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_more_shards_than_a_process_may_open_files(shards):
    own = shards(*([[number % 300, 7]] for number in range(600)))
    found = equal_rows(own, [np.ones(1, bool)] * 600)
    assert found.sizes == {2: 300}
    assert Rows(own).take(np.arange(600))[:, 0].tolist() == [*range(300), *range(300)]


def test_clusters_are_those_of_a_search_over_the_pairs():
    """Random pairs in random blocks: the root of each is the smallest number that it reaches."""
    draw = np.random.default_rng(0)
    pairs = draw.integers(0, 300, (220, 2))
    neighbors: dict[int, set[int]] = {number: {number} for number in range(300)}
    for a, b in pairs.tolist():
        neighbors[a].add(b)
        neighbors[b].add(a)
    expected = []
    for number in range(300):
        reached, waiting = set(), [number]
        while waiting:
            if (each := waiting.pop()) not in reached:
                reached.add(each)
                waiting += neighbors[each]
        expected.append(min(reached))
    clusters = Clusters(300)
    for block in np.array_split(pairs, 7):
        clusters.unite(block[:, 0], block[:, 1])
    assert clusters.roots(np.arange(300)).tolist() == expected
