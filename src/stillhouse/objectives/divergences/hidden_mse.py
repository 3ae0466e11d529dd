"""Mean squared error of last hidden states (Jiao et al. 2020, without their projection).

Axes: N rows that count, D hidden size.
"""

from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import Divergence
from stillhouse.objectives.float64 import mean_square


def hidden_mse_loss(
    student_hidden: Float[Tensor, "N D"], teacher_hidden: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Sum over rows of the mean over D of (h_s - h_t)^2."""
    return (student_hidden.float() - teacher_hidden.float()).square().mean(-1).sum()


DIVERGENCE = Divergence(hidden_mse_loss, mean_square, reads="hidden", cacheable=True)
