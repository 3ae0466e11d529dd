"""Generalized Jensen-Shannon divergence (Agarwal et al. 2024).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import (
    Divergence,
    LogitPair,
    LossRecipe,
    kl_sum,
    log_probabilities,
    through_softmax,
)
from stillhouse.objectives.float64 import Row, kl, log_softmax
from stillhouse.section import Fraction


class JsdRecipe(LossRecipe):
    """Generalized Jensen-Shannon divergence."""

    beta: Fraction = 0.5
    """The teacher's share of the mixture."""


def jsd_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
    beta: float = 0.5,
) -> Float[Tensor, ""]:
    """temperature^2 * (beta * KL(p || m) + (1 - beta) * KL(q || m)), in nats.

    The mixture is m = beta * p + (1 - beta) * q. Source: Agarwal et al. 2024 (GKD), section 2.
    """
    log_p, log_q = log_probabilities(student_logits, teacher_logits, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return temperature**2 * (beta * kl_sum(log_p, log_m) + (1 - beta) * kl_sum(log_q, log_m))


def jsd_gradient(
    pair: LogitPair, *, beta: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """With respect to q the gradient is (1 - beta) * (log q - log m)."""
    log_p, log_q, q = pair.softened()
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    teacher_part = (log_p.exp() * (log_p - log_m)).sum(-1)
    ratio = log_q - log_m
    values = beta * teacher_part + (1 - beta) * (q * ratio).sum(-1)
    return pair.scaled(values, through_softmax(q, ratio.mul_(1 - beta)))


def jsd_reference(student: Row, teacher: Row, *, temperature: float, beta: float) -> float:
    """temperature^2 * (beta * KL(p || m) + (1 - beta) * KL(q || m)) of one row, m the mixture."""
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    log_m = np.log(beta * np.exp(log_p) + (1 - beta) * np.exp(log_q))
    return temperature**2 * (beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m))


DIVERGENCE = Divergence(jsd_loss, jsd_reference, settings=JsdRecipe, gradient=jsd_gradient)
