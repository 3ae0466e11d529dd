"""Results of each seed, from `evaluation.json` and `metrics.jsonl`, and medians over seeds.

A number is a float or None; None means "not measured" or "not finite", never zero.

A difference of two models is significant where its interval does not contain zero.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stillhouse import units
from stillhouse.errors import RunError
from stillhouse.evaluation.metrics.base import SCHEMA, Key, Metric, read
from stillhouse.evaluation.metrics.registry import METRICS
from stillhouse.evaluation.metrics.speed import is_noisy
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.training.metrics import read_metrics
from stillhouse.wording import counted

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

    def size_interval(self) -> str:
        """Of a difference whose interval excludes zero, the interval of its size: 0.002 to 0.004
        for -0.004 to -0.002."""
        if self.low is None or self.high is None:
            return ""
        low, high = sorted((abs(self.low), abs(self.high)))
        return f"{low:.3f} to {high:.3f}"

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


MODEL_LABELS = {
    "teacher": "Teacher",
    "student": "Student",
    "control": "Control, same tokens",
    "control_same_time": "Control, same time",
}
CONTROLS = ("control", "control_same_time")
LOSS = "validation_loss"  # in nats per predicted token, of causal and masked models


@dataclass(frozen=True)
class SeedResult:
    """One seed's measurements and training log."""

    seed: int
    run: RunFolder
    evaluation: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    def value(self, model: str, key: Key) -> float | None:
        """A number of one model, such as `perplexity.token`."""
        value = read(self.evaluation["models"].get(model), key)
        return float(value) if isinstance(value, (int, float)) else None

    def minus(self, model: str) -> Difference:
        """The student's loss minus another model's, with its measured interval."""
        student, other = (self.value(name, LOSS) for name in ("student", model))
        value = student - other if student is not None and other is not None else None
        found = (self.evaluation.get("intervals") or {}).get(model) or {}
        return Difference(value, found.get("low"), found.get("high"))

    def has_diverged(self, model: str) -> bool:
        return model in (self.evaluation.get("diverged") or ())


@dataclass(frozen=True)
class Spread:
    """One number over the seeds: median, extremes, and the number of seeds without a value."""

    median: float
    low: float
    high: float
    num_missing: int = 0


def read_results(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> list[SeedResult]:
    """The results of every seed, in the recipe's order.

    Raises:
        RunError: a seed was not evaluated, or its `evaluation.json` is damaged or of another
            schema.
    """
    return [_read(seed, run) for seed, run in zip(recipe.seeds, seed_runs, strict=True)]


def _read(seed: int, run: RunFolder) -> SeedResult:
    if not run.evaluation.is_file():
        raise RunError(
            f"There is no {run.evaluation} yet. Run the stage evaluate first (`stillhouse run` "
            "does)."
        )
    try:
        evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
        schema, models = evaluation.get("schema"), evaluation["models"]
    except (ValueError, AttributeError, KeyError) as error:
        raise RunError(
            f"{run.evaluation} is damaged ({error}). Move it away, then run the stage evaluate "
            "again."
        ) from error
    check_schema(run.evaluation, schema, "evaluate")
    if "student" not in models:
        raise RunError(
            f"{run.evaluation} has no student. Move it away, then run the stage evaluate again."
        )
    return SeedResult(seed, run, evaluation, read_metrics(run.metrics))


def check_schema(path: Path, schema: object, stage: str) -> None:
    """Refuse a result in the format of another version.

    Raises:
        RunError: with the command that writes the result again.
    """
    if schema != SCHEMA:
        raise RunError(
            f"{path} has schema {schema}; the report needs schema {SCHEMA}. Move it away, then "
            f"run `stillhouse {stage}` with the recipe again."
        )


def models_of(results: Sequence[SeedResult]) -> list[str]:
    """The models of any seed: the teacher first, then the student and its controls."""
    found = {model for result in results for model in result.evaluation["models"]}
    known = [model for model in MODEL_LABELS if model in found]
    return known + sorted(found - set(known))


def label_of(model: str) -> str:
    return MODEL_LABELS.get(model, model)


def main_metric(recipe: Recipe) -> Metric:
    """The metric that stands for a model's quality: perplexity, or masked loss."""
    key = "perplexity.token" if recipe.tokens.language_modeling == "causal" else "masked_loss"
    return next(metric for metric in METRICS if metric.key == key)


def spread(values: Sequence[float | None]) -> Spread | None:
    """Median and extremes of the known values; None if all are missing."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    return Spread(
        statistics.median(present), min(present), max(present), len(values) - len(present)
    )


def spread_of(results: Sequence[SeedResult], model: str, key: Key) -> Spread | None:
    return spread([result.value(model, key) for result in results])


def ratio_to_teacher(results: Sequence[SeedResult], model: str, key: Key) -> float | None:
    """The quotient of two numbers as displayed: each the median of its seeds."""
    top, bottom = (spread_of(results, each, key) for each in (model, "teacher"))
    return top.median / bottom.median if top and bottom and bottom.median else None


def noise(results: Sequence[SeedResult], model: str, metric: Metric) -> tuple[float, float] | None:
    """The range of a speed ratio, the widest of all seeds, where it is too wide to omit."""
    found = [
        interval
        for result in results
        if (interval := read(result.evaluation["models"].get(model), metric.interval))
    ]
    widest = [min(low for low, _ in found), max(high for _, high in found)] if found else None
    return (widest[0], widest[1]) if widest and is_noisy(widest) else None


def differences(results: Sequence[SeedResult], model: str) -> list[Difference]:
    """Each seed's student minus its own control: negative where the student is better."""
    return [result.minus(model) for result in results]


def seeds_of(seeds: Sequence[int]) -> str:
    """3 seeds (0, 1, 2)."""
    return f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"


def resampled(results: Sequence[SeedResult]) -> str:
    """The units that intervals are resampled over: 57 documents of the text."""
    for interval in (results[0].evaluation.get("intervals") or {}).values():
        return f"the {interval['units']:,} {interval['unit']} of the text"
    return "the text"


def scored_text(recipe: Recipe) -> str:
    """The text of the first loss and perplexity: the validation split, or a file."""
    first = recipe.evaluation.perplexity[0]
    if first == "validation" or recipe.tokens.language_modeling == "masked":
        return "the validation split"
    return Path(first).name
