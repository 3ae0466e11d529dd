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

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from stillhouse.data.rows import path_of
from stillhouse.evaluation.metrics.base import Cache
from stillhouse.evaluation.settings import ZeroShotRecipe
from stillhouse.inference.engine.batcher import NotFiniteError
from stillhouse.inference.task_model import cut_text, task_model
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.tasks.metrics import CONFIDENCE, Draws, Interval, MetricSamples
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.zero_shot import LanguageModelTask
from stillhouse.training.progress import Reporter

TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


class Gain(NamedTuple):
    """What a model's metric on a data set is above the score of a guess, and in each resample."""

    value: float
    draws: Draws

    @classmethod
    def of(cls, measured: MetricSamples, chance: float, *, seed: int = 0) -> "Gain":
        """The gain over `chance`; of models with one seed the resamples are paired."""
        return cls(measured.value - chance, measured.draws(seed) - chance)


class ScoredModel(NamedTuple):
    """A model, which is loaded where it is scored, its folder, and where its tokenizer is, which a
    teacher's folder may lack."""

    folder: Path
    model: Callable[[], PreTrainedModel]
    tokenizer: Path


def data_files(recipe: Mapping[str, ZeroShotRecipe], run: RunFolder) -> dict[str, Path]:
    """The file of each data set: that of a dataset on the hub is its copy in the run."""
    return {name: path_of(each.data, run.task_data) for name, each in recipe.items()}


def zero_shot_scores(
    recipe: Mapping[str, ZeroShotRecipe],
    run: RunFolder,
    models: Mapping[str, ScoredModel],
    cache: Cache,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """The scores of all models, among them `teacher` and `student`; None without data sets."""
    if not recipe:
        return None
    sets: dict[str, Any] = {}
    gains: dict[str, list[Gain]] = {name: [] for name in models}
    for number, (name, path) in enumerate(data_files(recipe, run).items()):
        task, metric = make_task(recipe[name].task), recipe[name].task.metric
        assert isinstance(task, LanguageModelTask)
        examples = task.read(path)[: recipe[name].num_examples]
        chance = task.chance(examples)
        for model, scored in models.items():
            if (scored.folder, name) not in cache.zero_shot:
                reporter.say(f"evaluate: {name} of {model}")
                measured, num_cut = _measure(task, scored, examples)
                if num_cut:
                    reporter.say(f"{name}: {cut_text(num_cut, task)}")
                cache.zero_shot[scored.folder, name] = measured
        found = {model: cache.zero_shot[each.folder, name] for model, each in models.items()}
        for model, own in gains.items():
            own.append(Gain.of(found[model][metric], chance, seed=number))
        sets[name] = {
            "task": recipe_part(recipe[name].task),
            "data": recipe[name].data,
            "num_examples": len(examples),
            "metric": metric,
            "chance": chance,
            "models": {
                model: {key: each.interval().as_json() for key, each in own.items()}
                for model, own in found.items()
            },
            "differences": _differences(found),
            "gain_kept": _kept({model: own[-1:] for model, own in gains.items()}),
        }
    return {"sets": sets, "gain_kept": _kept(gains)}


def _measure(
    task: LanguageModelTask, scored: ScoredModel, examples: Sequence[Any]
) -> tuple[Mapping[str, MetricSamples], int]:
    """A model's metrics on the examples of a data set, and the number of truncated texts; of a
    model that diverged they are not finite."""
    model = scored.model()
    own = task.for_model(scored.folder, model.config)
    loaded = task_model(model, load_model_tokenizer(scored.folder, scored.tokenizer), own)
    try:
        predictions, num_cut = loaded.predictions_and_cuts(examples)
    except NotFiniteError:
        predictions, num_cut = [None] * len(examples), 0
    return own.metric_samples(predictions, examples), num_cut


def _differences(measured: Mapping[str, Mapping[str, MetricSamples]]) -> dict[str, Any]:
    """The student's metrics minus those of each other model."""
    student = measured["student"]
    return {
        f"student minus {model}": {
            key: each.minus(found[key]).as_json() for key, each in student.items()
        }
        for model, found in measured.items()
        if model != "student"
    }


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
