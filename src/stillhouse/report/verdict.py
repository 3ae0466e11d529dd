"""Whether a difference of two models is significant: not where its interval contains zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stillhouse import units

# A smaller difference would be displayed as zero, so it is never called one.
SMALLEST_DIFFERENCE = 0.0005

Verdict = Literal["better", "worse", "unclear", "unknown"]


@dataclass(frozen=True)
class Outcome:
    """A verdict on the teacher, a title that states it, and sentences with the figures."""

    verdict: Verdict
    title: str
    sentences: list[str]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Difference:
    """One seed's difference with its 95 % interval; None for unknown values."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def verdict(self, *, lower_is_better: bool) -> Verdict:
        """Better or worse where the whole interval lies on one side of zero."""
        if self.value is None or self.low is None or self.high is None:
            return "unknown"
        if abs(self.value) < SMALLEST_DIFFERENCE or self.low <= 0 <= self.high:
            return "unclear"
        return "better" if (self.high < 0) == lower_is_better else "worse"

    def interval(self, digits: int = 3) -> str:
        """Such as -0.004 to +0.002; empty where the interval is unknown."""
        if self.low is None or self.high is None:
            return ""
        return f"{units.signed(self.low, digits)} to {units.signed(self.high, digits)}"


def judge(differences: Sequence[Difference], *, lower_is_better: bool) -> Verdict:
    """The verdict of all seeds.

    Better or worse where all values and most intervals are on that side of zero; unknown where a
    value, or every interval, is unknown.
    """
    values = [each.value for each in differences]
    verdicts = [each.verdict(lower_is_better=lower_is_better) for each in differences]
    if None in values or set(verdicts) <= {"unknown"}:
        return "unknown"
    same_side = len({value > 0 for value in values if value is not None}) == 1
    for verdict in ("better", "worse"):
        if same_side and 0 not in values and 2 * verdicts.count(verdict) > len(verdicts):
            return verdict
    return "unclear"
