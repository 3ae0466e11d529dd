"""What a divergence between teacher and student is, and the arithmetic that several share.

With p, q the teacher's and student's softmax(logits / temperature), divergences of distributions
are multiplied by temperature^2, which keeps their gradient's size across temperatures (Hinton et
al. 2015, section 2).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.section import Rows, Section


class LossRecipe(Section):
    """One term of the objective."""

    weight: NonNegativeFloat
    """Weight of the term's mean over its rows; 0 leaves the term out."""
    rows: Rows = "all"
    """Positions that count: all tokens, or only those that are predicted."""


@dataclass(frozen=True)
class LogitPair:
    """Float32 logits of a block of rows; a gradient may overwrite the scratch tensors."""

    student: Float[Tensor, "n V"]
    teacher: Float[Tensor, "n V"]
    temperature: float
    scratch: list[Tensor]

    def softened(self) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n V"], Float[Tensor, "n V"]]:
        """log p, log q and q."""
        log_p = log_softmax(self.teacher, self.temperature, out=self.scratch[0])
        log_q = log_softmax(self.student, self.temperature, out=self.scratch[1])
        return log_p, log_q, torch.exp(log_q, out=self.scratch[2])

    def scaled(self, values: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """temperature^2 * values, and the gradient for logits from that for softened logits."""
        return values * self.temperature**2, gradient.mul_(self.temperature)


@dataclass(frozen=True)
class Divergence:
    """One way to compare a student with its teacher, registered by its file in `divergences`.

    Attributes:
        loss: The formula, differentiable: a float32 *sum* over rows of the student's and the
            teacher's tensors (the trainer divides it by the rows of the whole global batch). It
            takes the keys of `settings` by name and, if it reads logits, `temperature`.
        reference: The formula again, of one row in float64 (`float64`), without any code of `loss`;
            it takes the same settings. The tests and `stillhouse verify` compare the two.
        reads: Logits (N, V), or last hidden states (N, D).
        settings: The term's section in a recipe.
        gradient: Values (n) and gradients with respect to the student's logits (n, V) of a
            `LogitPair`, written by hand. Without one, autograd differentiates `loss`.
        cacheable: Whether a teacher cache holds what the term reads.
    """

    loss: Callable[..., Float[Tensor, ""]]
    reference: Callable[..., float]
    reads: Literal["logits", "hidden"] = "logits"
    settings: type[LossRecipe] = LossRecipe
    gradient: Callable[..., tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]] | None = None
    cacheable: bool = False


def log_softmax(
    logits: Float[Tensor, "n V"], temperature: float, *, out: Tensor
) -> Float[Tensor, "n V"]:
    """log softmax(logits / temperature), in the memory of `out`."""
    softened = logits if temperature == 1 else torch.div(logits, temperature, out=out)
    return torch.log_softmax(softened, dim=-1, out=out)


def log_probabilities(
    student_logits: Float[Tensor, "N V"], teacher_logits: Float[Tensor, "N V"], temperature: float
) -> tuple[Float[Tensor, "N V"], Float[Tensor, "N V"]]:
    """log p and log q in float32, differentiable."""
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return log_p, log_q


def kl_sum(log_p: Float[Tensor, "N V"], log_q: Float[Tensor, "N V"]) -> Float[Tensor, ""]:
    """KL(p || q) in nats, summed over rows, from logarithms."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum")


def through_softmax(q: Float[Tensor, "n V"], g: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """q * (g - sum_V q * g): the gradient for softened logits from that with respect to q."""
    q_times_g = q * g
    return q_times_g.sub_(q * q_times_g.sum(-1, keepdim=True))
