"""Alpha-beta divergence (Wang et al. 2025).

It lies between forward KL (alpha 1, beta 0) and reverse KL (alpha 0, beta 1), and beyond: a larger
alpha weighs the tokens that the teacher prefers, a larger beta those that the student prefers.

Axes: N rows that count, n rows of a block, V vocabulary.
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from stillhouse.objectives.divergence import Divergence, LogitPair, LossRecipe, log_probabilities
from stillhouse.objectives.float64 import Row, log_softmax

Exponent = Annotated[float, Field(ge=0)]


class AlphaBetaRecipe(LossRecipe):
    """Alpha-beta divergence."""

    alpha: Exponent = 0.5
    """Exponent of the teacher's probabilities."""
    beta: Exponent = 0.5
    """Exponent of the student's probabilities."""

    @model_validator(mode="after")
    def _exponents_are_not_both_zero(self) -> Any:
        if self.alpha + self.beta == 0:
            raise ValueError("alpha and beta are both 0; at least one must be above 0")
        return self


def alpha_beta_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
    alpha: float = 0.5,
    beta: float = 0.5,
) -> Float[Tensor, ""]:
    """temperature^2 times the sum over rows and V of

        (a / (a + b) * p^(a + b) + b / (a + b) * q^(a + b) - p^a * q^b) / (a * b)

    with a = alpha and b = beta. The limits are (p^a * log(p^a / q^a) - p^a + q^a) / a^2 for b = 0,
    forward KL at a = 1, and the same with the roles exchanged for a = 0.

    Source: Wang et al. 2025 (ABKD); Cichocki, Cruces and Amari 2011.
    """
    log_p, log_q = log_probabilities(student_logits, teacher_logits, temperature)
    return temperature**2 * _elements(log_p, log_q, alpha, beta).sum()


def alpha_beta_gradient(
    pair: LogitPair, *, alpha: float, beta: float
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """q * g with g = q^(b - 1) * (q^a - p^a) / a, or q^(b - 1) * log(q / p) for a = 0."""
    log_p, log_q, q = pair.softened()
    values = _elements(log_p, log_q, alpha, beta).sum(-1)
    if alpha == 0:
        ratio = log_q - log_p
    else:
        ratio = ((alpha * log_q).exp_() - (alpha * log_p).exp_()).div_(alpha)
    q_times_g = ratio.mul_((beta * log_q).exp_())
    return pair.scaled(values, q_times_g - q * q_times_g.sum(-1, keepdim=True))


def _elements(
    log_p: Float[Tensor, "n V"], log_q: Float[Tensor, "n V"], alpha: float, beta: float
) -> Float[Tensor, "n V"]:
    """The divergence's summands, without temperature^2."""
    if alpha == 0:
        return _elements(log_q, log_p, beta, alpha)
    if beta == 0:
        p_a, q_a = (alpha * log_p).exp(), (alpha * log_q).exp()
        return (p_a * (alpha * (log_p - log_q)) - p_a + q_a) / alpha**2
    both = alpha + beta
    powers = alpha / both * (both * log_p).exp() + beta / both * (both * log_q).exp()
    return (powers - (alpha * log_p + beta * log_q).exp()) / (alpha * beta)


def alpha_beta_reference(
    student: Row, teacher: Row, *, temperature: float, alpha: float, beta: float
) -> float:
    """temperature^2 times the divergence of one row. Source: Cichocki et al. 2011."""
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    if beta == 0:
        terms = (alpha * p**alpha * (log_p - log_q) - p**alpha + q**alpha) / alpha**2
    elif alpha == 0:
        terms = (beta * q**beta * (log_q - log_p) - q**beta + p**beta) / beta**2
    else:
        total = alpha + beta
        terms = alpha / total * p**total + beta / total * q**total - p**alpha * q**beta
        terms = terms / (alpha * beta)
    return temperature**2 * float(terms.sum())


DIVERGENCE = Divergence(
    alpha_beta_loss,
    alpha_beta_reference,
    settings=AlphaBetaRecipe,
    gradient=alpha_beta_gradient,
)
