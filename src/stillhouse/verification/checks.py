"""A check (what was compared, how far the two sides differ, and the bound), and the checks of any
objective: a copy of the teacher, and one optimizer step in one micro-batch and in many."""

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.runs.manifest import Inputs
from stillhouse.tokens.batches import AnyBatch, AnySource, StepBatches
from stillhouse.training.checkpoint import Checkpoints
from stillhouse.training.cost import Rates, Roofline, StepCost
from stillhouse.training.job import Objective, TrainingJob
from stillhouse.training.metrics import MetricsFile
from stillhouse.training.parallel import ModelWithLoss
from stillhouse.training.progress import Progress, QuietReporter
from stillhouse.training.ranks import NEVER
from stillhouse.training.settings import TrainingRecipe
from stillhouse.training.step import TrainStep, make_optimizer

EXACT = 1e-4  # relative: float32 against float64, or sums in another order
ZERO = 1e-5  # a row: rounding alone
SMALL = 0.01
SEQUENCES = 5  # of the step: an odd number, so that the last micro-batch is a short one
UNMEASURED = Roofline(StepCost({}, {}, (1, 1, 1), "fp32"), Rates(1.0, 1.0))


@dataclass(frozen=True)
class Check:
    """A difference and its bound, both in `unit`. NaN never passes."""

    name: str
    compared: str
    difference: int | float
    bound: int | float
    unit: str

    @property
    def passed(self) -> bool:
        return math.isfinite(self.difference) and abs(self.difference) <= self.bound

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def relative(found: int | float, expected: int | float) -> float:
    """|found - expected| / max(|expected|, 0.01).

    Below 0.01 the rounding of float32 logits dominates.
    """
    return abs(found - expected) / max(abs(expected), SMALL)


def worst(found: Mapping[str, float], expected: Mapping[str, float]) -> tuple[str, float]:
    """The term with the largest relative difference, and the difference. NaN is the largest."""
    return _largest({name: relative(found[name], expected[name]) for name in expected})


def _largest(differences: Mapping[str, float]) -> tuple[str, float]:
    """The largest difference and its name. NaN is the largest."""
    return max(differences.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])


@torch.no_grad()
def means_of(
    objective: Objective, model: PreTrainedModel, batches: Iterable[AnyBatch]
) -> dict[str, float]:
    """Each term's mean over its rows in all batches together."""
    sums: dict[str, float] = {}
    counts = dict.fromkeys(objective.rows, 0)
    for batch in batches:
        for name, value in objective(model, batch.to(model.device), objective.weights)[1].items():
            sums[name] = sums.get(name, 0.0) + float(value.double())
        for name, rows in objective.rows.items():
            counts[name] += batch.num_rows(rows)
    return {name: value / max(1, counts[name]) for name, value in sums.items()}


def copy_check(
    objective: Objective,
    teacher: PreTrainedModel,
    batches: Sequence[AnyBatch],
    *,
    labels: str | None = None,
) -> Check:
    """For a copy of the teacher every term is 0, except the one that reads labels."""
    means = means_of(objective, deepcopy(teacher), batches)
    means.pop(labels or "", None)
    name = max(means, key=lambda key: abs(means[key]))
    compared = f"every term with 0 (farthest: {name})"
    return Check("student = teacher", compared, abs(means[name]), ZERO, "a row")


def split_check(
    recipe: TrainingRecipe,
    model: PreTrainedModel,
    objective: Objective,
    source: AnySource,
    folder: Path,
) -> Check:
    """The training engine's own step, whole and split into micro-batches of two sequences."""
    number = min(SEQUENCES, source.num_sequences)
    found = {}
    for name, at_once in (("whole", number), ("split", 2)):
        tokens = at_once * source.sequence_length
        settings = recipe.model_copy(update={"micro_batch_tokens": tokens, "precision": "fp32"})
        batches = StepBatches(source, seed=0, sequences_per_step=number, num_samples=number)
        found[name] = gradient_of(settings, model, objective, batches, folder)
    (whole_means, whole), (split_means, split) = found["whole"], found["split"]
    name, apart = worst(split_means, whole_means)
    of_gradient = float(np.linalg.norm(split - whole) / (np.linalg.norm(whole) or 1.0))
    farthest, apart = _largest({"gradient": of_gradient, f"loss {name}": apart})
    compared = f"{number} sequences at once ({farthest})"
    return Check("split of a step", compared, apart, EXACT, "rel.")


def gradient_of(
    recipe: TrainingRecipe,
    model: PreTrainedModel,
    objective: Objective,
    batches: StepBatches,
    folder: Path,
) -> tuple[dict[str, float], np.ndarray]:
    """Each term's mean in the first step, and the gradient of all that learns, side by side."""
    with TemporaryDirectory(dir=folder) as temporary:
        reporter: Any = QuietReporter()
        inputs = Inputs("verify", {}, {})
        job = TrainingJob(
            "verify",
            model,
            objective,
            batches,
            recipe,
            Checkpoints(Path(temporary), inputs, recipe.checkpoint, reporter.say),
            MetricsFile(Path(temporary) / "metrics.jsonl", Path(temporary)),
            model.device,
            UNMEASURED,
        )
        optimizer = make_optimizer(model, recipe.optimizer)
        steps = TrainStep(
            job, ModelWithLoss(model, objective), optimizer, Progress(), "fp32", reporter
        )
        accumulated = steps.accumulate(NEVER)
        assert not isinstance(accumulated, int)
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradient = torch.cat(gradients).double().cpu().numpy()
        optimizer.zero_grad(set_to_none=True)
    return accumulated[0], gradient
