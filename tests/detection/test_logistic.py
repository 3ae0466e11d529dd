"""Logistic regression: an independent minimum in float64, and its laws."""

import numpy as np
import pytest
import torch

from stillhouse.detection.logistic import PENALTY, class_weights, fit_logistic, sigmoid


@pytest.fixture
def data():
    """200 human and 60 machine texts, whose features overlap; one is of another size."""
    generator = np.random.default_rng(0)
    human, machine = generator.normal(size=(200, 3)), generator.normal(0.8, 1.5, size=(60, 3))
    features = np.concatenate([human, machine]) * [1, 1000, 0.01] + [0, 5, -3]
    return features, np.arange(260) >= 200


def test_fit_is_the_minimum_that_another_optimizer_finds(data):
    """LBFGS on the loss as written, without derivatives of ours."""
    features, is_machine = data
    x = torch.tensor(features)
    y = torch.tensor(np.where(is_machine, 1.0, -1.0))
    weight = torch.where(y > 0, 260 / 2 / 60, 260 / 2 / 200)
    mean = (weight[:, None] * x).sum(0) / 260
    x = (x - mean) / ((weight[:, None] * (x - mean) ** 2).sum(0) / 260).sqrt()
    at = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([at], max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        losses = torch.nn.functional.softplus(-y * (at[0] + x @ at[1:]))
        loss = (weight * losses).sum() + PENALTY / 2 * at[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = fit_logistic(features, is_machine)
    ours = [found.intercept, *found.coefficients]
    np.testing.assert_allclose(ours, at.detach().numpy(), atol=1e-6)


def test_mean_probability_is_a_half_whatever_the_number_of_texts(data):
    """The law of the intercept, which has no penalty: both classes count the same."""
    features, is_machine = data
    probability = sigmoid(fit_logistic(features, is_machine).log_odds(features))
    mean = np.average(probability, weights=class_weights(is_machine))
    assert mean == pytest.approx(0.5, abs=1e-8)
    halves = [probability[is_machine == side].mean() for side in (False, True)]
    assert sum(halves) / 2 == pytest.approx(0.5, abs=1e-8)


def test_size_of_a_feature_changes_nothing(data):
    features, is_machine = data
    scaled = features * [5, 0.01, -100] + 7
    one, other = (fit_logistic(each, is_machine).log_odds(each) for each in (features, scaled))
    np.testing.assert_allclose(one, other, atol=1e-7)


def test_separable_texts_and_constant_features_have_finite_coefficients():
    features = np.array([[0.0, 1], [1, 1], [10, 1], [11, 1]])
    found = fit_logistic(features, np.array([False, False, True, True]))
    log_odds = found.log_odds(features)
    assert np.isfinite(log_odds).all()
    assert (log_odds > 0).tolist() == [False, False, True, True]
    assert found.coefficients[1] == 0


def test_sigmoid_of_extremes():
    np.testing.assert_allclose(sigmoid(np.array([-1e4, 0, 1e4])), [0, 0.5, 1])
