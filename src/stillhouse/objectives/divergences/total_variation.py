"""Total variation distance (Wen et al. 2023).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import (
    Divergence,
    LogitPair,
    log_probabilities,
    through_softmax,
)
from stillhouse.objectives.float64 import Row, log_softmax


def total_variation_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Half the sum of |p - q|: between 0 and 1 for each row. Source: Wen et al. 2023, section 3."""
    log_p, log_q = log_probabilities(student_logits, teacher_logits, temperature)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum()


def total_variation_gradient(
    pair: LogitPair,
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """With respect to q the gradient is half the sign of q - p; no factor temperature^2."""
    log_p, _, q = pair.softened()
    difference = q - log_p.exp()
    values = 0.5 * difference.abs().sum(-1)
    return values, through_softmax(q, 0.5 * difference.sign_()).div_(pair.temperature)


def total_variation_reference(student: Row, teacher: Row, *, temperature: float) -> float:
    """Half the sum of |p - q| of one row."""
    p, q = (np.exp(log_softmax(row, temperature)) for row in (teacher, student))
    return 0.5 * math.fsum(np.abs(p - q))


DIVERGENCE = Divergence(
    total_variation_loss, total_variation_reference, gradient=total_variation_gradient
)
