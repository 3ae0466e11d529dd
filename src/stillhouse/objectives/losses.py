"""Losses that pull a student towards its teacher, stated plainly.

Contract: each returns a float32 *sum* over its rows. The engine divides each term once, by that
term's rows in the whole global batch, so a result does not depend on how a step is split into
micro-batches or ranks.

With p, q the teacher's and student's softmax(logits / temperature), divergences are multiplied by
temperature^2, which keeps their gradient's size across temperatures (Hinton et al. 2015, section
2).

Axes: N rows that count, V vocabulary, D hidden size.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def soft_target_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """temperature^2 * sum over rows and V of p * (log p - log q), in nats: KL(teacher || student).

    Source: Hinton et al. 2015, section 2; Sanh et al. 2019.
    """
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="sum")


def reverse_kl_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """temperature^2 * sum of q * (log q - log p), in nats: KL(student || teacher).

    Source: Gu et al. 2024 (MiniLLM), section 2.1.
    """
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    return temperature**2 * F.kl_div(log_p, log_q, log_target=True, reduction="sum")


def jsd_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
    beta: float = 0.5,
) -> Float[Tensor, ""]:
    """Generalised Jensen-Shannon divergence, times temperature^2, in nats.

    With m = beta * p + (1 - beta) * q: beta * KL(p || m) + (1 - beta) * KL(q || m).
    Source: Agarwal et al. 2024 (GKD), section 2.
    """
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    teacher_part = F.kl_div(log_m, log_p, log_target=True, reduction="sum")
    student_part = F.kl_div(log_m, log_q, log_target=True, reduction="sum")
    return temperature**2 * (beta * teacher_part + (1 - beta) * student_part)


def skew_kl_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
    alpha: float = 0.1,
) -> Float[Tensor, ""]:
    """KL(p || alpha * p + (1 - alpha) * q), times temperature^2, in nats.

    Source: Ko et al. 2024 (DistiLLM), section 3.1.
    """
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    log_m = log_q
    if alpha > 0:
        log_m = torch.logaddexp(log_p + math.log(alpha), log_q + math.log1p(-alpha))
    return temperature**2 * F.kl_div(log_m, log_p, log_target=True, reduction="sum")


def total_variation_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Half the sum of |p - q|: between 0 and 1 for each row. Source: Wen et al. 2023, section 3."""
    log_p, log_q = _log_probabilities(teacher_logits, student_logits, temperature)
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum()


def logit_mse_loss(
    student_logits: Float[Tensor, "N V"], teacher_logits: Float[Tensor, "N V"]
) -> Float[Tensor, ""]:
    """Sum over rows of the mean over V of (s - t)^2. Sanh et al. 2019's code summed over V."""
    difference = student_logits.float() - teacher_logits.float()
    return difference.square().mean(-1).sum()


def language_modeling_loss(
    student_logits: Float[Tensor, "N V"], labels: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Sum of -log q(label) at temperature 1, in nats; rows labeled -100 count nothing."""
    return F.cross_entropy(student_logits.float(), labels, reduction="sum")


def hidden_cosine_loss(
    student_hidden: Float[Tensor, "N D"], teacher_hidden: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Sum over rows of 1 - cos(h_s, h_t). Source: Sanh et al. 2019, section 3."""
    return (1 - F.cosine_similarity(student_hidden.float(), teacher_hidden.float(), dim=-1)).sum()


def hidden_mse_loss(
    student_hidden: Float[Tensor, "N D"], teacher_hidden: Float[Tensor, "N D"]
) -> Float[Tensor, ""]:
    """Sum over rows of the mean over D of (h_s - h_t)^2."""
    return (student_hidden.float() - teacher_hidden.float()).square().mean(-1).sum()


def _log_probabilities(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    log_p = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    log_q = F.log_softmax(student_logits.float() / temperature, dim=-1)
    return log_p, log_q
