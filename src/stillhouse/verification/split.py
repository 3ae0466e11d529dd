"""One optimizer step in one micro-batch and in many: the same losses, the same gradient."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.runs.manifest import Inputs
from stillhouse.tokens.batches import AnySource, StepBatches
from stillhouse.training.checkpoint import Progress
from stillhouse.training.cost import StepCost
from stillhouse.training.job import Objective, TrainingJob, checkpoints_for
from stillhouse.training.optimizer import make_optimizer
from stillhouse.training.parallel import ModelWithLoss
from stillhouse.training.progress import QuietReporter
from stillhouse.training.roofline import Rates, Roofline
from stillhouse.training.settings import TrainingRecipe
from stillhouse.training.signals import NEVER
from stillhouse.training.step import TrainStep
from stillhouse.verification.checks import EXACT, Check, worst

SEQUENCES = 5  # of the step: an odd number, so that the last micro-batch is a short one
UNMEASURED = Roofline(StepCost({}, {}, (1, 1, 1), "fp32"), Rates(1.0, 1.0))


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
    farthest, apart = max(
        ("gradient", of_gradient),
        (f"loss {name}", apart),
        key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1],
    )
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
            checkpoints_for(Path(temporary), inputs, recipe, reporter),
            Path(temporary) / "metrics.jsonl",
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
