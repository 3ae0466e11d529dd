"""What the report reads: each seed's `evaluation.json` and `metrics.jsonl`, and medians over seeds.

A number is a float or None; None stands for "not measured" or "not finite", never for zero.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import RunError
from stillhouse.recipe import Recipe
from stillhouse.run_folder import RunFolder
from stillhouse.training.metrics import read_metrics

MODEL_LABELS = {
    "teacher": "Teacher",
    "student": "Student",
    "control": "Control, same tokens",
    "control_same_time": "Control, same time",
}
CONTROLS = ("control", "control_same_time")


@dataclass(frozen=True)
class SeedResult:
    """One seed's measurements and training log."""

    seed: int
    run: RunFolder
    evaluation: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]

    def value(self, model: str, path: str) -> float | None:
        """A number of one model, such as `perplexity.token`."""
        value: Any = self.evaluation["models"].get(model)
        for key in path.split("."):
            if not isinstance(value, Mapping):
                return None
            value = value.get(key)
        return float(value) if isinstance(value, (int, float)) else None


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


def spread_of(results: Sequence[SeedResult], model: str, path: str) -> Spread | None:
    return spread([result.value(model, path) for result in results])


def ratios(results: Sequence[SeedResult], model: str, over: str, path: str) -> list[float | None]:
    """Each seed's number of `model` divided by that of `over`."""
    found = []
    for result in results:
        top, bottom = result.value(model, path), result.value(over, path)
        found.append(top / bottom if top is not None and bottom else None)
    return found


def differences(results: Sequence[SeedResult], control: str, path: str) -> list[float | None]:
    """Each seed's student minus its own control: below zero, the student is better."""
    found = []
    for result in results:
        student, other = result.value("student", path), result.value(control, path)
        found.append(student - other if student is not None and other is not None else None)
    return found
