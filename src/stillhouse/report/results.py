"""What the report reads: each seed's `evaluation.json` and `metrics.jsonl`, and medians over seeds.

A number is a float or None; None stands for "not measured" or "not finite", never for zero.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import RunError
from stillhouse.recipe import Recipe
from stillhouse.report.verdict import Difference
from stillhouse.runs.paths import RunFolder
from stillhouse.training.metrics import read_metrics
from stillhouse.wording import counted

MODEL_LABELS = {
    "teacher": "Teacher",
    "student": "Student",
    "control": "Control, same tokens",
    "control_same_time": "Control, same time",
}
CONTROLS = ("control", "control_same_time")
NOISY = 1.25  # how far apart the ends of a ratio's interval may lie for it to be told alone


@dataclass(frozen=True)
class SeedResult:
    """One seed's measurements and training log."""

    seed: int
    run: RunFolder
    evaluation: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    def value(self, model: str, path: str | Sequence[str]) -> float | None:
        """A number of one model, such as `perplexity.token`, or its keys one by one."""
        value: Any = self.evaluation["models"].get(model)
        for key in path.split(".") if isinstance(path, str) else path:
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return float(value) if isinstance(value, (int, float)) else None

    def minus(self, model: str, path: str) -> Difference:
        """The student's loss less another model's, with the interval that was measured."""
        student, other = self.value("student", path), self.value(model, path)
        value = student - other if student is not None and other is not None else None
        found = (self.evaluation.get("intervals") or {}).get(model) or {}
        return Difference(value, found.get("low"), found.get("high"))

    def has_diverged(self, model: str) -> bool:
        return model in (self.evaluation.get("diverged") or ())


@dataclass(frozen=True)
class Spread:
    """One number over the seeds: the median, the extremes, and how many seeds have no value."""

    median: float
    low: float
    high: float
    num_missing: int = 0


def read_results(recipe: Recipe, seed_runs: Sequence[RunFolder]) -> list[SeedResult]:
    """The results of every seed, in the recipe's order.

    Raises:
        RunError: a seed has not been evaluated, or its `evaluation.json` is damaged.
    """
    return [_read(seed, run) for seed, run in zip(recipe.seeds, seed_runs, strict=True)]


def _read(seed: int, run: RunFolder) -> SeedResult:
    if not run.evaluation.is_file():
        raise RunError(
            f"{run.evaluation} is not there yet, so there is nothing to report. "
            "Run the stage evaluate first (`stillhouse run` does)."
        )
    try:
        evaluation = json.loads(run.evaluation.read_text(encoding="utf-8"))
        present = "student" in evaluation["models"]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{run.evaluation} is damaged ({error}). Move it away; the stage evaluate then runs "
            "again."
        ) from error
    if not present:
        raise RunError(
            f"{run.evaluation} has no student among its models. Run the stage evaluate again."
        )
    return SeedResult(seed, run, evaluation, read_metrics(run.metrics))


def models_of(results: Sequence[SeedResult]) -> list[str]:
    """The models that any seed measured: the teacher first, then the student and its controls."""
    found = {model for result in results for model in result.evaluation["models"]}
    known = [model for model in MODEL_LABELS if model in found]
    return known + sorted(found - set(known))


def label_of(model: str) -> str:
    return MODEL_LABELS.get(model, model)


def loss_path(recipe: Recipe) -> str:
    """Which number of a model is its validation loss, in nats per predicted token."""
    causal = recipe.tokens.language_modeling == "causal"
    return "validation_loss" if causal else "masked_loss"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Median and extremes of the values that are there; None where none is."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    return Spread(
        statistics.median(present), min(present), max(present), len(values) - len(present)
    )


def spread_of(
    results: Sequence[SeedResult], model: str, path: str | Sequence[str]
) -> Spread | None:
    return spread([result.value(model, path) for result in results])


def ratio_of_medians(
    results: Sequence[SeedResult], model: str, over: str, path: str | Sequence[str]
) -> float | None:
    """The quotient of two numbers as they stand in a table: each the median of its seeds."""
    top, bottom = (spread_of(results, each, path) for each in (model, over))
    return top.median / bottom.median if top and bottom and bottom.median else None


def noise(results: Sequence[SeedResult], model: str, path: str) -> tuple[float, float] | None:
    """The range of a ratio of speeds to the teacher's, where it is too wide to tell the ratio
    alone; over several seeds the widest."""
    kind = path.removeprefix("speed.").removesuffix("_tokens_per_second")
    found = []
    for result in results:
        speed = result.evaluation["models"].get(model, {}).get("speed") or {}
        found.append((speed.get("ratio_to_first") or {}).get(kind))
    known = [interval for interval in found if interval]
    if not known:
        return None
    low, high = min(low for low, _ in known), max(high for _, high in known)
    return (low, high) if high > NOISY * low else None


def differences(results: Sequence[SeedResult], model: str, path: str) -> list[Difference]:
    """Each seed's student less its own control (or teacher): below zero, the student is better."""
    return [result.minus(model, path) for result in results]


def seeds_of(seeds: Sequence[int]) -> str:
    """3 seeds (0, 1, 2)."""
    return f"{counted(len(seeds), 'seed')} ({', '.join(map(str, seeds))})"


def resampled(results: Sequence[SeedResult]) -> str:
    """What intervals are drawn over: 57 documents of the text."""
    for interval in (results[0].evaluation.get("intervals") or {}).values():
        return f"the {interval['units']:,} {interval['unit']} of the text"
    return "the text"


def scored_text(recipe: Recipe) -> str:
    """What the first loss and perplexity are of: the validation split, or a file."""
    first = recipe.evaluation.perplexity[0]
    if first == "validation" or recipe.tokens.language_modeling == "masked":
        return "the validation split"
    return Path(first).name
