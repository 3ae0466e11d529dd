"""Sparse teacher distributions, a few tokens per row: the format of a teacher cache.

`top_k` keeps the most likely tokens and the total mass of the others. The loss compares k + 1
outcomes, so it is a lower bound of the exact loss; the student distributes the rest freely.

`sampled` keeps an unbiased estimate of the whole distribution: each weight's expectation is the
token's probability. The gradient of the soft target is linear in the teacher's probabilities, so
its expectation is the exact gradient (Anshumann et al. 2025, who draw with replacement). Here
tokens are drawn without replacement by systematic sampling with probability proportional to size
(Madow 1949): a token likelier than a threshold is kept with its own probability, of the others each
is kept with probability p / threshold and then weighs the threshold. All ids differ, the weights
sum to one, and the variance is smaller than that of as many independent draws.

Axes: N rows, V vocabulary, k tokens kept.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.objectives.chunks import blocks, rows_per_block
from stillhouse.tokens.batches import SparseRows
from stillhouse.tokens.settings import CacheKind

SMALLEST = torch.finfo(torch.float32).tiny


def sparse_rows(
    logits: Float[Tensor, "N V"],
    kind: CacheKind,
    size: int,
    *,
    temperature: float,
    uniform: Float[Tensor, " N"],
) -> SparseRows:
    """The sparse rows of a teacher's logits.

    Args:
        size: Tokens kept per row; at most the vocabulary.
        uniform: One number from [0, 1) per row, the only randomness of a systematic sample.
    """
    size = min(size, logits.shape[1])
    num_rows = max(1, len(logits))  # without rows, one empty block
    parts = blocks(num_rows, rows_per_block(logits.shape[1], logits.device) or num_rows)
    kept = [
        _block_rows(logits[part].float() / temperature, kind, size, uniform[part]) for part in parts
    ]
    return SparseRows.join(kept)


def _block_rows(
    softened: Float[Tensor, "n V"], kind: CacheKind, size: int, uniform: Float[Tensor, " n"]
) -> SparseRows:
    log_p = torch.log_softmax(softened, dim=-1)
    p = log_p.exp()
    largest, ids = p.topk(size, dim=-1)
    if kind == "top_k":
        rest = p.scatter_(1, ids, 0.0).sum(-1)
        return SparseRows(kind, ids, largest, rest)
    # Where p is zero its logarithm may be infinite, and counts nothing.
    negative_entropy = log_p.clamp_min_(-1e4).mul_(p).sum(-1)
    ids, weights = _systematic_sample(p, largest, ids, uniform)
    return SparseRows(kind, ids, weights, negative_entropy)


def _systematic_sample(
    p: Float[Tensor, "N V"],
    largest: Float[Tensor, "N k"],
    ids: Int[Tensor, "N k"],
    uniform: Float[Tensor, " N"],
) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """Ids and weights of a sample of k tokens, given the k largest probabilities in order.

    `p` does not survive.
    """
    size = largest.shape[1]
    places = torch.arange(size, device=p.device)
    rest = p.scatter_(1, ids, 0.0).sum(-1, keepdim=True)
    left = rest + largest.flip(-1).cumsum(-1).flip(-1)  # mass from each place on
    # Certain are those before the first place whose share of the slots left is at most one.
    certain = ((size - places) * largest > left).cumprod(-1).bool()
    num_certain = certain.sum(-1, keepdim=True)
    slots = size - num_certain
    others = p.scatter_(1, ids, largest.where(~certain, 0.0))
    bounds = others.cumsum(-1, dtype=torch.float64)
    mass = bounds[:, -1:].clone()
    targets = (uniform.double()[:, None] + (places - num_certain).clamp_min(0)) / slots * mass
    drawn = torch.searchsorted(bounds, targets, right=True).clamp_max(p.shape[1] - 1)
    threshold = (mass / slots).float()
    return ids.where(certain, drawn), largest.where(certain, threshold)


def sparse_soft_target_loss(
    student_logits: Float[Tensor, "N V"], teacher: SparseRows, *, temperature: float
) -> Float[Tensor, ""]:
    """temperature^2 * sum over rows of KL(teacher || student), estimated from the kept tokens."""
    return temperature**2 * sparse_kl(student_logits, teacher, temperature=temperature).sum()


def sparse_kl(
    student_logits: Float[Tensor, "N V"], teacher: SparseRows, *, temperature: float
) -> Float[Tensor, " N"]:
    """KL(teacher || student) of each row in nats, estimated from the kept tokens.

    `sampled`: sum p log p (kept exactly) - sum over kept tokens of weight * log q, whose
    expectation is the exact value. `top_k`: KL over the kept tokens and one outcome for all others.
    """
    log_q = torch.log_softmax(student_logits.float() / temperature, dim=-1)
    kept = log_q.gather(1, teacher.ids)
    if teacher.kind == "sampled":
        return teacher.rest - (teacher.weights * kept).sum(-1)
    log_rest = log_q.exp().scatter(1, teacher.ids, 0.0).sum(-1).clamp_min(SMALLEST).log()
    values = (torch.xlogy(teacher.weights, teacher.weights) - teacher.weights * kept).sum(-1)
    return values + torch.xlogy(teacher.rest, teacher.rest) - teacher.rest * log_rest


def sparse_soft_target(
    q: Float[Tensor, "n V"], kept: Float[Tensor, "n k"], teacher: SparseRows
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n k"]]:
    """Each row's value (without temperature^2), and its gradient for the softened logits in two
    parts: the factor of q, and the gradient at the kept tokens.

    Args:
        q: The student's probabilities.
        kept: Their logarithms at the kept tokens.
    """
    weights, rest = teacher.weights, teacher.rest
    if teacher.kind == "sampled":
        return rest - (weights * kept).sum(-1), weights.sum(-1), -weights
    own = q.gather(1, teacher.ids)
    others = q.scatter_(1, teacher.ids, 0.0).sum(-1).clamp_min(SMALLEST)
    q.scatter_(1, teacher.ids, own)
    value = (torch.xlogy(weights, weights) - weights * kept).sum(-1)
    value = value + torch.xlogy(rest, rest) - rest * others.log()
    ratio = rest / others  # a token among the others moves with its share of them
    return value, weights.sum(-1) + rest - ratio, own * ratio[:, None] - weights
