"""Extra memory of the losses: equal values first, and a peak that counts logits alone."""

import pytest
from benchmarks.memory import (
    DENSE,
    MIB,
    Shape,
    check_room,
    compare,
    make_inputs,
    measure_memory,
    outcome,
    result_table,
)

from stillhouse.errors import ResourceError

pytestmark = pytest.mark.e2e

SHAPE = Shape(rows=512, hidden=8, vocabulary=16_384)


def test_chunks_give_the_values_and_gradients_of_full_logits():
    """With several chunks, the last one short."""
    found = compare(Shape(rows=100, hidden=8, vocabulary=16_384), seed=0, chunk_mib=4)
    assert set(found.losses) == {"loss", "soft_target", "language_modeling"}
    assert set(found.gradients) == {"features", "weight"}
    assert max(found.losses.values()) < 1e-5, found.losses
    assert max(found.gradients.values()) < 1e-5, found.gradients


def test_the_losses_are_means_over_rows():
    """Near log V where a random student meets random labels."""
    terms = outcome(make_inputs(SHAPE, seed=0), None).terms
    assert 9.7 < float(terms["language_modeling"]) < 14


def test_extra_memory_is_that_of_the_logits_that_exist_at_once():
    """Full logits are 32 MiB a model here: dense holds several of them, chunks of 4 MiB few."""
    result = measure_memory(SHAPE, [4], seed=0, repeats=1)
    assert set(result.memory) == set(result.seconds) == {DENSE, "4 MiB"}
    assert 4 * SHAPE.logits_bytes < result.extra_bytes(DENSE) < 10 * SHAPE.logits_bytes
    assert 2 * MIB < result.extra_bytes("4 MiB") < 32 * MIB
    assert result.share("4 MiB") < 0.15


def test_memory_can_be_measured_without_timings():
    """On a machine that others keep busy."""
    result = measure_memory(Shape(rows=64, hidden=8, vocabulary=4096), [4], seed=0, repeats=0)
    assert result.seconds == {}
    assert set(result.memory) == {DENSE, "4 MiB"}
    assert result_table(result).row_count == 2


def test_too_little_memory_for_the_dense_way_is_said_before():
    """Rather than the machine's out-of-memory killer choosing a process."""
    with pytest.raises(ResourceError, match="GB are free"):
        check_room(Shape(rows=10**6, hidden=8, vocabulary=10**6))
