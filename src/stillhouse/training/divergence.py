"""Detects divergence: a loss that stays far above the best level reached.

A level is the first loss, or the median of several consecutive losses, so that one lucky batch does
not set it. Levels below one nat per term count as one nat, so that noise around a tiny loss is not
taken for divergence; and the loss must stay there, so that a spike is not either.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL_STEPS = 5
PATIENCE_STEPS = 10
FACTOR = 3.0
FINAL_FACTOR = 30.0  # of a single batch after the last step, which is noisier


@dataclass(frozen=True)
class LossTrend:
    """The last losses of a training, the best level, and the number of consecutive steps whose loss
    is far above it."""

    recent: tuple[float, ...] = ()
    best: float | None = None
    steps_above: int = 0

    def after(self, loss: float, floor: float) -> "LossTrend":
        """The trend after one more step's loss; levels below `floor` count as `floor`."""
        if not math.isfinite(loss):
            return LossTrend(self.recent, self.best, self.steps_above + 1)
        recent = (*self.recent, loss)[-LEVEL_STEPS:]
        best = loss if self.best is None else self.best
        if len(recent) == LEVEL_STEPS:
            best = min(best, statistics.median(recent))
        above = self.steps_above + 1 if self.is_far(loss, floor) else 0
        return LossTrend(recent, best, above)

    def is_far(self, loss: float, floor: float, factor: float = FACTOR) -> bool:
        """Whether a loss is far above the best level, or not finite."""
        if not math.isfinite(loss):
            return True
        return self.best is not None and loss > factor * max(self.best, floor)

    def has_diverged(self, *, is_last: bool) -> bool:
        """Whether the loss has been far above for long enough, or until the end of a training
        that is too short for that."""
        most = PATIENCE_STEPS if not is_last else min(PATIENCE_STEPS, 3)
        return self.steps_above >= most


def loss_floor(weights: Mapping[str, float]) -> float:
    """One nat per term."""
    return sum(weights.values())
