"""Logistic regression with an L2 penalty, by Newton's method in float64.

With x_i the features of text i, standardized; y_i = 1 for machine text, 0 for human; weights w_i
that sum to N / 2 for each class; s the sigmoid: the coefficients b and the intercept a minimize

    sum over i of w_i * -log s((2 y_i - 1) * (a + b . x_i)) + PENALTY / 2 * |b|^2

(Hastie, Tibshirani and Friedman 2009, section 4.4). Of the classes equal weights make the result
the probability of machine text where half of all texts are; the intercept has no penalty, so the
weighted mean of the predicted probabilities is that of y: 1/2.

Axes: N texts, F features.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

PENALTY = 1.0
MAX_STEPS = 100
TOLERANCE = 1e-10  # of the gradient, per text


@dataclass(frozen=True)
class Logistic:
    """A fitted regression: log-odds = intercept + sum of coefficients * (x - mean) / scale."""

    mean: Float[np.ndarray, " F"]
    scale: Float[np.ndarray, " F"]
    coefficients: Float[np.ndarray, " F"]
    intercept: float

    def log_odds(self, features: Float[np.ndarray, "N F"]) -> Float[np.ndarray, " N"]:
        """The log-odds of machine text."""
        return self.intercept + (features - self.mean) / self.scale @ self.coefficients


def class_weights(is_machine: Bool[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Weights that sum to N / 2 over the texts of each class."""
    shares = np.where(is_machine, is_machine.mean(), 1 - is_machine.mean())
    return 0.5 / shares


def fit_logistic(
    features: Float[np.ndarray, "N F"], is_machine: Bool[np.ndarray, " N"]
) -> Logistic:
    """The regression of texts of both classes."""
    weights = class_weights(is_machine)
    mean = np.average(features, 0, weights)
    scale = np.sqrt(np.average((features - mean) ** 2, 0, weights))
    scale[scale < 1e-12] = 1.0  # a feature that all texts share
    rows = np.column_stack([np.ones(len(features)), (features - mean) / scale])
    penalty = PENALTY * np.array([0.0, *np.ones(features.shape[1])])
    signs = np.where(is_machine, 1.0, -1.0)

    def loss(point: np.ndarray) -> float:
        return float(weights @ np.logaddexp(0.0, -signs * (rows @ point)) + penalty @ point**2 / 2)

    found = np.zeros(rows.shape[1])
    for _ in range(MAX_STEPS):
        probability = sigmoid(rows @ found)
        gradient = rows.T @ (weights * (probability - is_machine)) + penalty * found
        if np.abs(gradient).max() <= TOLERANCE * len(rows):
            break
        curvature = weights * probability * (1 - probability)
        step = np.linalg.solve((rows.T * curvature) @ rows + np.diag(penalty), gradient)
        while loss(found - step) > loss(found) * (1 + 1e-12):
            step /= 2
        found = found - step
    return Logistic(mean, scale, found[1:], float(found[0]))


def sigmoid(log_odds: Float[np.ndarray, "*N"]) -> Float[np.ndarray, "*N"]:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0.0, -log_odds))
