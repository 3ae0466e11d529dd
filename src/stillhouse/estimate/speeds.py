"""Measured speeds of this machine for what a run repeats, in FLOP/s.

The code of the stages themselves is timed, on random weights in the recipe's shapes and on random
tokens (for a task, on rows of its own file); the fastest of a few repeats counts. Long work is
timed with fewer layers, then with fewer and shorter sequences. A speed is the FLOPs of the timed
work, as counted by `training.cost`, over its seconds.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.distillation.cache import cache_format, teacher_rows
from stillhouse.evaluation.perplexity import TOKENS_PER_BATCH, sequence_losses
from stillhouse.families.base import evenly_spread, with_layers
from stillhouse.families.registry import family_of
from stillhouse.finetuning.data import TaskSource, planned_task_step
from stillhouse.finetuning.objective import TaskObjective
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.inference.reference import greedy_tokens
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.models.task_models import random_task_model
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher, needs_hidden
from stillhouse.objectives.projection import add_projection
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.recipe import Recipe
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tasks.task import Task, predict
from stillhouse.tokens.batches import IGNORED, AnyBatch, Batch
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.cost import (
    DTYPES,
    StepCost,
    StepShape,
    count_flops,
    fastest_seconds,
    forward_flops,
    planned_step,
    sequences_per_step,
)
from stillhouse.training.device import autocast, pick_device, pick_precision
from stillhouse.training.engine import enable_activation_checkpointing
from stillhouse.training.settings import PretrainingRecipe, TrainingRecipe
from stillhouse.training.step import learning_parameters, make_optimizer

MOST_FLOPS = 4e10  # of a timed call that trains: a fifth of a second on two cores
MOST_FORWARD = MOST_FLOPS / 4  # which is in float32
FEWEST_LAYERS, FEWEST_TOKENS = 2, 256
PROMPT, NEW_TOKENS = 16, 8
REPEATS = 2  # at least: beside other work on the same cores many are slow

Training = TypeVar("Training", "LanguageTraining", "TaskTraining")


@dataclass(frozen=True)
class LanguageTraining:
    """One training on text, with a live teacher or without."""

    model: PretrainedConfig
    teacher: PretrainedConfig | None
    losses: LossesRecipe
    training: PretrainingRecipe
    tokens: TokensRecipe
    projection: int = 0  # weights of the projection of hidden states

    def cost(self) -> StepCost:
        """The cost of each token."""
        return count_flops(self.step(), self.model, self.teacher, projection=self.projection)

    def step(self) -> StepShape:
        return planned_step(self.losses, self.tokens, self.training, pick_device())


@dataclass(frozen=True)
class TaskTraining:
    """One training of a task: the model, its teacher, and a sample of its sequences."""

    model: PretrainedConfig
    teacher: PretrainedConfig | None
    task: Task
    recipe: FinetuningRecipe
    source: TaskSource

    def step(self, units: int) -> StepShape:
        """A step of this many units."""
        taught = self.teacher is not None
        return planned_task_step(self.source, units, self.recipe.training, pick_device(), taught)

    def cost(self, step: StepShape) -> StepCost:
        return count_flops(step, self.model, self.teacher)


@dataclass(frozen=True)
class TrainingSpeed:
    """Speed of forward and backward passes in FLOP/s, and of the optimizer in parameters/s."""

    flops_per_second: float
    parameters_per_second: float

    def step_seconds(self, flops: float, model: PretrainedConfig) -> float:
        """Seconds of a step of this many FLOPs."""
        parameters = count_parameters(empty_model(model))[0]
        passes = flops / self.flops_per_second
        return passes + parameters / self.parameters_per_second


def _once(measure: Callable[..., Any]) -> Callable[..., Any]:
    """A method that measures once for all arguments of equal `_key`, from a fixed random seed."""

    @functools.wraps(measure)
    def measured(self: "MeasuredSpeeds", *arguments: Any) -> Any:
        key = (measure.__name__, *map(_key, arguments))
        if key not in self._known:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self._known[key] = measure(self, *arguments)
        return self._known[key]

    return measured


class MeasuredSpeeds:
    """Speeds on this machine's device, each measured once for all models of a shape.

    Speeds of models are in FLOP/s, but that of `generation` is in tokens/s of one sequence.
    """

    def __init__(self) -> None:
        self._device = pick_device()
        self._known: dict[tuple[str, ...], Any] = {}

    @_once
    def training(self, whole: LanguageTraining) -> TrainingSpeed:
        """Speed of a training on text."""
        length, recipe = whole.tokens.sequence_length, whole.training
        micro_batch = -(-sequences_per_step(recipe, length) // whole.step().micro_batches)
        part = _with_fewer_layers(whole, whole.cost().flops_per_token * micro_batch * length)
        fitting = max(FEWEST_TOKENS, int(MOST_FLOPS / part.cost().flops_per_token))
        tokens = _shorter(whole.tokens, fitting)
        micro_batch = max(1, min(micro_batch, fitting // tokens.sequence_length))
        size = micro_batch * tokens.sequence_length
        step = {"tokens_per_step": size, "micro_batch_tokens": size}
        part = replace(part, tokens=tokens, training=recipe.model_copy(update=step))
        teacher = None
        if part.teacher is not None:
            loaded = self._frozen(self._random_model(part.teacher), recipe)
            teacher = Teacher(family_of(part.teacher), loaded)
        losses = _of_any_layer(part.losses)
        objective = LanguageModelObjective(family_of(part.model), losses, teacher=teacher)
        model = self._random_model(part.model)
        if part.teacher is not None and needs_hidden(losses):
            add_projection(model, part.teacher)
        batch = _random_batch(micro_batch, tokens, part.model)
        return self._training_speed(
            model, objective, batch, recipe, part.cost().flops_per_token * size
        )

    @_once
    def task_training(self, whole: TaskTraining) -> TrainingSpeed:
        """Speed of a training of a task, the same for all tasks with one head."""
        source, recipe = whole.source, whole.recipe
        batch = _middle_micro_batch(whole)
        units = batch.num_tokens / source.mean_length  # of average length
        step = replace(
            whole.step(len(batch.input_ids) // source.unit_size),
            positions=batch.num_tokens,
            read_rows=batch.num_tokens,
            pairs=units * source.mean_pairs,
        )
        part = _with_fewer_layers(whole, whole.cost(step).flops_per_token * step.positions)
        teacher = None
        if part.teacher is not None:
            teacher = self._frozen(self._task_model(part.task, part.teacher), recipe.training)
        objective = TaskObjective(
            whole.task,
            _of_any_layer(recipe.losses),
            teacher=teacher,
            temperature=recipe.temperature,
        )
        model = self._task_model(part.task, part.model)
        work = part.cost(step).flops_per_token * step.positions
        return self._training_speed(model, objective, batch, recipe.training, work)

    def _training_speed(
        self, model: PreTrainedModel, objective: Any, batch: AnyBatch, recipe: TrainingRecipe,
        flops: float,
    ) -> TrainingSpeed:  # fmt: skip
        model.train(recipe.dropout)
        if recipe.activation_checkpointing:
            enable_activation_checkpointing(model)
        here, precision = batch.to(self._device), pick_precision(recipe.precision, self._device)
        coefficients = {
            name: weight / max(1, batch.num_rows(objective.rows[name]))
            for name, weight in objective.weights.items()
        }
        optimizer = make_optimizer(model, recipe.optimizer)

        def run_passes() -> None:
            with autocast(self._device, precision):
                loss, _ = objective(model, here, coefficients)
            loss.backward()

        def update() -> None:
            nn.utils.clip_grad_norm_([*learning_parameters(optimizer)], 1e-9)  # weights stay finite
            optimizer.step()

        passes = self._fastest(run_passes)
        return TrainingSpeed(flops / passes, model.num_parameters() / self._fastest(update))

    def _fastest(self, run: Callable[[], object]) -> float:
        return fastest_seconds(run, self._device, at_least=REPEATS)

    @_once
    @torch.inference_mode()
    def caching(self, recipe: Recipe, teacher: PretrainedConfig) -> float:
        """Speed of the teacher that writes a cache."""
        training = recipe.distillation
        precision = pick_precision(training.precision, self._device)

        def step_of(tokens: TokensRecipe) -> StepShape:
            return planned_step(training.losses, tokens, training, self._device)

        def write(part: PretrainedConfig, batch: Batch) -> Callable[[], object]:
            layout = cache_format(recipe, part, batch.input_ids.shape[1])
            uniform = torch.rand(batch.num_rows(layout.rows), device=self._device)
            model = Teacher(family_of(part), self._frozen(self._random_model(part), training))
            here = batch.to(self._device)
            return lambda: teacher_rows(
                model,
                here,
                layout,
                uniform,
                temperature=training.temperature,
                precision=precision,
            )

        return self._forward_speed(teacher, recipe.tokens, step_of, write)

    @_once
    @torch.inference_mode()
    def scoring(self, model: PretrainedConfig, tokens: TokensRecipe) -> float:
        """Speed of a model whose loss is measured."""

        def score(part: PretrainedConfig, batch: Batch) -> Callable[[], object]:
            loaded = self._random_model(part)
            return lambda: sequence_losses(family_of(part), loaded, batch)

        return self._forward_speed(model, tokens, scoring_step, score)

    def _forward_speed(
        self,
        config: PretrainedConfig,
        tokens: TokensRecipe,
        step_of: Callable[[TokensRecipe], StepShape],
        prepare: Callable[[PretrainedConfig, Batch], Callable[[], object]],
    ) -> float:
        """Speed of the call that `prepare` returns for fewer layers, then for shorter sequences."""
        flops = forward_flops(step_of(tokens), config) * tokens.sequence_length
        part = _fewer_layers(config, flops, MOST_FORWARD)
        fitting = max(FEWEST_TOKENS, int(MOST_FORWARD / forward_flops(step_of(tokens), part)))
        tokens = _shorter(tokens, fitting)
        sequences = max(1, min(fitting, TOKENS_PER_BATCH) // tokens.sequence_length)
        batch = _random_batch(sequences, tokens, part)
        seconds = self._fastest(prepare(part, batch))
        return forward_flops(step_of(tokens), part) * batch.input_ids.numel() / seconds

    @_once
    def generation(self, model: PretrainedConfig) -> float:
        """Tokens/s of one sequence."""
        token = StepShape(1, PROMPT, 1, 1, 1, 1, "fp32")
        of_one = forward_flops(token, model)
        part = _fewer_layers(model, of_one * (PROMPT + NEW_TOKENS), MOST_FORWARD)
        loaded = self._random_model(part)
        prompt = [number % model.vocab_size for number in range(PROMPT)]
        seconds = self._fastest(lambda: greedy_tokens(loaded, prompt, NEW_TOKENS))
        return NEW_TOKENS / seconds * forward_flops(token, part) / of_one

    @_once
    def answering(
        self,
        training: TaskTraining,
        examples: Sequence[Any],
        encoded: Sequence[Sequence[EncodedExample]],
    ) -> float:
        """Speed of the predictions of a task's model, on some of these examples."""
        of_one = answering_flops(training.model, training.source)
        number = max(1, min(len(examples), int(MOST_FORWARD / of_one)))
        step = max(1, len(examples) // number)
        asked, own = examples[::step][:number], encoded[::step][:number]
        source = TaskSource(
            [each for some in own for each in some],
            pad_token_id=training.source.pad_token_id,
            per_token=training.task.per_token,
        )
        part = _fewer_layers(training.model, of_one * source.num_sequences, MOST_FORWARD)
        model = self._task_model(training.task, part)
        task = training.task.for_config(model.config)
        seconds = self._fastest(lambda: predict(task, model, asked, own))
        return answering_flops(part, source) * source.num_sequences / seconds

    def _random_model(self, config: PretrainedConfig) -> PreTrainedModel:
        model = getattr(transformers, family_of(config).model_class)(config)
        return model.eval().to(self._device)

    def _task_model(self, task: Task, config: PretrainedConfig) -> PreTrainedModel:
        return random_task_model(config, task.head, task.model_settings).to(self._device)  # pyright: ignore

    def _frozen(self, model: PreTrainedModel, training: TrainingRecipe) -> PreTrainedModel:
        """A teacher, in the precision of the training."""
        dtype = DTYPES[pick_precision(training.precision, self._device)]
        return model.requires_grad_(False).to(dtype=dtype)  # pyright: ignore


def _middle_micro_batch(training: TaskTraining) -> Any:
    """The middle micro-batch of a step, ordered by length as in `StepBatches`."""
    source, group = training.source, training.source.group
    units = min(source.num_sequences, max(1, training.recipe.training.examples_per_step // group))
    chosen = np.linspace(0, source.num_sequences - 1, units).astype(np.int64)
    if (lengths := source.lengths) is not None:
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
    size = -(-units // training.step(units).micro_batches)
    first = (units - size) // 2
    chosen = chosen[first : first + size]
    return next(source.batch(chosen, np.zeros_like(chosen), 0).split(size))


def scoring_step(tokens: TokensRecipe) -> StepShape:
    """One sequence whose loss is measured."""
    length, causal = tokens.sequence_length, tokens.language_modeling == "causal"
    predicted = length if causal else tokens.masking.fraction * length
    pairs = length * ((length + 1) / 2 if causal else length)
    return StepShape(length, pairs, predicted, predicted, predicted, 1, "fp32")


def answering_flops(model: PretrainedConfig, source: TaskSource) -> float:
    """FLOPs of one sequence of average length."""
    length = source.mean_length / source.unit_size
    pairs = source.mean_pairs / source.unit_size
    step = StepShape(max(1, round(length)), pairs, length, 0, 0, 1, "fp32")
    return forward_flops(step, model) * step.positions


def _shorter(tokens: TokensRecipe, most: int) -> TokensRecipe:
    return tokens.model_copy(update={"sequence_length": min(tokens.sequence_length, most)})


def _with_fewer_layers(training: Training, flops: float) -> Training:
    teacher = training.teacher and _fewer_layers(training.teacher, flops)
    return replace(training, model=_fewer_layers(training.model, flops), teacher=teacher)


def _fewer_layers(
    config: PretrainedConfig, flops: float, most: float = MOST_FLOPS
) -> PretrainedConfig:
    """The share of the layers that takes about `most` of these FLOPs, but no fewer than two."""
    layers = config.num_hidden_layers
    wanted = round(min(1.0, most / flops) * layers)
    return with_layers(config, evenly_spread(max(min(FEWEST_LAYERS, layers), wanted), layers))


def _key(argument: Any) -> str:
    """What of an argument the speed depends on; equal for configurations of equal speed."""
    if isinstance(argument, LanguageTraining):
        settings = (argument.losses.model_dump_json(), argument.training.model_dump_json())
        return " ".join([_key(argument.model), _key(argument.teacher), *settings])
    if isinstance(argument, TaskTraining):
        return " ".join([argument.task.head, _key(argument.model), _key(argument.teacher)])
    if not isinstance(argument, PretrainedConfig):
        return ""
    shape = {
        key: value
        for key, value in argument.to_dict().items()
        if isinstance(value, int | float | None) or key in ("model_type", "activation_function")
    }
    return json.dumps(shape, sort_keys=True)


def _of_any_layer(losses: Any) -> Any:
    """The same terms, with the relation of the last layers, which are there in any depth."""
    if losses.relation is None:
        return losses
    update = {"teacher_layer": None, "student_layer": None}
    return losses.model_copy(update={"relation": losses.relation.model_copy(update=update)})


def _random_batch(sequences: int, tokens: TokensRecipe, config: PretrainedConfig) -> Batch:
    """Whole sequences of one document each."""
    shape = (sequences, tokens.sequence_length)
    causal = tokens.language_modeling == "causal"
    ids = torch.randint(config.vocab_size, shape)
    predicted = torch.full(shape, causal) | (torch.rand(shape) < tokens.masking.fraction)
    return Batch(
        ids,
        torch.where(predicted, ids, IGNORED),
        torch.ones(shape, dtype=torch.int64),
        torch.arange(shape[1]).expand(shape),
        causal=causal,
        uniform=True,
    )
