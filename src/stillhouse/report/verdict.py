"""What a difference of two models shows: nothing where its interval holds zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse.report import units

# A difference below this stands in the report as zero, and is none.
SMALLEST_DIFFERENCE = 0.0005

Verdict = Literal["better", "worse", "unclear", "unknown"]
Side = Literal["below", "above", "unclear", "unknown"]


@dataclass(frozen=True)
class Difference:
    """One seed's difference with its 95 % interval; None where it, or the interval, is not
    known."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def side(self) -> Side:
        """On which side of zero the whole interval lies."""
        if self.value is None or self.low is None or self.high is None:
            return "unknown"
        if abs(self.value) < SMALLEST_DIFFERENCE:
            return "unclear"
        return "below" if self.high < 0 else "above" if self.low > 0 else "unclear"

    def interval(self, digits: int = 3) -> str:
        """95 % interval -0.004 to +0.002, with real minus signs; empty where it is not known."""
        if self.low is None or self.high is None:
            return ""
        return f"{units.signed(self.low, digits)} to {units.signed(self.high, digits)}"


def judge(found: Sequence[Difference]) -> Side:
    """On which side of zero the seeds' differences lie.

    One side where the values of all seeds do, and the intervals of most; unknown where a value, or
    every interval, is.
    """
    values = [each.value for each in found]
    if not found or None in values or all(each.side == "unknown" for each in found):
        return "unknown"
    sides: tuple[tuple[Side, int], ...] = (("below", -1), ("above", 1))
    for side, sign in sides:
        agreeing = sum(each.side == side for each in found)
        if 2 * agreeing > len(found) and all(sign * (value or 0.0) > 0 for value in values):
            return side
    return "unclear"
