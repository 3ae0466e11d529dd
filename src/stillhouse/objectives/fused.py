"""Head and losses in one pass over chunks of rows: exact values and gradients without B x T x V
logits.

For each chunk, the student's and the teacher's logits give every term's value and gradient by
formula, block by block, and the gradient is accumulated at once into those of the features, the
projection's weight and its bias. Only one chunk's logits are in memory.

With z = student logits / temperature and q = softmax(z), a gradient g with respect to q becomes
q * (g - sum_V q * g) with respect to z. Soft targets and language modeling are cross entropies,
whose gradient is mass * q - target; where they have one temperature they share one softmax. The
other divergences bring their own gradients, or are differentiated by autograd.

Axes: N rows that count, c rows of a chunk, n rows of a block, V vocabulary, D hidden size, k tokens
kept of a cached teacher.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.objectives.chunks import blocks, rows_per_block, rows_per_chunk
from stillhouse.objectives.divergence import LogitPair, log_softmax
from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.objectives.sparse import sparse_soft_target
from stillhouse.tokens.batches import IGNORED, SparseRows

BLOCK_BUFFERS = 6  # student, teacher, gradient and three scratch tensors, each (n, V)
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
class Projection:
    """Features of the rows that count, and the projection onto the vocabulary.

    With a softcap c, logits are c * tanh(product / c).
    """

    features: Float[Tensor, "N D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None = None


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
        Sum over terms of coefficient * value, and the values by name.
    """
    served = {Projection: TEACHER_TERMS, SparseRows: SPARSE_TERMS}.get(type(teacher), ())
    if unserved := sorted(set(terms) - {"language_modeling", *served}):
        raise ValueError(f"terms {unserved} need a teacher, or a live one")
    features, bias = student.features, student.bias
    size, device = len(student.weight), features.device
    chunk_rows = max(1, min(chunk_rows or rows_per_chunk(size, device), len(features)))
    block_rows = min(rows_per_block(size, device) or chunk_rows, chunk_rows)
    one_pass = _Pass(
        bias,
        student.softcap,
        teacher,
        labels,
        terms,
        temperature,
        values={name: features.new_zeros((), dtype=torch.float32) for name in terms},
        grad_bias=torch.zeros_like(bias, dtype=torch.float32)
        if bias is not None and bias.requires_grad
        else None,
        buffers=torch.empty(BLOCK_BUFFERS, block_rows, size, device=device),
    )
    total, *values = _FusedLosses.apply(features, student.weight, bias, one_pass, chunk_rows)
    return total, dict(zip(terms, values, strict=True))


class _FusedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        one_pass: "_Pass",
        chunk_rows: int,
    ) -> tuple[Tensor, ...]:
        compute, teacher, grad_bias = _compute_dtype(features), one_pass.teacher, one_pass.grad_bias
        student_weight = weight.detach().to(compute)
        live = None
        if isinstance(teacher, Projection):
            live = replace(teacher, weight=teacher.weight.to(compute))
        grad_features = torch.empty_like(features)
        grad_weight = None  # the first chunk's product starts it; without rows it is zero
        if weight.requires_grad and not len(features):
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(features), chunk_rows):
                part = slice(start, start + chunk_rows)
                chunk = features[part].to(compute)
                logits = chunk @ student_weight.T
                teacher_logits = live and live.features[part].to(compute) @ live.weight.T
                one_pass.turn_into_gradients(logits, teacher_logits, start)
                grad_features[part] = (logits @ student_weight).to(grad_features.dtype)
                if weight.requires_grad:
                    grad_weight = _accumulated(grad_weight, logits, chunk)
        ctx.gradients = (
            grad_features,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        )
        total = sum(
            (term.coefficient * one_pass.values[name] for name, term in one_pass.terms.items()),
            start=features.new_zeros((), dtype=torch.float32),
        )
        outputs = tuple(one_pass.values.values())
        ctx.mark_non_differentiable(*outputs)
        return (total, *outputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        # In place: like autograd itself, this goes backward once.
        saved, ctx.gradients = ctx.gradients, None
        gradients = [None if grad is None else grad.mul_(grad_outputs[0]) for grad in saved]
        return (*gradients, None, None)


def _compute_dtype(features: Tensor) -> torch.dtype:
    """The precision of the matrix products: autocast's where it is on, else the features' own."""
    if torch.is_autocast_enabled(features.device.type):
        return torch.get_autocast_dtype(features.device.type)
    return features.dtype


def _accumulated(total: Tensor | None, gradient: Tensor, chunk: Tensor) -> Tensor:
    """The weight's float32 gradient with one chunk's added; None starts it."""
    if total is None:
        return (gradient.T @ chunk).float()
    if chunk.dtype == torch.float32:
        return total.addmm_(gradient.T, chunk)
    return total.add_(gradient.T @ chunk)


@dataclass(frozen=True)
class _Block:
    """A block of rows: float32 logits, or a cached teacher's tokens; `rows` is its place.

    The terms add their weighted gradients to `gradient` and overwrite the three scratch tensors.
    """

    student: Float[Tensor, "n V"]
    teacher: Float[Tensor, "n V"] | SparseRows | None
    rows: slice
    gradient: Float[Tensor, "n V"]
    scratch: list[Tensor]

    def counted(self, term: LogitTerm) -> Float[Tensor, " n"]:
        """One where a row counts, else zero."""
        ones = torch.ones_like(self.student[:, 0])
        return ones if term.rows is None else ones * term.rows[self.rows]


@dataclass(frozen=True)
class _Pass:
    """Inputs of a pass over the rows beside their logits, and its accumulators."""

    bias: Tensor | None
    softcap: float | None
    teacher: Projection | SparseRows | None
    labels: Tensor
    terms: Mapping[str, LogitTerm]
    temperature: float
    values: dict[str, Tensor]
    grad_bias: Tensor | None
    buffers: Float[Tensor, "b n V"]

    def turn_into_gradients(
        self, logits: Float[Tensor, "c V"], teacher_logits: Float[Tensor, "c V"] | None, first: int
    ) -> None:
        """Replace a chunk's logits by their gradients, block by block.

        Args:
            first: Index of the chunk's first row.
        """
        for block in blocks(len(logits), self.buffers.shape[1]):
            rows = slice(first + block.start, first + block.stop)
            own, other, gradient, *scratch = self.buffers[:, : block.stop - block.start]
            _complete(logits[block], self.bias, self.softcap, own)
            teacher: Tensor | SparseRows | None = None
            if isinstance(self.teacher, SparseRows):
                teacher = self.teacher[rows]
            elif teacher_logits is not None and self.teacher is not None:
                bias, softcap = self.teacher.bias, self.teacher.softcap
                teacher = _complete(teacher_logits[block], bias, softcap, other)
            gradient.zero_()
            self._add_gradients(_Block(own, teacher, rows, gradient, scratch))
            if self.softcap is not None:  # the derivative of c * tanh(x / c) is 1 - tanh(x / c)^2
                gradient.mul_(1 - own.div_(self.softcap).square_())
            logits[block] = gradient
            if self.grad_bias is not None:
                self.grad_bias.add_(gradient.sum(0))

    def _add_gradients(self, block: _Block) -> None:
        """Add the terms' weighted gradients to the block's, and each term's own sum to `values`."""
        for name, term in self.terms.items():
            if name not in CROSS_ENTROPIES:
                self._add_divergence(block, name, term)
        own = {"soft_target": self.temperature, "language_modeling": 1.0}
        for temperature in sorted(set(own.values())):
            chosen = {
                name: self.terms[name]
                for name in own
                if own[name] == temperature and name in self.terms
            }
            if chosen:
                self._add_cross_entropies(block, chosen, temperature)

    def _add_divergence(self, block: _Block, name: str, term: LogitTerm) -> None:
        assert isinstance(block.teacher, Tensor)
        divergence, counted = DIVERGENCES[name], block.counted(term)
        if divergence.gradient is not None:
            pair = LogitPair(block.student, block.teacher, self.temperature, block.scratch)
            value, grad = divergence.gradient(pair, **term.settings)
            block.gradient.addcmul_(grad, term.coefficient * counted[:, None])
            self.values[name] += (value * counted).sum()
            return
        rows = counted.nonzero()[:, 0]
        with torch.enable_grad():
            student = block.student[rows].requires_grad_()
            total = divergence.loss(
                student, block.teacher[rows], temperature=self.temperature, **term.settings
            )
            (grad,) = torch.autograd.grad(total, student)
        block.gradient.index_add_(0, rows, grad, alpha=term.coefficient)
        self.values[name] += total.detach()

    def _add_cross_entropies(
        self, block: _Block, terms: Mapping[str, LogitTerm], temperature: float
    ) -> None:
        """Soft targets, language modeling or both, at one temperature."""
        log_q = log_softmax(block.student, temperature, out=block.scratch[0])
        mass = torch.zeros_like(log_q[:, 0])
        teacher, kept = block.teacher, None
        if soft := terms.get("soft_target"):
            if isinstance(teacher, SparseRows):
                kept = log_q.gather(1, teacher.ids)
            else:
                assert teacher is not None
                log_p = log_softmax(teacher, temperature, out=block.scratch[1])
                p = torch.exp(log_p, out=block.scratch[2])
                value = log_p.sub_(log_q).mul_(p).sum(-1)
                counted = block.counted(soft)
                self.values["soft_target"] += temperature**2 * (value * counted).sum()
                weights = temperature * soft.coefficient * counted
                block.gradient.addcmul_(p, -weights[:, None])
                mass += weights
        if hard := terms.get("language_modeling"):
            labels = self.labels[block.rows]
            counted = block.counted(hard) * (labels != IGNORED)
            labels = labels.clamp_min(0)[:, None]
            self.values["language_modeling"] -= (log_q.gather(1, labels)[:, 0] * counted).sum()
            weights = hard.coefficient * counted
            mass += weights
            block.gradient.scatter_add_(1, labels, -weights[:, None])
        q = log_q.exp_()
        if soft is not None and kept is not None and isinstance(teacher, SparseRows):
            value, sparse_mass, at_ids = sparse_soft_target(q, kept, teacher)
            counted = block.counted(soft)
            self.values["soft_target"] += temperature**2 * (value * counted).sum()
            weights = temperature * soft.coefficient * counted
            block.gradient.scatter_add_(1, teacher.ids, weights[:, None] * at_ids)
            mass += weights * sparse_mass
        block.gradient.addcmul_(q, mass[:, None])


def _complete(logits: Tensor, bias: Tensor | None, softcap: float | None, out: Tensor) -> Tensor:
    """The logits from their products, in float32 and in the memory of `out`."""
    out.copy_(logits)
    if bias is not None:
        out.add_(bias.detach())
    # `families.attention.softcapped`, in place
    return out if softcap is None else out.div_(softcap).tanh_().mul_(softcap)
