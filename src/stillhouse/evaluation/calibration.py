"""Expected calibration error: how far confidence in next-token predictions is from accuracy.

The prediction is the most likely token, its confidence c the model's probability of it. Tokens are
sorted by confidence into M = 15 bins of equal width, ((m - 1) / M, m / M]. With n tokens, of which
n_m in bin m (Guo et al. 2017, section 2, equation 3):

    ECE = sum over m of n_m / n * |share of bin m that is right - mean confidence of bin m|

A bin's term is |sum of (right - c)| / n, so one sum a bin is enough: no logits are kept. Measured
on the tokens of the validation loss.

Axes: R rows, V vocabulary.
"""

import math

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

NUM_BINS = 15  # as in Guo et al. 2017, section 5


class CalibrationError:
    """Sums over the tokens of each bin, in float64; tokens are given in chunks."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._surplus = np.zeros(NUM_BINS)

    def add(self, logits: Float[Tensor, "R V"], labels: Int[Tensor, " R"]) -> None:
        """Take a chunk into account: float32 logits, and the tokens that are right."""
        highest, predicted = logits.max(-1)
        confidence = (highest - logits.logsumexp(-1)).double().exp().clamp(max=1).cpu().numpy()
        right = (predicted == labels).cpu().numpy()
        bins = np.ceil(np.nan_to_num(confidence) * NUM_BINS).clip(1).astype(int) - 1
        self._surplus += np.bincount(bins, right - confidence, NUM_BINS)
        self._num_tokens += len(bins)

    def value(self) -> float | None:
        """The error over what was added; None where it is not finite."""
        total = float(np.abs(self._surplus).sum())
        return total / self._num_tokens if self._num_tokens and math.isfinite(total) else None
