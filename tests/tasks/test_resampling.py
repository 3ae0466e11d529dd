"""Metrics of resamples: those of the rows that were drawn, by libraries that see no weights."""

import numpy as np
import pytest
from scipy import stats

from stillhouse.tasks.metrics import (
    CORRELATION,
    METRICS,
    RESAMPLES,
    MetricSamples,
    bleu,
    mean,
    mean_percent,
    span_f1,
)
from stillhouse.tasks.squad import _best_score, best_threshold


def drawn(size, num_draws, seed=0):
    """Rows of each draw, and how many times each example is among them."""
    rows = np.random.default_rng(seed).integers(0, size, (num_draws, size))
    times = np.stack([np.bincount(each, minlength=size) for each in rows]).astype(np.float64)
    return rows, times


@pytest.mark.parametrize("size", [2, 7, 60])
@pytest.mark.parametrize(("name", "library"), [("pearson", "pearsonr"), ("spearman", "spearmanr")])
def test_resampled_correlations_equal_scipy(name, library, size):
    """With ties in the values, more of them in each draw, and draws that are constant."""
    draw = np.random.default_rng(size)
    right = np.round(draw.normal(size=size), 1)
    predicted = np.round(right + draw.normal(size=size))
    rows, times = drawn(size, 300)
    expected = [
        0.0
        if np.ptp(predicted[each]) == 0 or np.ptp(right[each]) == 0
        else getattr(stats, library)(predicted[each], right[each]).statistic
        for each in rows
    ]
    if size == 2:
        assert 0.0 in expected
    found = METRICS[name].of_resamples(predicted, right, times)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_correlations_do_not_depend_on_the_scale_of_their_values():
    """Neither overflow nor a large offset changes them; NaN is not hidden in a rank."""
    draw = np.random.default_rng(0)
    right = draw.normal(size=50)
    predicted = right + draw.normal(size=50)
    for name, tolerance in (("pearson", 1e-6), ("spearman", 1e-15)):
        plain = METRICS[name](predicted, right)
        assert METRICS[name](1e200 * predicted, right) == pytest.approx(plain, rel=1e-12)
        moved = METRICS[name](predicted + 1e6, right)
        assert moved == pytest.approx(plain, abs=tolerance)
        broken = np.where(np.arange(50) == 3, np.nan, predicted)
        assert np.isnan(METRICS[name](broken, right))


def examples_of(name, draw, size):
    """Random predictions and labels, in the form that a metric takes."""
    if name in ("matthews", "accuracy", "f1", "accuracy_and_f1"):
        return METRICS[name], draw.integers(0, 2, size), draw.integers(0, 2, size)
    if name == "f1 of several labels":
        return METRICS["f1"], draw.random((size, 3)) < 0.4, draw.random((size, 3)) < 0.4
    if name == "spans":
        counts = draw.integers(0, 3, (size, 1)) + draw.integers(0, 2, (size, 3))
        counts[:, 0] = counts.min(1)
        return span_f1, counts, counts
    if name == "bleu":
        totals = np.sort(draw.integers(0, 9, (size, 4)))[:, ::-1]
        lengths = draw.integers(5, 9, (size, 2))
        counts = np.concatenate([totals // 2, totals, lengths], axis=1)
        return bleu, counts, counts
    if name.startswith("mean"):
        values = draw.random(size)
        return (mean if name == "mean" else mean_percent), values, values
    has_answer = draw.random(size) < 0.5
    scores = np.where(has_answer, draw.integers(0, 5, size) / 4, 0.0)
    columns = np.stack([has_answer, scores, draw.normal(size=size), np.ones(size)], axis=1)
    return (best_threshold if name == "threshold" else _best_score), columns, columns


NAMES = ("accuracy", "f1", "accuracy_and_f1", "matthews", "f1 of several labels", "spans", "bleu",
         "mean", "mean_percent", "threshold", "best score")  # fmt: skip


@pytest.mark.parametrize("size", [1, 4, 50])
@pytest.mark.parametrize("name", NAMES)
def test_resampled_metric_equals_metric_of_drawn_examples(name, size):
    """An example that is drawn twice counts as two examples, one that is not drawn as none."""
    metric, predicted, right = examples_of(name, np.random.default_rng(size), size)
    rows, times = drawn(size, 60)
    expected = [metric(predicted[each], right[each]) for each in rows]
    found = metric.of_resamples(predicted, right, times)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    if size == 50:
        assert len(set(expected)) > 1


def test_an_interval_is_the_percentiles_of_resampled_rows():
    """The same draws from the same seed, each scored by scipy: to 1e-12; another seed differs."""
    draw = np.random.default_rng(0)
    right = np.round(draw.normal(size=30), 1)
    predicted = np.round(right + draw.normal(size=30), 1)
    rows = np.random.default_rng(5).integers(0, 30, (RESAMPLES, 30))
    expected = [stats.pearsonr(predicted[each], right[each])[0] for each in rows]
    measure = MetricSamples(METRICS["pearson"], predicted, right, CORRELATION)
    found = measure.interval(seed=5)
    low, high = np.quantile(expected, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-12)
    assert measure.interval(seed=5) == found != measure.interval(seed=6)
    other = MetricSamples(METRICS["pearson"], right, right, CORRELATION)
    gain = other.minus(measure, seed=5)
    assert (gain.low, gain.high) == pytest.approx((1 - high, 1 - low), abs=1e-12)
