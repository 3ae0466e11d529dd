"""The statistics of neurons, beside numpy in float64."""

import numpy as np
import pytest
import torch

from stillhouse.errors import ModelError
from stillhouse.inspection.statistics import NUM_CONTEXTS, UnitStatistics

ROWS, UNITS = 300, 7


@pytest.fixture(scope="module")
def activations() -> np.ndarray:
    """Of one layer; some are equal, one neuron is always 0, one far from it."""
    found = np.random.default_rng(0).normal(size=(ROWS, UNITS)).astype(np.float32)
    found[:, 0] = np.round(found[:, 0])
    found[:, 1] = 0
    found[:, 2] += 1_000
    return found


def statistics_of(activations: np.ndarray, size: int) -> UnitStatistics:
    """In the second of two layers, `size` rows at a time."""
    found = UnitStatistics(2, UNITS, torch.device("cpu"))
    for start in range(0, ROWS, size):
        part = torch.from_numpy(activations[start : start + size])
        found.add(1, part, torch.arange(start, start + len(part)))
        found.num_rows += len(part)
    return found


@pytest.mark.parametrize("size", [1, 7, 128, ROWS])
def test_statistics_are_those_of_float64_for_every_batch_size(activations, size):
    found, wide = statistics_of(activations, size), activations.astype(np.float64)
    np.testing.assert_allclose(found.mean[1], wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance[1], wide.var(0), rtol=1e-8, atol=1e-12)
    np.testing.assert_array_equal(found.positive[1], (wide > 0).mean(0))


@pytest.mark.parametrize("size", [1, 7, 128, ROWS])
def test_strongest_activations_are_kept_in_order_of_the_text_where_equal(activations, size):
    found = statistics_of(activations, size)
    order = np.lexsort((np.arange(ROWS)[:, None] + 0 * activations, -abs(activations)), axis=0)
    best = order[:NUM_CONTEXTS].T
    values = np.take_along_axis(activations.T, best, 1)
    known = np.arange(UNITS) != 1  # the neuron that is always 0 has no context
    np.testing.assert_array_equal(found.positions[1][known], best[known])
    np.testing.assert_array_equal(found.values[1][known], values[known])
    assert found.is_context[1].sum(1).tolist() == [NUM_CONTEXTS * bool(each) for each in known]
    assert not found.is_context[0].any()


def test_a_saved_state_is_restored(activations):
    found = statistics_of(activations, 50)
    again = UnitStatistics.from_tensors(found.tensors(), torch.device("cpu"))
    for one, other in zip(found.tensors().values(), again.tensors().values(), strict=True):
        assert torch.equal(one, other)


def test_activations_that_are_not_finite_are_refused(activations):
    damaged = torch.from_numpy(activations).clone()
    damaged[3, 4] = torch.nan
    found = UnitStatistics(1, UNITS, torch.device("cpu"))
    with pytest.raises(ModelError, match=r"Layer 0 .* NaN or infinite"):
        found.add(0, damaged, torch.arange(ROWS))
