"""Head and losses in one pass over chunks of rows: exact values and gradients, never B x T x V
logits.

For a chunk of rows the student's and the teacher's logits are computed, every term's value and its
gradient with respect to the student's logits are taken by formula, and the gradient is folded at
once into those of the features, the projection's weight and its bias. Logits exist for one chunk
only.

The formulas are those of `losses`, whose autograd gradients they must equal (a test holds it).
With z = student logits / temperature and q = softmax(z), a gradient g with respect to q becomes
q * (g - sum_V q * g) with respect to z.

Axes: N rows that count, n rows of a chunk, V vocabulary, D hidden size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stillhouse.tokens.batches import IGNORED

CHUNK_BYTES = {"cpu": 192 * 2**20, "cuda": 1024 * 2**20}
CHUNK_BUFFERS = 6  # float32 tensors of (n, V) that live at once

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


@dataclass(frozen=True)
class LogitTerm:
    """One term: what its sum is multiplied with, and which rows count (None: all)."""

    coefficient: float
    rows: Bool[Tensor, " N"] | None = None
    beta: float = 0.5
    alpha: float = 0.1


@dataclass(frozen=True)
class Projection:
    """What a head multiplies: features of the rows that count, and the projection onto the
    vocabulary."""

    features: Float[Tensor, "N D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None


def rows_per_chunk(vocabulary_size: int, device: torch.device) -> int:
    """How many rows keep a chunk's logits within the device's budget; at least 16."""
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cpu"])
    return max(16, budget // (4 * CHUNK_BUFFERS * vocabulary_size))


def fused_losses(
    student: Projection,
    teacher: Projection | None,
    labels: Int[Tensor, " N"],
    terms: Mapping[str, LogitTerm],
    *,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of `terms` (differentiable), and each term's own sum (not differentiable).

    Args:
        student: Features may be of reduced precision; losses are taken in float32.
        teacher: None where every term needs labels alone.
        labels: Token ids; -100 where a row has none.
        chunk_rows: Rows whose logits exist at once; chosen from memory by default.

    Returns:
        sum over terms of coefficient * value, and the values by name, in nats (or as `losses`
        says).
    """
    if teacher is None and any(name in TEACHER_TERMS for name in terms):
        raise ValueError(f"terms {sorted(terms)} need a teacher")
    chunk_rows = chunk_rows or rows_per_chunk(student.weight.shape[0], student.features.device)
    total, *values = _FusedLosses.apply(
        student.features,
        student.weight,
        student.bias,
        teacher,
        labels,
        terms,
        temperature,
        chunk_rows,
    )
    return total, dict(zip(terms, values, strict=True))


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Projection | None,
        labels: Tensor,
        terms: Mapping[str, LogitTerm],
        temperature: float,
        chunk_rows: int,
    ) -> tuple[Tensor, ...]:
        compute = _compute_dtype(features)
        needs_weight = weight.requires_grad
        needs_bias = bias is not None and bias.requires_grad
        student_weight = weight.detach().to(compute)
        teacher_weight = None if teacher is None else teacher.weight.to(compute)
        grad_features = torch.empty_like(features)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        )
        values = {name: features.new_zeros((), dtype=torch.float32) for name in terms}

        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(features), chunk_rows):
                part = slice(start, start + chunk_rows)
                chunk = features[part].to(compute)
                student_logits = _logits(chunk, student_weight, bias)
                teacher_logits = None
                if teacher is not None and teacher_weight is not None:
                    teacher_logits = _logits(
                        teacher.features[part].to(compute), teacher_weight, teacher.bias
                    )
                gradient = _chunk_gradient(
                    student_logits, teacher_logits, labels[part], part, terms, temperature, values
                )
                reduced = gradient.to(compute)
                grad_features[part] = (reduced @ student_weight).to(grad_features.dtype)
                if grad_weight is not None:
                    if compute == torch.float32:
                        grad_weight.addmm_(reduced.T, chunk)
                    else:
                        grad_weight += reduced.T @ chunk
                if grad_bias is not None:
                    grad_bias += gradient.sum(0)
        ctx.gradients = (
            grad_features,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        total = features.new_zeros((), dtype=torch.float32)
        for name, term in terms.items():
            total = total + term.coefficient * values[name]
        outputs = tuple(values.values())
        ctx.mark_non_differentiable(*outputs)
        return (total, *outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        grad_total = grad_outputs[0]
        gradients = [
            None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.gradients
        ]
        return (*gradients, None, None, None, None, None)


def _compute_dtype(features: Tensor) -> torch.dtype:
    """The precision of the matrix products: autocast's where it is on, else the features' own."""
    if torch.is_autocast_enabled(features.device.type):
        return torch.get_autocast_dtype(features.device.type)
    return features.dtype


def _logits(features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = (features @ weight.T).float()
    return logits if bias is None else logits.add_(bias.detach().float())


def _chunk_gradient(
    student_logits: Float[Tensor, "n V"],
    teacher_logits: Float[Tensor, "n V"] | None,
    labels: Int[Tensor, " n"],
    part: slice,
    terms: Mapping[str, LogitTerm],
    temperature: float,
    values: dict[str, Tensor],
) -> Float[Tensor, "n V"]:
    """Add each term's sum over the chunk to `values`; return the weighted gradient of the
    logits."""
    gradient = torch.zeros_like(student_logits)
    shared = None
    for name, term in terms.items():
        rows = None if term.rows is None else term.rows[part]
        if name == "language_modeling":
            value, grad = _language_modeling(student_logits, labels)
        elif name == "logit_mse":
            assert teacher_logits is not None
            grad = student_logits - teacher_logits
            value = grad.square().mean(-1)
            grad.mul_(2 / grad.shape[-1])
        else:
            assert teacher_logits is not None
            if shared is None:
                shared = (
                    F.log_softmax(teacher_logits / temperature, dim=-1),
                    F.log_softmax(student_logits / temperature, dim=-1),
                )
            value, grad = _divergence(name, term, *shared)
            scale = 1.0 if name == "total_variation" else temperature**2
            value = value * scale
            grad.mul_(scale / temperature)
        if rows is not None:
            value = value * rows
            grad.mul_(rows[:, None])
        values[name] += value.sum()
        gradient.add_(grad, alpha=term.coefficient)
    return gradient


def _language_modeling(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """-log q(label) for each row, and q - onehot(label); nothing where there is no label."""
    has_label = labels != IGNORED
    safe = labels.where(has_label, 0)[:, None]
    log_q = F.log_softmax(logits, dim=-1)
    value = -log_q.gather(1, safe).squeeze(1) * has_label
    grad = log_q.exp_().scatter_add_(1, safe, torch.full_like(safe, -1, dtype=log_q.dtype))
    return value, grad.mul_(has_label[:, None])


def _divergence(name: str, term: LogitTerm, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """One divergence for each row, and its gradient with respect to the softened student logits."""
    q = log_q.exp()
    if name == "soft_target":
        p = log_p.exp()
        return (p * (log_p - log_q)).sum(-1), q.sub_(p)
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
