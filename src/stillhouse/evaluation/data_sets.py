"""Data sets that a run's models are scored on as they are, all models on the same examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from stillhouse.data.rows import path_of
from stillhouse.evaluation.metrics.base import Cache, Scored
from stillhouse.evaluation.settings import BiasRecipe, ZeroShotRecipe
from stillhouse.inference.engine.batcher import NotFiniteError
from stillhouse.inference.task_model import cut_text, task_model
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.tasks.metrics import MetricSamples
from stillhouse.tasks.registry import make_task
from stillhouse.tasks.zero_shot import LanguageModelTask
from stillhouse.training.progress import Reporter

DataSets = Mapping[str, ZeroShotRecipe] | Mapping[str, BiasRecipe]
Samples = Mapping[str, MetricSamples]  # by metric


class ScoredModel(NamedTuple):
    """A model, which is loaded where it is scored, its folder, and where its tokenizer is, which a
    teacher's folder may lack."""

    folder: Path
    model: Callable[[], PreTrainedModel]
    tokenizer: Path


@dataclass(frozen=True)
class MeasuredSet:
    """The metrics of each model on a data set, among them `teacher` and `student`."""

    name: str
    recipe: ZeroShotRecipe | BiasRecipe
    task: LanguageModelTask
    examples: Sequence[Any]
    models: Mapping[str, Samples]
    details: Mapping[str, Any]  # by model

    @property
    def metric(self) -> str:
        """The one that compares models."""
        return self.recipe.task.metric

    def as_json(self) -> dict[str, Any]:
        """Every metric of every model with its 95 % interval, and the paired differences of the
        student to each other model."""
        student = self.models["student"]
        return {
            "task": recipe_part(self.recipe.task),
            "data": self.recipe.data,
            "num_examples": len(self.examples),
            "metric": self.metric,
            "models": {
                model: {key: each.interval().as_json() for key, each in own.items()}
                for model, own in self.models.items()
            },
            "differences": {
                f"student minus {model}": {
                    key: each.minus(found[key]).as_json() for key, each in student.items()
                }
                for model, found in self.models.items()
                if model != "student"
            },
            **({"details": self.details} if any(self.details.values()) else {}),
        }


def data_files(sets: DataSets, run: RunFolder) -> dict[str, list[Path]]:
    """The files of each data set: that of a dataset on the hub is its copy in the run."""
    return {
        name: make_task(each.task).sources(path_of(each.data, run.task_data))
        for name, each in sets.items()
    }


def measured_sets(
    sets: DataSets,
    run: RunFolder,
    models: Mapping[str, ScoredModel],
    cache: Cache,
    reporter: Reporter,
) -> Iterator[MeasuredSet]:
    """Score all models on each data set; what is in the cache is not scored again."""
    for name, each in sets.items():
        task = make_task(each.task)
        assert isinstance(task, LanguageModelTask)
        examples = task.read(path_of(each.data, run.task_data))[: each.num_examples]
        for model, scored in models.items():
            key = scored.folder, each.task.kind, name
            if key not in cache.scores:
                reporter.say(f"evaluate: {name} of {model}")
                measured, num_cut = _measure(task, scored, examples)
                if num_cut:
                    reporter.say(f"{name}: {cut_text(num_cut, task)}")
                cache.scores[key] = measured
        found = {
            model: cache.scores[own.folder, each.task.kind, name] for model, own in models.items()
        }
        metrics = {model: own.metrics for model, own in found.items()}
        details = {model: own.details for model, own in found.items()}
        yield MeasuredSet(name, each, task, examples, metrics, details)


def _measure(
    task: LanguageModelTask, scored: ScoredModel, examples: Sequence[Any]
) -> tuple[Scored, int]:
    """A model's results on the examples of a data set, and the number of truncated texts; of a
    model that diverged the metrics are not finite."""
    model = scored.model()
    own = task.for_model(scored.folder, model.config)
    assert isinstance(own, LanguageModelTask)
    loaded = task_model(model, load_model_tokenizer(scored.folder, scored.tokenizer), own)
    try:
        predictions, num_cut = loaded.predictions_and_cuts(examples)
    except NotFiniteError:
        predictions, num_cut = [None] * len(examples), 0
    metrics = own.metric_samples(predictions, examples)
    return Scored(metrics, own.details(predictions, examples)), num_cut
