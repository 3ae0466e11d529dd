"""Zero-shot scores of a run's models on the same examples: `zero_shot` of `evaluation.json`.

For each data set: every metric of every model with its 95 % interval, the paired difference of the
student to each other model, and the share of the teacher's gain over chance that a model kept:

    (score - chance) / (teacher's score - chance)

Over all data sets, it is the ratio of the mean gains. Its interval is a paired bootstrap: each
resample draws the same examples for both models, in each data set separately. It is None where the
teacher's own gain is not significant: its 95 % interval then contains 0. A number of a model that
diverged is None.

Axes: S data sets, D resamples.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from stillhouse.evaluation.data_sets import ScoredModel, measured_sets
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.settings import ZeroShotRecipe
from stillhouse.runs.paths import RunFolder
from stillhouse.tasks.metrics import TAILS, Draws, Interval, MetricSamples
from stillhouse.training.progress import Reporter


class Gain(NamedTuple):
    """What a model's metric on a data set is above the score of a guess, and in each resample."""

    value: float
    draws: Draws

    @classmethod
    def of(cls, measured: MetricSamples, chance: float, *, seed: int = 0) -> "Gain":
        """The gain over `chance`; of models with one seed the resamples are paired."""
        return cls(measured.value - chance, measured.draws(seed) - chance)


def zero_shot_scores(
    sets: Mapping[str, ZeroShotRecipe],
    run: RunFolder,
    models: Mapping[str, ScoredModel],
    cache: Cache,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """The scores of all models, among them `teacher` and `student`; None without data sets."""
    if not sets:
        return None
    scores: dict[str, Any] = {}
    gains: dict[str, list[Gain]] = {name: [] for name in models}
    for number, each in enumerate(measured_sets(sets, run, models, cache, reporter)):
        chance = each.task.chance(each.examples)
        for model, own in gains.items():
            own.append(Gain.of(each.models[model][each.metric], chance, seed=number))
        kept = _kept({model: own[-1:] for model, own in gains.items()})
        scores[each.name] = {**each.as_json(), "chance": chance, "gain_kept": kept}
    return {"sets": scores, "gain_kept": _kept(gains)}


def gain_kept(model: Sequence[Gain], teacher: Sequence[Gain]) -> Interval | None:
    """The mean gain of a model over that of its teacher, with its paired interval; None where the
    teacher's mean gain is not significant."""
    ours, teachers = (np.mean([each.draws for each in own], axis=0) for own in (model, teacher))
    if np.quantile(teachers, TAILS[0]) <= 0:
        return None
    value, of_teacher = (fmean(each.value for each in own) for own in (model, teacher))
    low, high = map(float, np.quantile(ours / np.maximum(teachers, 1e-9), TAILS))
    return Interval(value / of_teacher, low, high)


def _kept(gains: Mapping[str, Sequence[Gain]]) -> dict[str, dict[str, float | None] | None]:
    """The share of the teacher's gain that each other model kept."""
    found = {name: gain_kept(own, gains["teacher"]) for name, own in gains.items()}
    return {name: share and share.as_json() for name, share in found.items() if name != "teacher"}
