"""Divergence: what stays far above the best level is named, noise and spikes are not."""

import math
import random
from collections.abc import Iterable

from stillhouse.training.progress import PATIENCE_STEPS, LossTrend, loss_floor


def diverges_at(losses: Iterable[float], minimum: float = 1.0) -> int | None:
    """The step at which a training with these losses is ended."""
    trend = LossTrend()
    for step, loss in enumerate(losses, start=1):
        trend = trend.after(loss, minimum)
        if trend.has_diverged(is_last=False):
            return step
    return None


def falling(start: float, end: float, noise: float, number: int = 500) -> list[float]:
    draw = random.Random(0)
    return [
        (end + (start - end) * math.exp(-step / 50)) * math.exp(draw.gauss(0, noise))
        for step in range(number)
    ]


def test_a_loss_that_stays_far_above_is_divergence():
    """At the end of the patience, whether it explodes at once or late."""
    for calm in (1, 3, 5, 100):
        losses = [*falling(10.0, 3.0, 0.05)[:calm], *([500.0] * 50)]
        assert diverges_at(losses) == calm + PATIENCE_STEPS
    assert diverges_at([5.0, *([math.inf] * 20)]) == 1 + PATIENCE_STEPS


def test_a_slow_rise_is_divergence():
    """A loss that doubles every ten steps is found on its way."""
    assert diverges_at([3.0 * 2 ** (step / 10) for step in range(200)]) is not None


def test_noise_and_spikes_are_not():
    """Heavy noise, nine bad steps in a row, a warm-up that first makes things worse."""
    assert diverges_at(falling(10.0, 3.0, 0.4)) is None
    assert diverges_at([3.0, *([100.0] * (PATIENCE_STEPS - 1)), *([3.0] * 20)] * 3) is None
    assert diverges_at([10.0, *([25.0] * 100), *falling(25.0, 3.0, 0.1)]) is None


def test_a_tiny_loss_may_rise_by_any_factor():
    """From almost nothing to less than the minimum: a student that began as its teacher's copy."""
    assert diverges_at([1e-6, *([2.5] * 100)], minimum=1.0) is None
    assert loss_floor({"a": 0.5, "b": 5.0}) == 5.5


def test_a_short_training_is_judged_at_its_end():
    """Three steps far above, with none left that could be better."""
    trend = LossTrend()
    for loss in (5.0, 400.0, 500.0, 600.0):
        trend = trend.after(loss, 1.0)
    assert trend.has_diverged(is_last=True)
    assert not trend.has_diverged(is_last=False)
