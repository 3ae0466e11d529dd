"""Reverse KL divergence (Gu et al. 2024).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import (
    Divergence,
    LogitPair,
    kl_sum,
    log_probabilities,
    through_softmax,
)
from stillhouse.objectives.float64 import Row, kl, log_softmax


def reverse_kl_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """temperature^2 * sum of q * (log q - log p), in nats: KL(student || teacher).

    Source: Gu et al. 2024 (MiniLLM), section 2.1.
    """
    log_p, log_q = log_probabilities(student_logits, teacher_logits, temperature)
    return temperature**2 * kl_sum(log_q, log_p)


def reverse_kl_gradient(pair: LogitPair) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """With respect to q the gradient is log q - log p, up to a constant."""
    log_p, log_q, q = pair.softened()
    ratio = log_q - log_p
    return pair.scaled((q * ratio).sum(-1), through_softmax(q, ratio))


def reverse_kl_reference(student: Row, teacher: Row, *, temperature: float) -> float:
    """temperature^2 * KL(q || p) of one row. Source: Gu et al. 2024, section 2.1."""
    return temperature**2 * kl(log_softmax(student, temperature), log_softmax(teacher, temperature))


DIVERGENCE = Divergence(reverse_kl_loss, reverse_kl_reference, gradient=reverse_kl_gradient)
