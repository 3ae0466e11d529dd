"""Skew KL divergence (Ko et al. 2024).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

import math
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from stillhouse.objectives.divergence import (
    Divergence,
    LogitPair,
    LossRecipe,
    kl_sum,
    log_probabilities,
)
from stillhouse.objectives.float64 import Row, kl, log_softmax


class SkewRecipe(LossRecipe):
    """Skew KL divergence."""

    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The teacher's share of the mixture."""


def skew_kl_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
    alpha: float = 0.1,
) -> Float[Tensor, ""]:
    """temperature^2 * KL(p || alpha * p + (1 - alpha) * q), in nats.

    Source: Ko et al. 2024 (DistiLLM), section 3.1.
    """
    log_p, log_q = log_probabilities(student_logits, teacher_logits, temperature)
    log_m = _log_mixture(log_p, log_q, alpha)
    return temperature**2 * kl_sum(log_p, log_m)


def skew_kl_gradient(
    pair: LogitPair, *, alpha: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """q * g with g = -(1 - alpha) * p / m, kept together so that q / m cannot overflow."""
    log_p, log_q, q = pair.softened()
    log_m = _log_mixture(log_p, log_q, alpha)
    values = (log_p.exp() * (log_p - log_m)).sum(-1)
    q_times_g = (log_p + log_q - log_m).exp_().mul_(alpha - 1)
    return pair.scaled(values, q_times_g - q * q_times_g.sum(-1, keepdim=True))


def _log_mixture(log_p: Tensor, log_q: Tensor, alpha: float) -> Tensor:
    if alpha == 0:
        return log_q
    return torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))


def skew_kl_reference(student: Row, teacher: Row, *, temperature: float, alpha: float) -> float:
    """temperature^2 * KL(p || alpha * p + (1 - alpha) * q) of one row."""
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    log_m = np.log(alpha * np.exp(log_p) + (1 - alpha) * np.exp(log_q))
    return temperature**2 * kl(log_p, log_m)


DIVERGENCE = Divergence(
    skew_kl_loss, skew_kl_reference, settings=SkewRecipe, gradient=skew_kl_gradient
)
