"""A few trials of every row of faults; `make faults` runs all of them."""

import pytest
from tests.faults import cleaning, files, ranks, server, training  # noqa: F401 (they register their rows)
from tests.faults.harness import ROWS, Row, randomness

pytestmark = pytest.mark.e2e  # most rows start processes, or train and prepare again and again

SAMPLED = [row for row in ROWS if row.sample]


@pytest.mark.parametrize("row", SAMPLED, ids=[f"{row.number}-{row.name}" for row in SAMPLED])
def test_a_sample_of_each_fault(row: Row, tmp_path, monkeypatch):
    """What the row says holds every time."""
    monkeypatch.chdir(tmp_path)
    with row.trials(tmp_path) as trial:
        for number in range(row.sample):
            trial(randomness(row, number))
