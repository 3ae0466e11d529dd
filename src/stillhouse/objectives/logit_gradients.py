"""The terms that read logits, for a block of rows: values, and gradients by formula.

The formulas are those of `losses`, whose autograd gradients they must equal (a test holds it).
With z = student logits / temperature and q = softmax(z), a gradient g with respect to q becomes
q * (g - sum_V q * g) with respect to z. Soft targets and language modeling are cross entropies,
whose gradient is mass * q - target; where they have one temperature they share one softmax.

Axes: n rows of a block, V vocabulary, k tokens kept of a cached teacher.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.objectives.sparse import sparse_soft_target
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.teacher_rows import SparseRows

LOGIT_TERMS = (
    "soft_target",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "total_variation",
    "logit_mse",
    "language_modeling",
)
TEACHER_TERMS = tuple(name for name in LOGIT_TERMS if name != "language_modeling")
SPARSE_TERMS = ("soft_target",)  # the teacher's terms that a few of its tokens suffice for
CROSS_ENTROPIES = ("soft_target", "language_modeling")


@dataclass(frozen=True)
class LogitTerm:
    """One term: what its sum is multiplied with, and which rows count (None: all)."""

    coefficient: float
    rows: Bool[Tensor, " N"] | None = None
    beta: float = 0.5
    alpha: float = 0.1


@dataclass(frozen=True)
class Block:
    """Some rows: float32 logits, or of a cached teacher what it kept; `rows` is their place."""

    student: Float[Tensor, "n V"]
    teacher: Float[Tensor, "n V"] | SparseRows | None
    labels: Int[Tensor, " n"]
    rows: slice

    def counted(self, term: LogitTerm) -> Float[Tensor, " n"]:
        """One where a row counts, else zero."""
        ones = torch.ones_like(self.student[:, 0])
        return ones if term.rows is None else ones * term.rows[self.rows]


def add_gradients(
    gradient: Float[Tensor, "n V"],
    block: Block,
    terms: Mapping[str, LogitTerm],
    temperature: float,
    values: dict[str, Tensor],
    scratch: list[Tensor],
) -> None:
    """Add the terms' weighted gradients with respect to the student's logits, and each term's own
    sum over the block to `values`. The three `scratch` tensors (n, V) do not survive."""
    for name, term in terms.items():
        if name not in CROSS_ENTROPIES:
            value, grad = _divergence(name, term, block, temperature, scratch)
            counted = block.counted(term)
            gradient.addcmul_(grad, term.coefficient * counted[:, None])
            values[name] += (value * counted).sum()
    own = {"soft_target": temperature, "language_modeling": 1.0}
    for softening in sorted(set(own.values())):
        chosen = {name: terms[name] for name in own if own[name] == softening and name in terms}
        if chosen:
            _add_cross_entropies(gradient, block, chosen, softening, values, scratch)


def _add_cross_entropies(
    gradient: Tensor,
    block: Block,
    terms: Mapping[str, LogitTerm],
    temperature: float,
    values: dict[str, Tensor],
    scratch: list[Tensor],
) -> None:
    """Soft targets, language modeling or both, at one temperature."""
    log_q = _log_softmax(block.student, temperature, scratch[0])
    mass = torch.zeros_like(log_q[:, 0])
    told, kept = block.teacher, None
    if soft := terms.get("soft_target"):
        if isinstance(told, SparseRows):
            kept = log_q.gather(1, told.ids)
        else:
            assert told is not None
            log_p = _log_softmax(told, temperature, scratch[1])
            p = torch.exp(log_p, out=scratch[2])
            value = log_p.sub_(log_q).mul_(p).sum(-1)
            counted = block.counted(soft)
            values["soft_target"] += temperature**2 * (value * counted).sum()
            weights = temperature * soft.coefficient * counted
            gradient.addcmul_(p, -weights[:, None])
            mass += weights
    if hard := terms.get("language_modeling"):
        counted = block.counted(hard) * (block.labels != IGNORED)
        labels = block.labels.clamp_min(0)[:, None]
        values["language_modeling"] -= (log_q.gather(1, labels)[:, 0] * counted).sum()
        weights = hard.coefficient * counted
        mass += weights
        gradient.scatter_add_(1, labels, -weights[:, None])
    q = log_q.exp_()
    if soft is not None and kept is not None and isinstance(told, SparseRows):
        value, sparse_mass, at_ids = sparse_soft_target(q, kept, told)
        counted = block.counted(soft)
        values["soft_target"] += temperature**2 * (value * counted).sum()
        weights = temperature * soft.coefficient * counted
        gradient.scatter_add_(1, told.ids, weights[:, None] * at_ids)
        mass += weights * sparse_mass
    gradient.addcmul_(q, mass[:, None])


def _log_softmax(logits: Tensor, temperature: float, out: Tensor) -> Tensor:
    softened = logits if temperature == 1 else torch.div(logits, temperature, out=out)
    return torch.log_softmax(softened, dim=-1, out=out)


def _divergence(
    name: str, term: LogitTerm, block: Block, temperature: float, scratch: list[Tensor]
) -> tuple[Float[Tensor, " n"], Float[Tensor, "n V"]]:
    """One divergence for each row, and its gradient with respect to the student's logits."""
    assert isinstance(block.teacher, Tensor)
    if name == "logit_mse":
        difference = torch.sub(block.student, block.teacher, out=scratch[0])
        value = difference.square().mean(-1)
        return value, difference.mul_(2 / difference.shape[-1])
    log_p = _log_softmax(block.teacher, temperature, scratch[0])
    log_q = _log_softmax(block.student, temperature, scratch[1])
    value, grad = _softened_divergence(name, term, log_p, log_q, scratch[2])
    if name == "total_variation":
        return value, grad.div_(temperature)
    return value * temperature**2, grad.mul_(temperature)


def _softened_divergence(
    name: str, term: LogitTerm, log_p: Tensor, log_q: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """The same without temperature^2, its gradient with respect to the softened logits."""
    q = torch.exp(log_q, out=scratch)
    if name == "reverse_kl":
        ratio = log_q - log_p
        return (q * ratio).sum(-1), _through_softmax(q, ratio)
    if name == "total_variation":
        difference = q - log_p.exp()
        return 0.5 * difference.abs().sum(-1), _through_softmax(q, 0.5 * difference.sign_())
    if name == "jsd":
        log_m = torch.logaddexp(log_p + math.log(term.beta), log_q + math.log1p(-term.beta))
        teacher_part = (log_p.exp() * (log_p - log_m)).sum(-1)
        ratio = log_q - log_m
        value = term.beta * teacher_part + (1 - term.beta) * (q * ratio).sum(-1)
        return value, _through_softmax(q, ratio.mul_(1 - term.beta))
    assert name == "skew_kl"
    log_m = log_q
    if term.alpha > 0:
        log_m = torch.logaddexp(log_p + math.log(term.alpha), log_q + math.log1p(-term.alpha))
    value = (log_p.exp() * (log_p - log_m)).sum(-1)
    # q * g with g = -(1 - alpha) * p / m, kept together so that q / m cannot overflow.
    q_times_g = (log_p + log_q - log_m).exp_().mul_(term.alpha - 1)
    return value, q_times_g - q * q_times_g.sum(-1, keepdim=True)


def _through_softmax(q: Tensor, g: Tensor) -> Tensor:
    """q * (g - sum of q * g): a gradient with respect to q, taken to the softened logits."""
    q_times_g = q * g
    return q_times_g.sub_(q * q_times_g.sum(-1, keepdim=True))
