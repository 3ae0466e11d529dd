"""The terms that read logits, for a block of rows: values, and gradients by formula.

With z = student logits / temperature and q = softmax(z), a gradient g with respect to q becomes
q * (g - sum_V q * g) with respect to z. Soft targets and language modeling are cross entropies,
whose gradient is mass * q - target; where they have one temperature they share one softmax. The
other divergences bring their own gradients, or are differentiated by autograd.

Axes: n rows of a block, V vocabulary, k tokens kept of a cached teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.objectives.divergence import LogitPair, log_softmax
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.sparse import sparse_soft_target
from stillhouse.tokens.batches import IGNORED, SparseRows

CROSS_ENTROPIES = ("soft_target", "language_modeling")
TEACHER_TERMS = tuple(name for name, each in DIVERGENCES.items() if each.reads == "logits")
LOGIT_TERMS = (*TEACHER_TERMS, "language_modeling")
SPARSE_TERMS = tuple(name for name in TEACHER_TERMS if DIVERGENCES[name].cacheable)


@dataclass(frozen=True)
class LogitTerm:
    """One term: the coefficient of its sum, the rows that count (None: all), and the divergence's
    own settings."""

    coefficient: float
    rows: Bool[Tensor, " N"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A block of rows: float32 logits, or a cached teacher's tokens; `rows` is its place."""

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
    """Add the terms' weighted gradients with respect to the student's logits to `gradient`, and
    each term's own sum over the block to `values`. Overwrites the three `scratch` tensors (n, V).
    """
    for name, term in terms.items():
        if name not in CROSS_ENTROPIES:
            assert isinstance(block.teacher, Tensor)
            pair = LogitPair(block.student, block.teacher, temperature, scratch)
            values[name] += _add_divergence(gradient, pair, name, term, block)
    own = {"soft_target": temperature, "language_modeling": 1.0}
    for softening in sorted(set(own.values())):
        chosen = {name: terms[name] for name in own if own[name] == softening and name in terms}
        if chosen:
            _add_cross_entropies(gradient, block, chosen, softening, values, scratch)


def _add_divergence(
    gradient: Tensor, pair: LogitPair, name: str, term: LogitTerm, block: Block
) -> Float[Tensor, ""]:
    """The divergence's sum over the rows that count; its weighted gradient is added."""
    divergence = DIVERGENCES[name]
    counted = block.counted(term)
    if divergence.gradient is not None:
        value, grad = divergence.gradient(pair, **term.settings)
        gradient.addcmul_(grad, term.coefficient * counted[:, None])
        return (value * counted).sum()
    rows = counted.nonzero()[:, 0]
    with torch.enable_grad():
        student = pair.student[rows].requires_grad_()
        total = divergence.loss(
            student, pair.teacher[rows], temperature=pair.temperature, **term.settings
        )
        (grad,) = torch.autograd.grad(total, student)
    gradient.index_add_(0, rows, grad, alpha=term.coefficient)
    return total.detach()


def _add_cross_entropies(
    gradient: Tensor,
    block: Block,
    terms: Mapping[str, LogitTerm],
    temperature: float,
    values: dict[str, Tensor],
    scratch: list[Tensor],
) -> None:
    """Soft targets, language modeling or both, at one temperature."""
    log_q = log_softmax(block.student, temperature, out=scratch[0])
    mass = torch.zeros_like(log_q[:, 0])
    teacher, kept = block.teacher, None
    if soft := terms.get("soft_target"):
        if isinstance(teacher, SparseRows):
            kept = log_q.gather(1, teacher.ids)
        else:
            assert teacher is not None
            log_p = log_softmax(teacher, temperature, out=scratch[1])
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
    if soft is not None and kept is not None and isinstance(teacher, SparseRows):
        value, sparse_mass, at_ids = sparse_soft_target(q, kept, teacher)
        counted = block.counted(soft)
        values["soft_target"] += temperature**2 * (value * counted).sum()
        weights = temperature * soft.coefficient * counted
        gradient.scatter_add_(1, teacher.ids, weights[:, None] * at_ids)
        mass += weights * sparse_mass
    gradient.addcmul_(q, mass[:, None])
