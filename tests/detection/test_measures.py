"""Rates: AUROC by its definition over pairs, calibration error by hand."""

import itertools

import numpy as np
import pytest

from stillhouse.detection.logistic import sigmoid
from stillhouse.detection.measures import calibration_error, detector_rates, rates
from stillhouse.tasks.metrics import auroc


def by_pairs(scores, labels):
    """The fraction of pairs in which the class 1 has the higher score, ties as half."""
    pairs = itertools.product(scores[labels == 1], scores[labels == 0])
    return float(np.mean([(one > zero) + (one == zero) / 2 for one, zero in pairs]))


@pytest.fixture
def scored():
    generator = np.random.default_rng(0)
    scores = generator.integers(0, 6, 30).astype(float)  # many ties
    return scores, (generator.random(30) < 0.4).astype(int)


def test_auroc_is_the_fraction_of_pairs(scored):
    scores, labels = scored
    assert auroc(scores, labels) == pytest.approx(by_pairs(scores, labels), abs=1e-12)
    assert auroc(-scores, labels) == pytest.approx(1 - by_pairs(scores, labels), abs=1e-12)


def test_auroc_of_a_resample_is_that_of_the_repeated_examples(scored):
    scores, labels = scored
    times = np.random.default_rng(1).integers(0, 3, (4, 30)).astype(float)
    found = auroc.of_resamples(scores, labels, times)
    for own, value in zip(times.astype(int), found, strict=True):
        repeated = np.repeat(scores, own), np.repeat(labels, own)
        assert value == pytest.approx(by_pairs(*repeated), abs=1e-12)


def test_auroc_of_one_class_alone_says_nothing():
    assert auroc(np.array([1.0, 2.0]), np.array([1, 1])) == 0.5


def test_calibration_error_by_hand():
    """Two bins: at 0.25, one of two is machine text, a gap of 0.25; at 0.85, two of two, 0.15."""
    probability = np.array([0.25, 0.25, 0.85, 0.85, 0.05, 0.05])
    is_machine = np.array([False, True, True, True, False, False])
    gaps = [2 / 6 * 0.25, 2 / 6 * 0.15, 2 / 6 * 0.05]
    assert calibration_error(probability, is_machine) == pytest.approx(sum(gaps))


def test_classes_count_the_same_in_the_calibration_error():
    """Human texts twice over change nothing."""
    probability = np.array([0.3, 0.6, 0.7, 0.9])
    is_machine = np.array([False, False, True, True])
    more = [0, 1, 0, 1, 2, 3]
    assert calibration_error(probability[more], is_machine[more]) == pytest.approx(
        calibration_error(probability, is_machine)
    )


def test_rates_count_what_is_above_the_threshold():
    human, machine = np.array([0.0, 1, 2, 3]), np.array([2.0, 3, 4, 5])
    found = rates(human, machine, 2.5)
    assert (found["true_positives"], found["false_positives"]) == (0.75, 0.25)
    assert found["auroc"]["value"] == pytest.approx(14 / 16)
    assert found["auroc"]["low"] < 14 / 16 <= found["auroc"]["high"]


def test_calibrated_log_odds_have_a_small_error():
    """Scores that are the true log-odds of two normal distributions."""
    generator = np.random.default_rng(0)
    human, machine = generator.normal(-1, 1, 4_000), generator.normal(1, 1, 4_000)
    right = detector_rates(2 * human, 2 * machine, 0.0)
    too_sure = detector_rates(8 * human, 8 * machine, 0.0)
    assert right["calibration_error"] < 0.02 < 0.05 < too_sure["calibration_error"]
    assert right["true_positives"] == pytest.approx(float((sigmoid(machine) > 0.5).mean()))
