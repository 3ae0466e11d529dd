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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.objectives.sparse import sparse_soft_target
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.teacher_rows import SparseRows

# Two sizes. Matrix products want many rows; passes over logits want few, which stay in the
# processor's caches and in memory that is already there (a fresh page costs a fault).
CHUNK_BYTES = {"cpu": 256 * 2**20, "cuda": 1024 * 2**20}
CHUNK_TENSORS = {"cpu": 2, "cuda": 8}  # of (n, V), float32 at most, that live at once
BLOCK_BYTES = 2**20  # of one float32 tensor, for each thread of a processor
BLOCK_BUFFERS = 6

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
    kind = device.type if device.type in CHUNK_BYTES else "cpu"
    return max(16, CHUNK_BYTES[kind] // (4 * CHUNK_TENSORS[kind] * vocabulary_size))


def rows_per_block(vocabulary_size: int, device: torch.device) -> int | None:
    """How many rows of a chunk the losses take at a time; None: the whole chunk."""
    if device.type != "cpu":
        return None
    return max(1, BLOCK_BYTES * torch.get_num_threads() // (4 * vocabulary_size))


def fused_losses(
    student: Projection,
    teacher: Projection | SparseRows | None,
    labels: Int[Tensor, " N"],
    terms: Mapping[str, LogitTerm],
    *,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of `terms` (differentiable), and each term's own sum (not differentiable).

    Args:
        student: Features may be of reduced precision; losses are taken in float32.
        teacher: Live, or the rows of a cache (at the same temperature, for `SPARSE_TERMS` alone);
            None where every term needs labels alone.
        labels: Token ids; -100 where a row has none.
        chunk_rows: Rows whose logits exist at once; chosen from memory by default.

    Returns:
        sum over terms of coefficient * value, and the values by name, in nats (or as `losses`
        says).
    """
    served = {Projection: TEACHER_TERMS, SparseRows: SPARSE_TERMS}.get(type(teacher), ())
    if unserved := sorted(set(terms) - {"language_modeling", *served}):
        raise ValueError(f"terms {unserved} need a teacher, or a live one")
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
        teacher: Projection | SparseRows | None,
        labels: Tensor,
        terms: Mapping[str, LogitTerm],
        temperature: float,
        chunk_rows: int,
    ) -> tuple[Tensor, ...]:
        compute = _compute_dtype(features)
        needs_weight = weight.requires_grad
        needs_bias = bias is not None and bias.requires_grad
        student_weight = weight.detach().to(compute)
        live = teacher if isinstance(teacher, Projection) else None
        sparse = teacher if isinstance(teacher, SparseRows) else None
        teacher_weight = None if live is None else live.weight.to(compute)
        grad_features = torch.empty_like(features)
        grad_weight = None  # the first chunk's product becomes it; with no rows it is zero
        if needs_weight and not len(features):
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        )
        values = {name: features.new_zeros((), dtype=torch.float32) for name in terms}

        chunk_rows = max(1, min(chunk_rows, len(features)))
        block_rows = min(rows_per_block(len(weight), features.device) or chunk_rows, chunk_rows)
        buffers = torch.empty(BLOCK_BUFFERS, block_rows, len(weight), device=features.device)

        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(features), chunk_rows):
                part = slice(start, start + chunk_rows)
                chunk = features[part].to(compute)
                logits = chunk @ student_weight.T
                teacher_logits = None
                if live is not None and teacher_weight is not None:
                    teacher_logits = live.features[part].to(compute) @ teacher_weight.T
                for block in _blocks(len(chunk), block_rows):
                    rows = slice(start + block.start, start + block.stop)
                    scratch = list(buffers[:, : block.stop - block.start])
                    pair = _block_logits(logits, bias, teacher_logits, live, block, scratch)
                    told = None if sparse is None else sparse[rows]
                    gradient = _block_gradient(
                        pair, told, labels[rows], rows, terms, temperature, values, scratch[2:]
                    )
                    logits[block] = gradient  # whose place these logits no longer need
                    if grad_bias is not None:
                        grad_bias += gradient.sum(0)
                grad_features[part] = (logits @ student_weight).to(grad_features.dtype)
                if needs_weight:
                    grad_weight = _accumulated(grad_weight, logits, chunk)
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
        # In place: like autograd itself, this goes backward once.
        saved, ctx.gradients = ctx.gradients, None
        gradients = [None if grad is None else grad.mul_(grad_total) for grad in saved]
        return (*gradients, None, None, None, None, None)


def _compute_dtype(features: Tensor) -> torch.dtype:
    """The precision of the matrix products: autocast's where it is on, else the features' own."""
    if torch.is_autocast_enabled(features.device.type):
        return torch.get_autocast_dtype(features.device.type)
    return features.dtype


def _blocks(num_rows: int, block_rows: int) -> Iterator[slice]:
    """Consecutive slices of at most `block_rows` rows."""
    for first in range(0, num_rows, block_rows):
        yield slice(first, min(first + block_rows, num_rows))


def _block_logits(
    logits: Tensor,
    bias: Tensor | None,
    teacher_logits: Tensor | None,
    teacher: Projection | None,
    block: slice,
    buffers: list[Tensor],
) -> tuple[Tensor, Tensor]:
    """A block's student and teacher logits in float32, in the first two buffers."""
    _with_bias(logits[block], bias, buffers[0])
    if teacher_logits is not None and teacher is not None:
        _with_bias(teacher_logits[block], teacher.bias, buffers[1])
    return buffers[0], buffers[1]


def _accumulated(total: Tensor | None, gradient: Tensor, chunk: Tensor) -> Tensor:
    """The float32 gradient of the weight with one chunk's added; the first product begins it."""
    if total is None:
        return (gradient.T @ chunk).float()
    if chunk.dtype == torch.float32:
        return total.addmm_(gradient.T, chunk)
    return total.add_(gradient.T @ chunk)


def _with_bias(logits: Tensor, bias: Tensor | None, out: Tensor) -> None:
    out.copy_(logits)
    if bias is not None:
        out.add_(bias.detach())


def _block_gradient(
    logits: tuple[Float[Tensor, "n V"], Float[Tensor, "n V"]],
    sparse: SparseRows | None,
    labels: Int[Tensor, " n"],
    part: slice,
    terms: Mapping[str, LogitTerm],
    temperature: float,
    values: dict[str, Tensor],
    scratch: list[Tensor],
) -> Float[Tensor, "n V"]:
    """Add each term's sum over the block to `values`; return the weighted gradient of the logits.

    `logits` are the student's and the teacher's; they stay as they are, `scratch` does not.
    """
    student_logits, teacher_logits = logits
    gradient, *scratch = scratch
    gradient.zero_()
    for name, term in terms.items():
        scale = 1.0
        if name == "language_modeling":
            value, grad = _language_modeling(student_logits, labels, scratch[0])
        elif name == "logit_mse":
            grad = torch.sub(student_logits, teacher_logits, out=scratch[0])
            value = grad.square().mean(-1)
            grad.mul_(2 / grad.shape[-1])
        elif sparse is not None:
            softened = torch.div(student_logits, temperature, out=scratch[2])
            log_q = torch.log_softmax(softened, dim=-1, out=scratch[0])
            value, grad = sparse_soft_target(log_q, sparse)
            value, scale = value * temperature**2, temperature
        else:
            log_p, log_q = (
                torch.log_softmax(torch.div(z, temperature, out=scratch[2]), dim=-1, out=out)
                for z, out in ((teacher_logits, scratch[0]), (student_logits, scratch[1]))
            )
            value, grad = _divergence(name, term, log_p, log_q, scratch[2])
            scale = 1 / temperature
            if name != "total_variation":
                value, scale = value * temperature**2, temperature
        weight = torch.full_like(value, term.coefficient * scale)
        if term.rows is not None:
            value, weight = value * term.rows[part], weight * term.rows[part]
        values[name] += value.sum()
        gradient.addcmul_(grad, weight[:, None])
    return gradient


def _language_modeling(logits: Tensor, labels: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """-log q(label) for each row, and q - onehot(label); nothing where there is no label."""
    has_label = labels != IGNORED
    safe = labels.where(has_label, 0)[:, None]
    log_q = torch.log_softmax(logits, dim=-1, out=out)
    value = -log_q.gather(1, safe).squeeze(1) * has_label
    grad = log_q.exp_().scatter_add_(1, safe, torch.full_like(safe, -1, dtype=log_q.dtype))
    return value, grad.mul_(has_label[:, None])


def _divergence(
    name: str, term: LogitTerm, log_p: Tensor, log_q: Tensor, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """One divergence for each row, and its gradient with respect to the softened student logits.

    The tensors it is given do not survive.
    """
    if name == "soft_target":
        p = torch.exp(log_p, out=scratch)
        value = log_p.sub_(log_q).mul_(p).sum(-1)
        return value, log_q.exp_().sub_(p)
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
