"""How well scores tell machine from human texts.

Axes: N texts, H human texts, M machine texts.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from stillhouse.detection.logistic import class_weights, sigmoid
from stillhouse.tasks.metrics import MetricSamples, auroc

NUM_BINS = 10


def calibration_error(
    probability: Float[np.ndarray, " N"], is_machine: Bool[np.ndarray, " N"]
) -> float:
    """Expected calibration error of the probability of machine text, both classes with the same
    weight: the mean over texts of |fraction of machine texts - mean probability| of their bin, in
    10 bins of equal width (Naeini et al. 2015, section 2)."""
    weights = class_weights(is_machine) / len(is_machine)
    bins = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
    surplus = np.bincount(bins, weights * (is_machine - probability), NUM_BINS)
    return float(np.abs(surplus).sum())


def rates(
    human: Float[np.ndarray, " H"], machine: Float[np.ndarray, " M"], threshold: float
) -> dict[str, Any]:
    """AUROC of scores with its 95 % interval, and the fractions above a threshold."""
    scores = np.concatenate([human, machine])
    is_machine = np.arange(len(scores)) >= len(human)
    return {
        "num_human": len(human),
        "num_machine": len(machine),
        "auroc": MetricSamples(auroc, scores, is_machine.astype(int)).interval().as_json(),
        "true_positives": float((machine > threshold).mean()),
        "false_positives": float((human > threshold).mean()),
    }


def detector_rates(
    human: Float[np.ndarray, " H"], machine: Float[np.ndarray, " M"], threshold: float
) -> dict[str, Any]:
    """The rates of log-odds, and the calibration error of their probabilities."""
    log_odds = np.concatenate([human, machine])
    is_machine = np.arange(len(log_odds)) >= len(human)
    error = calibration_error(sigmoid(log_odds), is_machine)
    return {**rates(human, machine, threshold), "calibration_error": error}
