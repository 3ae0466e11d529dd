"""Cosine distance of last hidden states (Sanh et al. 2019).

Axes: N rows that count, D hidden size.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.objectives.divergence import Divergence


def hidden_cosine_loss(
    student_hidden: Float[Tensor, "N D"], teacher_hidden: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Sum over rows of 1 - cos(h_s, h_t). Source: Sanh et al. 2019, section 3."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


DIVERGENCE = Divergence(hidden_cosine_loss, reads="hidden", cacheable=True)
