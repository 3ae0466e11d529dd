"""Whether a training diverges: its loss stays far above the best level that it had reached.

A level is the first loss, or the median of some losses in a row, so that one lucky batch sets none.
What counts as far has a floor of one nat a term, so that noise around a tiny loss is not taken for
divergence; and it must last, so that a spike is not.
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
    """The losses of a training so far: its last ones, the best level, and for how many steps in a
    row the loss has been far above it."""

    recent: tuple[float, ...] = ()
    best: float | None = None
    steps_above: int = 0

    def after(self, loss: float, floor: float) -> "LossTrend":
        """The trend with one more step's loss; `floor` is a level that is never far."""
        if not math.isfinite(loss):
            return LossTrend(self.recent, self.best, self.steps_above + 1)
        recent = (*self.recent, loss)[-LEVEL_STEPS:]
        best = loss if self.best is None else self.best
        if len(recent) == LEVEL_STEPS:
            best = min(best, statistics.median(recent))
        above = self.steps_above + 1 if self.is_far(loss, floor) else 0
        return LossTrend(recent, best, above)

    def is_far(self, loss: float, floor: float, factor: float = FACTOR) -> bool:
        """Whether a loss is far above the best level, or no number."""
        if not math.isfinite(loss):
            return True
        return self.best is not None and loss > factor * max(self.best, floor)

    def has_diverged(self, *, is_last: bool) -> bool:
        """Whether the loss has been far above for long enough, or until the end of a training
        that is too short for that."""
        most = PATIENCE_STEPS if not is_last else min(PATIENCE_STEPS, 3)
        return self.steps_above >= most


def loss_floor(weights: Mapping[str, float]) -> float:
    """One nat of each term."""
    return sum(weights.values())
