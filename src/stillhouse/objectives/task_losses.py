"""Losses of task models, beside `divergences`.

Contract: each returns a float32 *sum* over its rows; the trainer divides it by that term's rows in
the whole global batch.

Axes: N rows, C classes, D and E sizes of unit vectors; G consecutive rows form a group, and rows
are compared within their group.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def binary_soft_target_loss(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """temperature^2 * sum of KL(teacher || student) over independent binary classes, in nats.

    With p, q the teacher's and student's sigmoid(logits / temperature):

        p * (log p - log q) + (1 - p) * (log(1 - p) - log(1 - q))

    Source: Hinton et al. 2015, section 2, for each class by itself.
    """
    student, teacher = student_logits.float() / temperature, teacher_logits.float() / temperature
    p = teacher.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student, p, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(teacher, p, reduction="sum")
    return temperature**2 * (cross_entropy - entropy)


def similarity_loss(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N E"], *, group: int
) -> Float[Tensor, ""]:
    """Sum over rows of the mean over the group's other rows j of (s_i . s_j - t_i . t_j)^2.

    Source: Tung and Mori 2019 (similarity-preserving distillation), section 3, with cosines.
    """
    ours, theirs = (
        rows.float().unflatten(0, (-1, group)) for rows in (student, teacher)
    )  # (N / G, G, D)
    difference = ours @ ours.mT - theirs @ theirs.mT
    others = ~torch.eye(group, dtype=torch.bool, device=student.device)
    return (difference.square() * others).sum() / max(1, group - 1)


def contrastive_loss(
    first: Float[Tensor, "N D"], second: Float[Tensor, "N D"], *, group: int, temperature: float
) -> Float[Tensor, ""]:
    """Sum over rows of -log softmax(first_i . second_j / temperature) at j = i, over the group.

    Source: van den Oord et al. 2018 (InfoNCE), equation 4; Gao et al. 2021 (SimCSE), equation 1.
    """
    ours, theirs = (rows.float().unflatten(0, (-1, group)) for rows in (first, second))
    cosines = (ours @ theirs.mT / temperature).flatten(0, 1)  # (N, G)
    own = torch.arange(group, device=first.device).repeat(len(first) // group)
    return F.cross_entropy(cosines, own, reduction="sum")
