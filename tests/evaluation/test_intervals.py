"""The paired interval of a difference: its law, and an independent computation."""

import numpy as np
import pytest
from scipy import stats

from stillhouse.evaluation.perplexity import UnitLosses, difference, paired_interval


def losses(sums, tokens):
    return UnitLosses("documents", np.array(sums, float), np.array(tokens))


@pytest.fixture
def pair():
    """Two models' losses on 60 documents of unequal length: hard ones are hard for both."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(20, 400, 60)
    hardness = 3.5 + draw.normal(0, 0.6, 60)
    first = hardness * tokens
    second = (hardness + 0.05 + draw.normal(0, 0.1, 60)) * tokens
    return losses(first, tokens), losses(second, tokens)


def test_the_interval_equals_a_bootstrap_by_hand(pair):
    """Resample documents with replacement, divide sums by sums; the expanded quantiles from
    scipy's Student distribution."""
    first, second = pair
    draw, size = np.random.default_rng(99), len(first.tokens)
    means = []
    for _ in range(20_000):
        rows = draw.integers(0, size, size)
        gap = second.sums[rows].sum() - first.sums[rows].sum()
        means.append(gap / first.tokens[rows].sum())
    tail = stats.norm.cdf(-stats.t.ppf(0.975, size - 1) * np.sqrt(size / (size - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    found = difference(second, first)
    width = high - low
    assert found["low"] == pytest.approx(low, abs=0.05 * width)
    assert found["high"] == pytest.approx(high, abs=0.05 * width)
    assert found["value"] == pytest.approx((second.sums - first.sums).sum() / first.tokens.sum())


@pytest.mark.parametrize("num_units", [12, 40])
@pytest.mark.e2e
def test_interval_has_its_nominal_coverage(num_units):
    """95 % of 400 texts, also where the documents are few; the truth is zero."""
    draw, held = np.random.default_rng(5), 0
    for _ in range(400):
        tokens = draw.integers(50, 200, num_units)
        low, high = paired_interval(draw.normal(0, 0.3, num_units) * tokens, tokens)
        held += low <= 0 <= high
    assert 0.92 <= held / 400 <= 0.985


def test_difficulty_common_to_both_models_does_not_widen_the_interval(pair):
    """Paired: the documents' own hardness, far above the difference, cancels."""
    first, second = pair
    found = difference(second, first)
    assert found["low"] is not None
    assert found["high"] is not None
    assert found["low"] > 0
    apart = paired_interval(second.sums - first.sums[::-1], first.tokens)
    assert apart[1] - apart[0] > 3 * (found["high"] - found["low"])


def test_difference_is_antisymmetric(pair):
    first, second = pair
    one, other = difference(second, first), difference(first, second)
    assert other["value"] is not None
    assert other["high"] is not None
    assert one["value"] == -other["value"]
    assert one["low"] == pytest.approx(-other["high"], abs=1e-3)


def test_equal_models_have_zero_difference(pair):
    assert difference(pair[0], pair[0]) == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_the_same_losses_give_the_same_interval(pair):
    assert difference(*pair) == difference(*pair)


def test_few_units_give_no_interval():
    """Nine blocks are no picture of a text; the difference itself stays."""
    one, other = losses([3.0] * 9, [1] * 9), losses([2.0] * 9, [1] * 9)
    assert difference(one, other) == {"value": 1.0, "low": None, "high": None}


def test_a_loss_that_is_not_finite_gives_no_difference(pair):
    broken = losses([float("nan"), *pair[0].sums[1:]], pair[0].tokens)
    assert set(difference(broken, pair[0]).values()) == {None}
