"""A tiny student of a tiny teacher, on documents of uneven length, as a training job."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.tiny_models import make_config
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from stillhouse.families.registry import family_of
from stillhouse.objectives.language_model import LanguageModelObjective, Teacher
from stillhouse.objectives.settings import LossesRecipe
from stillhouse.runs.manifest import Inputs
from stillhouse.tokens.batches import SequenceSource
from stillhouse.tokens.packing import CausalSequences
from stillhouse.tokens.shards import TokenSplit
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import Rates, Roofline, StepCost
from stillhouse.training.job import Objective, TrainingJob, plan_batches
from stillhouse.training.metrics import MetricsFile
from stillhouse.training.settings import PretrainingRecipe

VOCABULARY, LENGTH = 40, 16
ROOFLINE = Roofline(
    StepCost({"student_body": 1e6}, {"optimizer": 1e3}, (1, 1, 1), "fp32"), Rates(1e9, 1e9)
)
LOSSES = {
    "soft_target": {"weight": 5.0},
    "language_modeling": {"weight": 2.0},
    "hidden_cosine": {"weight": 1.0},
}


class Silent:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def start(self, name: str, done: int, total: int) -> None: ...

    def step(self, step: int, values: dict[str, Any]) -> None: ...

    def finish(self) -> None: ...


def make_model(num_layers: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = make_config("gpt2", num_layers, vocabulary=VOCABULARY, positions=LENGTH)
    assert isinstance(config, GPT2Config)
    return GPT2LMHeadModel(config)


def make_source(lengths: Sequence[int] = (50, 7, 90, 33, 120)) -> CausalSequences:
    """Documents of uneven length, so that micro-batches differ in their number of rows."""
    draw = np.random.default_rng(0)
    ids = np.concatenate([[0, *draw.integers(1, VOCABULARY, size - 1)] for size in lengths])
    starts = np.cumsum([0, *lengths]).astype(np.uint64)
    counts = np.bincount(ids, minlength=VOCABULARY).astype(np.uint64)
    split = TokenSplit(VOCABULARY, (ids,), starts, counts, (Path("none"),))
    return CausalSequences(split, LENGTH, 0, attend_across_documents=False)


def make_job(
    folder: Path,
    *,
    model: PreTrainedModel | None = None,
    teacher: PreTrainedModel | None = None,
    losses: dict[str, Any] | None = None,
    source: SequenceSource | None = None,
    **settings: Any,
) -> TrainingJob:
    """A student of a three-layer teacher by default, six sequences a step."""
    model = model or make_model(1, seed=1)
    family = family_of(model.config)
    teaching = (teacher or make_model(3, seed=0)).eval().requires_grad_(False)
    defaults = {"tokens_per_step": 6 * LENGTH, "max_tokens": 24 * LENGTH, "precision": "fp32"}
    recipe = PretrainingRecipe.model_validate({**defaults, **settings})
    source = source or make_source()
    return TrainingJob(
        "student",
        model,
        LanguageModelObjective(
            family,
            LossesRecipe.model_validate(losses or LOSSES),
            teacher=Teacher(family, teaching),
            temperature=2.0,
        ),
        plan_batches(source, recipe, seed=3),
        recipe,
        Checkpoints(
            folder / "checkpoints", Inputs("test", {}, {}), recipe.checkpoint, Silent().say
        ),
        MetricsFile(folder / "metrics.jsonl", folder),
        torch.device("cpu"),
        ROOFLINE,
    )


class Poison:
    """Makes one gradient infinite, or huge, at the given steps, counted from 1, as an overflow
    would."""

    def __init__(self, model: nn.Module, steps: set[int], *, factor: float = math.inf) -> None:
        self.steps = steps
        self.factor = factor
        self.step = 0
        model.get_parameter("transformer.ln_f.weight").register_hook(self._poison)

    def _poison(self, gradient: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return gradient * self.factor if self.step in self.steps else gradient


class Failing:
    """An objective that fails at its n-th call."""

    def __init__(self, objective: Objective, call: int, error: Exception) -> None:
        self.objective, self.calls_left, self.error = objective, call, error
        self.weights, self.rows = objective.weights, objective.rows

    def __call__(self, *arguments: Any) -> Any:
        self.calls_left -= 1
        if not self.calls_left:
            raise self.error
        return self.objective(*arguments)
