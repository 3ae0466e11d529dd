"""The time of a run's tasks: every model's training, and its scores.

Lengths follow from a sample of the examples, which is encoded as all of them will be; its time is
taken too.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from stillhouse.estimate.language import Part, turns_seconds
from stillhouse.estimate.speeds import MeasuredSpeeds, TaskTraining, answering_flops
from stillhouse.finetuning.data import TaskExamples, TaskSource, group_size
from stillhouse.finetuning.models import threshold_split
from stillhouse.finetuning.objective import HARD_LABEL
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.inference.reference import BATCH
from stillhouse.models.special_ids import padding_id
from stillhouse.tasks.encoded import EncodedExample

SAMPLE = 64  # examples that are encoded, at least


@dataclass(frozen=True)
class TaskPlan:
    """One task of a recipe: its models as configurations, its examples, what encodes them."""

    name: str
    recipe: FinetuningRecipe
    models: Mapping[str, PretrainedConfig]
    teachers: Mapping[str, PretrainedConfig]  # that are no models of the task
    examples: TaskExamples
    tokenizer: PreTrainedTokenizerFast
    num_seeds: int = 1

    @cached_property
    def learned(self) -> "Sample":
        """Some of the training examples."""
        return self._sample(self.examples.training)

    @cached_property
    def scored(self) -> "Sample":
        """Some of the examples of the first split."""
        return self._sample(next(iter(self.examples.splits.values())))

    def _sample(self, every: Sequence[Any]) -> "Sample":
        wanted = max(SAMPLE, 2 * group_size(self.recipe.task))
        places = np.linspace(0, len(every) - 1, min(wanted, len(every)))
        chosen = [every[int(place)] for place in places]
        task = self.examples.task
        task.encode(chosen[:1], self.tokenizer)  # what is done once
        started = time.perf_counter()
        encoded = task.encode(chosen, self.tokenizer)
        return Sample(chosen, encoded, (time.perf_counter() - started) / len(chosen))

    def training(self, model: str) -> TaskTraining:
        """A model's training on sequences like those of the sample."""
        name, task = self.recipe.models[model].teacher, self.examples.task
        teacher = None if name is None else {**self.teachers, **self.models}[name]
        contrasts = teacher is None or HARD_LABEL in self.recipe.losses.active()
        source = self._source(
            self.models[model],
            self.learned,
            group=group_size(self.recipe.task),
            twice=task.output_kind == "embeddings" and contrasts,
        )
        return TaskTraining(self.models[model], teacher, task, self.recipe, source)

    def answering(self, config: PretrainedConfig) -> TaskTraining:
        """A model that answers examples like those of the first split."""
        source = self._source(config, self.scored)
        return TaskTraining(config, None, self.examples.task, self.recipe, source)

    def _source(self, config: PretrainedConfig, sample: "Sample", **settings: Any) -> TaskSource:
        return TaskSource(
            [each for own in sample.encoded for each in own],
            pad_token_id=padding_id(config),
            per_token=self.examples.task.per_token,
            **settings,
        )


@dataclass(frozen=True)
class Sample:
    """Examples, their sequences, and the seconds that encoding one takes."""

    examples: list[Any]
    encoded: list[list[EncodedExample]]
    encoding_seconds: float

    @property
    def sequences_per_example(self) -> float:
        return sum(map(len, self.encoded)) / len(self.encoded)


def task_parts(plan: TaskPlan, speeds: MeasuredSpeeds) -> list[Part]:
    """Each model's training, and the scores of all."""
    return [*(_training_part(plan, model, speeds) for model in plan.models), _scores(plan, speeds)]


def _training_part(plan: TaskPlan, model: str, speeds: MeasuredSpeeds) -> Part:
    recipe, sample = plan.recipe, plan.learned
    training, group = plan.training(model), group_size(recipe.task)
    read = len(plan.examples.training)
    teaches = any(each.teacher == model for each in recipe.models.values())
    if recipe.models[model].teacher is not None or not teaches:
        read += len(plan.examples.unlabeled)
    units = int(read * sample.sequences_per_example) // group
    per_step = max(1, recipe.training.examples_per_step // group)
    samples = recipe.training.epochs * units
    step = training.step(per_step)
    flops = training.cost(step).flops_per_token * step.positions
    step_seconds = speeds.task_training(training).step_seconds(flops, training.model)
    seconds = step_seconds * samples / per_step + read * sample.encoding_seconds
    seconds += _selection_seconds(plan, training.model, speeds)
    return Part(
        f"{plan.name}: {model}",
        plan.num_seeds * seconds,
        num_steps=math.ceil(samples / per_step),
        step_seconds=step_seconds,
        setting=f"finetuning.{plan.name}.training.examples_per_step",
    )


def _selection_seconds(plan: TaskPlan, model: PretrainedConfig, speeds: MeasuredSpeeds) -> float:
    """Of the states that are compared, and of choosing a threshold."""
    recipe, splits = plan.recipe, plan.examples.splits
    seconds = 0.0
    if recipe.training.select is not None:
        examples = splits[recipe.training.select]
        seconds += recipe.training.evaluations * _answering(plan, model, examples, speeds)
    if (split := threshold_split(recipe)) is not None:
        examples = splits[split]
        if any(question.is_impossible for question in examples):
            seconds += _answering(plan, model, examples, speeds)
    return seconds


def _scores(plan: TaskPlan, speeds: MeasuredSpeeds) -> Part:
    """Every model, and teachers from elsewhere, on every split; then their speed."""
    examples = [example for split in plan.examples.splits.values() for example in split]
    configs = [*plan.models.values(), *plan.teachers.values()]
    seconds, turns = 0.0, 0.0
    for config in configs:
        seconds += _answering(plan, config, examples, speeds)
    for config in {str(config): config for config in configs}.values():
        length = plan.answering(config).source.mean_length
        per_token = _sequence_seconds(plan, config, speeds) / length
        turns += BATCH * plan.recipe.task.max_length * per_token
    seconds += turns_seconds(turns)
    return Part(f"{plan.name}: scores", plan.num_seeds * seconds)


def _answering(
    plan: TaskPlan, config: PretrainedConfig, examples: Sequence[Any], speeds: MeasuredSpeeds
) -> float:
    """Seconds in which a model answers these examples."""
    sample = plan.scored
    each = sample.sequences_per_example * _sequence_seconds(plan, config, speeds)
    return len(examples) * (each + sample.encoding_seconds)


def _sequence_seconds(plan: TaskPlan, config: PretrainedConfig, speeds: MeasuredSpeeds) -> float:
    answering = plan.answering(config)
    rate = speeds.answering(answering, plan.scored.examples, plan.scored.encoded)
    return answering_flops(config, answering.source) / rate
