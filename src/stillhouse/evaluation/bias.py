"""Bias of a run's models on the same sentences: `bias` of `evaluation.json`.

For each set: every metric of every model with its 95 % interval, the paired differences of the
student to each other model, and `bias_change`: how much further from the ideal value the student is
than its teacher,

    |student - ideal| - |teacher - ideal|

with the interval of a paired bootstrap; above 0 the student is more biased (or worse). The metrics
and their ideal values are those of `tasks.bias`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from stillhouse.evaluation.data_sets import MeasuredSet, ScoredModel, measured_sets
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.settings import BiasRecipe
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import TAILS, Interval, MetricSamples
from stillhouse.training.progress import Reporter


def bias_scores(
    sets: Mapping[str, BiasRecipe],
    run: RunFolder,
    models: Mapping[str, ScoredModel],
    cache: Cache,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """The bias of all models, among them `teacher` and `student`; None without data sets."""
    if not sets:
        return None
    return {
        each.name: {**each.as_json(), **_ideals(each)}
        for each in measured_sets(sets, run, models, cache, reporter)
    }


def _ideals(measured: MeasuredSet) -> dict[str, Any]:
    student, teacher = measured.models["student"], measured.models["teacher"]
    # A metric of a part of the set, such as stereotype_score/age, has the ideal value of the whole.
    ideals = {name: measured.task.ideals[name.partition("/")[0]] for name in student}
    return {
        "ideal": ideals,
        "bias_change": {
            name: change(own, teacher[name], ideals[name]).as_json()
            for name, own in student.items()
        },
    }


def change(student: MetricSamples, teacher: MetricSamples, ideal: float) -> Interval:
    """How much further from the ideal the student's metric is than its teacher's."""

    def further(student: Any, teacher: Any) -> Any:
        return np.abs(student - ideal) - np.abs(teacher - ideal)

    draws = further(student.draws(0), teacher.draws(0))
    low, high = map(float, np.quantile(draws, TAILS))
    return Interval(float(further(student.value, teacher.value)), low, high)
