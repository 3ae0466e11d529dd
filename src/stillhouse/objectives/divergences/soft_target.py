"""Forward KL divergence, the soft targets of Hinton et al. 2015.

Its gradient is that of a cross entropy and shares a softmax with language modeling:
`fused` computes both.

Axes: N rows that count, V vocabulary.
"""

from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.divergence import Divergence, kl_sum, log_probabilities
from stillhouse.objectives.float64 import Row, kl, log_softmax


def soft_target_loss(
    student_logits: Float[Tensor, "N V"],
    teacher_logits: Float[Tensor, "N V"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """temperature^2 * sum over rows and V of p * (log p - log q), in nats: KL(teacher || student).

    Source: Hinton et al. 2015, section 2; Sanh et al. 2019.
    """
    log_p, log_q = log_probabilities(student_logits, teacher_logits, temperature)
    return temperature**2 * kl_sum(log_p, log_q)


def soft_target_reference(student: Row, teacher: Row, *, temperature: float) -> float:
    """temperature^2 * KL(p || q) of one row. Source: Hinton et al. 2015, section 2."""
    return temperature**2 * kl(log_softmax(teacher, temperature), log_softmax(student, temperature))


DIVERGENCE = Divergence(soft_target_loss, soft_target_reference, cacheable=True)
