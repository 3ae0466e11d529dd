"""The optimizer and its learning rate, as functions of the step alone."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from stillhouse.training.settings import OptimizerRecipe, ScheduleRecipe


def make_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; biases and norms (one axis) have no weight decay."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in learning if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=recipe.betas,
        eps=recipe.eps,
        fused=True,
    )


def learning_rate_factor(schedule: ScheduleRecipe, step: int, num_steps: int) -> float:
    """The factor of the learning rate at `step` (counted from 0) of `num_steps`.

    It rises linearly over the warm-up, and falls linearly, or along half a cosine, to zero at the
    end. The warm-up lasts ceil(warmup_fraction * num_steps) steps, as in 2019.
    """
    warmup = math.ceil(schedule.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.name == "constant":
        return 1.0
    done = (step - warmup) / max(1, num_steps - warmup)
    return 1 - done if schedule.name == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def learning_parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    """The parameters of the optimizer."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
