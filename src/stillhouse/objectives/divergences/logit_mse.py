"""Mean squared error of logits (Ba and Caruana 2014).

Axes: N rows that count, n rows of a block, V vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import Divergence, LogitPair
from stillhouse.objectives.float64 import mean_square


def logit_mse_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """Sum over rows of the mean over V of (s - t)^2, at any temperature.

    Sanh et al. 2019's code summed over V.
    """
    return (student_logits.float() - teacher_logits.float()).square().mean(-1).sum()


def logit_mse_gradient(pair: LogitPair) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """2 * (s - t) / V."""
    difference = torch.sub(pair.student, pair.teacher, out=pair.scratch[0])
    return difference.square().mean(-1), difference.mul_(2 / difference.shape[-1])


DIVERGENCE = Divergence(logit_mse_loss, mean_square, gradient=logit_mse_gradient)
