"""Stillhouse's step on the benchmark's pairs.

Axes: B sequences, T positions.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
import transformers
from torch import Tensor
from transformers import BertConfig, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

from benchmarks import measure, reference_2019
from benchmarks.cached import CachedTeacher
from benchmarks.equality import Outcome, outcome_of
from stillhouse.allocator import keep_freed_memory
from stillhouse.families.base import Family
from stillhouse.families.registry import family_of
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.section import Rows
from stillhouse.student.initialize import student_from_teacher
from stillhouse.student.plan import plan_student
from stillhouse.student.settings import LayerChoice, StudentRecipe
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.training.cost import StepShape, head_rows, read_rows
from stillhouse.training.device import Precision, autocast, has_bf16
from stillhouse.training.settings import OptimizerRecipe
from stillhouse.training.step import learning_parameters, make_optimizer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Pair:
    """A teacher, a student with some of its layers, and the shape of the batch for both.

    The student has half of the layers by default. Ragged sequences end up to three tokens before
    their length; others are full, as if packed.
    """

    teacher: Callable[[], PretrainedConfig]
    sequences: int
    length: int
    mask_id: int = 103
    ragged: bool = True
    num_layers: int | None = None

    @property
    def name(self) -> str:
        return self.teacher().model_type


SMOLLM2 = functools.partial(
    LlamaConfig,
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    rope_parameters={"rope_type": "default", "rope_theta": 100_000},
    max_position_embeddings=8_192,
)
PAIRS = {
    "bert": Pair(BertConfig, 8, 128),
    "gpt2": Pair(GPT2Config, 4, 256),
    "llama": Pair(SMOLLM2, 4, 256, num_layers=24),
}


@dataclass(frozen=True)
class Losses:
    """The objective of a step: weighted terms, and the temperature of those that have one."""

    recipe: LossesRecipe
    temperature: float


@dataclass(frozen=True)
class Variant:
    """A variant of our step; dropout from the configurations, or off as in `preset: fast`."""

    precision: Precision
    compiled: bool = False
    cached: bool = False
    dropout: bool = True


def variants() -> dict[str, Variant]:
    """The variants that this CPU supports."""
    found = {"fp32": Variant("fp32")}
    if has_bf16(CPU):
        found |= {
            "bf16": Variant("bf16"),
            "bf16-compiled": Variant("bf16", compiled=True),
            "bf16-cached": Variant("bf16", cached=True),
            "bf16-no-dropout": Variant("bf16", dropout=False),
            "bf16-cached-no-dropout": Variant("bf16", cached=True, dropout=False),
        }
    return found


@dataclass(frozen=True)
class Models:
    """Teacher and student; equal seeds give equal weights."""

    teacher: PreTrainedModel
    student: PreTrainedModel
    layer_map: list[int]

    @property
    def teacher_family(self) -> Family:
        return family_of(self.teacher.config)

    @property
    def live_teacher(self) -> Teacher:
        return Teacher(self.teacher_family, self.teacher)

    @property
    def student_family(self) -> Family:
        return family_of(self.student.config)


def build_models(pair: Pair, seed: int) -> Models:
    """Random weights, also of biases and norms, with the student's perturbed away from its
    teacher's.

    So an error in any of them shows, and no term is so close to zero that rounding dominates.
    """
    config = pair.teacher()
    torch.manual_seed(seed)
    teacher = getattr(transformers, family_of(config).model_class)(config).eval()
    _add_noise(teacher)
    number = pair.num_layers or config.num_hidden_layers // 2
    layers = LayerChoice(layers=number, by="even")
    plan = plan_student(config, StudentRecipe(layer_map=layers))
    student = student_from_teacher(teacher, plan)
    _add_noise(student)
    return Models(teacher.requires_grad_(False), student, plan.layer_map)


def _add_noise(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=model.config.initializer_range)


def build_batch(pair: Pair, seed: int) -> Batch:
    """Random tokens. In a masked batch 15 % are predicted."""
    config = pair.teacher()
    causal = family_of(config).language_modeling == "causal"
    generator = torch.Generator().manual_seed(seed)
    shape = (pair.sequences, pair.length)
    tokens = torch.randint(config.vocab_size, shape, generator=generator)
    missing = torch.randint(4, (pair.sequences, 1), generator=generator)
    lengths = pair.length - (missing if pair.ragged else torch.zeros_like(missing))
    lengths[0] = pair.length
    positions = torch.arange(pair.length).expand(shape)
    real = positions < lengths
    if causal:
        labels = tokens.roll(-1, dims=1).where(positions + 1 < lengths, IGNORED)
    else:
        predicted = (torch.rand(shape, generator=generator) < 0.15) & real
        labels = tokens.where(predicted, IGNORED)
        tokens = tokens.where(~predicted, pair.mask_id)
    uniform = not pair.ragged
    return Batch(tokens.where(real, 0), labels, real.long(), positions, causal, uniform)


def classic_losses(rows: Rows) -> Losses:
    """The terms, weights and temperature of 2019, over the given rows."""
    weights = reference_2019.WEIGHTS
    recipe = LossesRecipe.model_validate(
        {
            "soft_target": {"weight": weights["soft_target"], "rows": rows},
            "language_modeling": {"weight": weights["language_modeling"]},
            "hidden_cosine": {"weight": weights["hidden_cosine"], "rows": rows},
        }
    )
    return Losses(recipe, reference_2019.TEMPERATURE)


def our_losses(models: Models, batch: Batch, losses: Losses) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of one batch, and each term's mean over its rows; with the live teacher
    unless the batch contains cached rows."""
    objective = LanguageModelObjective(
        models.student_family,
        losses.recipe,
        teacher=models.live_teacher if batch.teacher is None else "cached",
        temperature=losses.temperature,
    )
    counts = {name: batch.num_rows(kind) for name, kind in objective.rows.items()}
    coefficients = {name: weight / counts[name] for name, weight in objective.weights.items()}
    loss, sums = objective(models.student, batch, coefficients)
    return loss, {name: total / counts[name] for name, total in sums.items()}


def our_outcome(models: Models, batch: Batch, losses: Losses) -> Outcome:
    """The outcome of our step, in float32 and without dropout."""
    models.student.eval()
    return outcome_of(models.student, *our_losses(models, batch, losses))


def our_step(models: Models, batch: Batch, losses: Losses, variant: Variant) -> measure.Step:
    """Models as `distill` prepares them, and one optimizer step as its engine takes it, including
    reading the logged values."""
    device = batch.input_ids.device
    models.student.train(variant.dropout)
    if variant.precision == "bf16":
        models.teacher.to(torch.bfloat16)  # pyright: ignore[reportArgumentType, reportCallIssue]
    if variant.compiled:
        models.student.base_model.compile()
        models.teacher.base_model.compile()
    read = functools.partial(dataclasses.replace, batch)
    if variant.cached:
        read = _cached(models, batch, losses).batch
    keep_freed_memory()
    recipe = OptimizerRecipe(max_grad_norm=reference_2019.MAX_GRAD_NORM)
    optimizer = make_optimizer(models.student, recipe)

    def step() -> None:
        with autocast(device, variant.precision):
            loss, terms = our_losses(models, read(), losses)
        loss.backward()
        parameters = list(learning_parameters(optimizer))
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.max_grad_norm)
        torch.stack([norm, *terms.values()]).tolist()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _cached(models: Models, batch: Batch, losses: Losses) -> CachedTeacher:
    terms = losses.recipe.active()
    return CachedTeacher(
        models.live_teacher,
        batch,
        terms["soft_target"].rows,
        temperature=losses.temperature,
        hidden="hidden_cosine" in terms,
    )


def step_shape(batch: Batch, losses: Losses, precision: Precision) -> StepShape:
    """The cost of a step on this batch: its real positions, what they see, the rows that count."""
    real = batch.rows("all")
    sees = dataclasses.replace(batch, uniform=False).attention_mask()
    assert sees is not None
    counts: dict[Rows, int | float] = {rows: batch.num_rows(rows) for rows in get_args(Rows)}
    student_rows, teacher_rows = head_rows(losses.recipe, counts)
    return StepShape(
        batch.num_rows("all"),
        int((sees & real[:, None, :, None]).sum()),
        read_rows(losses.recipe, counts),
        student_rows,
        teacher_rows,
        micro_batches=1,
        precision=precision,
    )
