"""Total variation distance (Wen et al. 2023).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import (
    Divergence,
    LogitPair,
    log_probabilities,
    through_softmax,
)


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


DIVERGENCE = Divergence(total_variation_loss, gradient=total_variation_gradient)
