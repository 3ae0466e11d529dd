"""Measured speeds of this machine for what a run repeats, in FLOP/s.

The code of the stages themselves is timed, on random weights in the recipe's shapes and on random
tokens (for a task, on rows of its own file); the fastest of a few repeats counts. Long work is
timed with fewer layers, then with fewer and shorter sequences. A speed is the FLOPs of the timed
work, as counted by `training.cost`, over its seconds.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.distillation.cache import cache_format, teacher_rows
from stillhouse.evaluation.perplexity import TOKENS_PER_BATCH, sequence_losses
from stillhouse.families.base import with_num_layers
from stillhouse.families.registry import family_of
from stillhouse.finetuning.data import TaskSource, planned_task_step
from stillhouse.finetuning.objective import TaskObjective
from stillhouse.finetuning.settings import FinetuningRecipe
from stillhouse.inference.reference import greedy_tokens
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.models.task_models import random_task_model
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.recipe import Recipe
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tasks.task import Task, predict
from stillhouse.tokens.batches import IGNORED, AnyBatch, Batch
from stillhouse.tokens.settings import TokensRecipe
from stillhouse.training.cost import (
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

    def cost(self) -> StepCost:
        """The cost of each token."""
        return count_flops(self.step(), self.model, self.teacher)

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
        length = whole.tokens.sequence_length
        units = sequences_per_step(whole.training, length)
        micro_batch = -(-units // whole.step().micro_batches)
        share = _share(whole.cost().flops_per_token * micro_batch * length)
        part = _with_fewer_layers(whole, share)
        fitting = max(FEWEST_TOKENS, int(MOST_FLOPS / part.cost().flops_per_token))
        part = replace(part, tokens=_shorter(part.tokens, fitting))
        length = part.tokens.sequence_length
        micro_batch = max(1, min(micro_batch, fitting // length))
        part = replace(part, training=_step_of(whole.training, micro_batch * length))
        teacher = None if part.teacher is None else self._teacher(part.teacher, part.training)
        losses = _of_any_layer(part.losses) if teacher is not None else part.losses
        model = _random_model(part.model)
        objective = LanguageModelObjective(family_of(part.model), losses, teacher=teacher)
        batch = _random_batch(micro_batch, part.tokens, part.model)
        work = part.cost().flops_per_token * micro_batch * length
        return self._training_speed(model, objective, batch, part.training, work)

    @_once
    def task_training(self, whole: TaskTraining) -> TrainingSpeed:
        """Speed of a training of a task, the same for all tasks with one head."""
        source, training = whole.source, whole.recipe.training
        batch = _middle_micro_batch(whole)
        size = len(batch.input_ids) // source.unit_size
        rows = batch.num_tokens / source.mean_length  # units of average length
        step = replace(
            whole.step(size), positions=batch.num_tokens, read_rows=batch.num_tokens,
            pairs=rows * source.mean_pairs,
        )  # fmt: skip
        share = _share(whole.cost(step).flops_per_token * step.positions)
        part = _with_fewer_layers(whole, share)
        teacher = None
        if part.teacher is not None:
            teacher = self._task_model(part.task, part.teacher).requires_grad_(False)
            teacher.to(dtype=self._dtype(training))  # pyright: ignore[reportCallIssue, reportArgumentType]
        objective = TaskObjective(
            whole.task,
            _of_any_layer(whole.recipe.losses),
            teacher=teacher,
            temperature=whole.recipe.temperature,
        )
        model = self._task_model(part.task, part.model)
        work = part.cost(step).flops_per_token * step.positions
        return self._training_speed(model, objective, batch, training, work)

    def _training_speed(
        self, model: PreTrainedModel, objective: Any, batch: AnyBatch, recipe: TrainingRecipe,
        flops: float,
    ) -> TrainingSpeed:  # fmt: skip
        model.to(self._device).train(recipe.dropout)  # pyright: ignore[reportArgumentType]
        if recipe.activation_checkpointing:
            enable_activation_checkpointing(model)
        here, precision = batch.to(self._device), pick_precision(recipe.precision, self._device)
        coefficients: Mapping[str, float] = {
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
        distillation = recipe.distillation

        def step_of(tokens: TokensRecipe) -> StepShape:
            return planned_step(distillation.losses, tokens, distillation, self._device)

        part, tokens, sequences = _fitting(teacher, recipe.tokens, step_of)
        step, layout = step_of(tokens), cache_format(recipe, part, tokens.sequence_length)
        batch = _random_batch(sequences, tokens, part).to(self._device)
        uniform = torch.rand(batch.num_rows(layout.rows), device=self._device)
        loaded = self._teacher(part, distillation)
        precision = pick_precision(distillation.precision, self._device)
        seconds = self._fastest(lambda: teacher_rows(
                loaded, batch, layout, uniform,
                temperature=distillation.temperature, precision=precision,
            ))  # fmt: skip
        return forward_flops(step, part) * batch.input_ids.numel() / seconds

    @_once
    @torch.inference_mode()
    def scoring(self, model: PretrainedConfig, tokens: TokensRecipe) -> float:
        """Speed of a model whose loss is measured."""
        part, tokens, sequences = _fitting(model, tokens, scoring_step)
        step = scoring_step(tokens)
        loaded = _random_model(part).to(self._device)  # pyright: ignore[reportArgumentType]
        batch = _random_batch(sequences, tokens, part)
        seconds = self._fastest(lambda: sequence_losses(family_of(part), loaded, batch))
        return forward_flops(step, part) * batch.input_ids.numel() / seconds

    @_once
    def generation(self, model: PretrainedConfig) -> float:
        """Tokens/s of one sequence."""
        token = StepShape(1, PROMPT, 1, 1, 1, 1, "fp32")
        of_one = forward_flops(token, model)
        part = _fewer_layers(model, _share(of_one * (PROMPT + NEW_TOKENS), MOST_FORWARD))
        loaded = _random_model(part).to(self._device)  # pyright: ignore[reportArgumentType]
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
        of_one = answering_flops(training.model, training.source)
        number = max(1, min(len(examples), int(MOST_FORWARD / of_one)))
        step = max(1, len(examples) // number)
        asked, own = examples[::step][:number], encoded[::step][:number]
        source = TaskSource(
            [each for some in own for each in some],
            pad_token_id=training.source.pad_token_id,
            per_token=training.task.per_token,
        )
        part = _fewer_layers(training.model, _share(of_one * source.num_sequences, MOST_FORWARD))
        model = self._task_model(training.task, part)
        task = training.task.for_config(model.config)
        seconds = self._fastest(lambda: predict(task, model, asked, own))
        return answering_flops(part, source) * source.num_sequences / seconds

    def _dtype(self, training: TrainingRecipe) -> torch.dtype:
        precision = pick_precision(training.precision, self._device)
        return torch.bfloat16 if precision == "bf16" else torch.float32

    def _teacher(self, config: PretrainedConfig, training: PretrainingRecipe) -> Teacher:
        model = _random_model(config).requires_grad_(False)
        model.to(device=self._device, dtype=self._dtype(training))  # pyright: ignore[reportCallIssue, reportArgumentType]
        return Teacher(family_of(config), model)

    def _task_model(self, task: Task, config: PretrainedConfig) -> PreTrainedModel:
        return random_task_model(config, task.head, task.model_settings).to(self._device)  # pyright: ignore


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


def _fitting(
    config: PretrainedConfig, tokens: TokensRecipe, step_of: Callable[[TokensRecipe], StepShape]
) -> tuple[PretrainedConfig, TokensRecipe, int]:
    """Fewer layers, then shorter sequences, so that a forward pass is short, and the number of
    sequences."""
    whole = forward_flops(step_of(tokens), config) * tokens.sequence_length
    part = _fewer_layers(config, _share(whole, MOST_FORWARD))
    fitting = max(FEWEST_TOKENS, int(MOST_FORWARD / forward_flops(step_of(tokens), part)))
    tokens = _shorter(tokens, fitting)
    sequences = min(fitting, TOKENS_PER_BATCH) // tokens.sequence_length
    return part, tokens, max(1, sequences)


def _shorter(tokens: TokensRecipe, most: int) -> TokensRecipe:
    return tokens.model_copy(update={"sequence_length": min(tokens.sequence_length, most)})


def _share(flops: float, most: float = MOST_FLOPS) -> float:
    return min(1.0, most / flops)


def _with_fewer_layers(training: Training, share: float) -> Training:
    teacher = None if training.teacher is None else _fewer_layers(training.teacher, share)
    return replace(training, model=_fewer_layers(training.model, share), teacher=teacher)


def _fewer_layers(config: PretrainedConfig, share: float) -> PretrainedConfig:
    """About this share of the layers, but no fewer than two."""
    layers = config.num_hidden_layers
    wanted = max(min(FEWEST_LAYERS, layers), round(share * layers))
    return with_num_layers(config, wanted)


def _key(argument: Any) -> str:
    """What of an argument the speed depends on; equal for configurations of equal speed."""
    if isinstance(argument, LanguageTraining):
        settings = (argument.losses.model_dump_json(), argument.training.model_dump_json())
        return " ".join([_key(argument.model), _key(argument.teacher), *settings])
    if isinstance(argument, TaskTraining):
        return " ".join([argument.task.head, _key(argument.model), _key(argument.teacher)])
    return _shape(argument) if isinstance(argument, PretrainedConfig) else ""


def _shape(config: PretrainedConfig) -> str:
    numbers = {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, int | float | None) or key in ("model_type", "activation_function")
    }
    return json.dumps(numbers, sort_keys=True)


def _of_any_layer(losses: Any) -> Any:
    """The same terms, with the relation of the last layers, which are there in any depth."""
    if losses.relation is None:
        return losses
    update = {"teacher_layer": None, "student_layer": None}
    return losses.model_copy(update={"relation": losses.relation.model_copy(update=update)})


def _step_of(training: PretrainingRecipe, tokens: int) -> PretrainingRecipe:
    """A step of one micro-batch."""
    return training.model_copy(update={"tokens_per_step": tokens, "micro_batch_tokens": tokens})


def _random_model(config: PretrainedConfig) -> PreTrainedModel:
    return getattr(transformers, family_of(config).model_class)(config).eval()


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
