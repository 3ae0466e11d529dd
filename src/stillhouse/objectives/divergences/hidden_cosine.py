"""Cosine distance of last hidden states (Sanh et al. 2019).

Axes: N rows that count, D hidden size.
"""

import math

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.objectives.divergence import Divergence
from stillhouse.objectives.float64 import Row


def hidden_cosine_loss(
    student_hidden: Float[Tensor, "N D"], teacher_hidden: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Sum over rows of 1 - cos(h_s, h_t). Source: Sanh et al. 2019, section 3."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def hidden_cosine_reference(student: Row, teacher: Row) -> float:
    """1 - cos(h_s, h_t) of one row."""
    ours, theirs = student.astype(np.float64), teacher.astype(np.float64)
    return 1 - float(ours @ theirs) / math.sqrt(float(ours @ ours) * float(theirs @ theirs))


DIVERGENCE = Divergence(hidden_cosine_loss, hidden_cosine_reference, reads="hidden", cacheable=True)
