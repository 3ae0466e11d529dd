"""Head and losses in one pass over chunks of rows: exact values and gradients without B x T x V
logits.

For each chunk, the student's and the teacher's logits give every term's value and gradient
(`logit_gradients`), and the gradient is accumulated at once into those of the features, the
projection's weight and its bias. Only one chunk's logits are in memory.

Axes: N rows that count, c rows of a chunk, n rows of a block, b buffers, V vocabulary, D hidden
size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.objectives.chunks import blocks, rows_per_block, rows_per_chunk
from stillhouse.objectives.logit_gradients import (
    SPARSE_TERMS,
    TEACHER_TERMS,
    Block,
    LogitTerm,
    add_gradients,
)
from stillhouse.tokens.batches import SparseRows

BLOCK_BUFFERS = 6  # student, teacher, gradient and three scratch tensors, each (n, V)


@dataclass(frozen=True)
class Projection:
    """Features of the rows that count, and the projection onto the vocabulary."""

    features: Float[Tensor, "N D"]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None


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
        teacher_weight = teacher.weight.to(compute) if isinstance(teacher, Projection) else None
        grad_features = torch.empty_like(features)
        grad_weight = None  # the first chunk's product starts it; without rows it is zero
        if needs_weight and not len(features):
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs_bias else None
        )
        values = {name: features.new_zeros((), dtype=torch.float32) for name in terms}

        chunk_rows = max(1, min(chunk_rows, len(features)))
        block_rows = min(rows_per_block(len(weight), features.device) or chunk_rows, chunk_rows)
        buffers = torch.empty(BLOCK_BUFFERS, block_rows, len(weight), device=features.device)
        one_pass = _Pass(bias, teacher, labels, terms, temperature, values, grad_bias, buffers)

        with torch.autocast(features.device.type, enabled=False):
            for start in range(0, len(features), chunk_rows):
                part = slice(start, start + chunk_rows)
                chunk = features[part].to(compute)
                logits = chunk @ student_weight.T
                teacher_logits = None
                if teacher_weight is not None and isinstance(teacher, Projection):
                    teacher_logits = teacher.features[part].to(compute) @ teacher_weight.T
                one_pass.turn_into_gradients(logits, teacher_logits, start)
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


@dataclass(frozen=True)
class _Pass:
    """Inputs of a pass over the rows beside their logits, and its accumulators."""

    bias: Tensor | None
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
            scratch = list(self.buffers[:, : block.stop - block.start])
            own = _with_bias(logits[block], self.bias, scratch[0])
            teacher: Tensor | SparseRows | None = None
            if isinstance(self.teacher, SparseRows):
                teacher = self.teacher[rows]
            elif teacher_logits is not None and self.teacher is not None:
                teacher = _with_bias(teacher_logits[block], self.teacher.bias, scratch[1])
            gradient = scratch[2].zero_()
            add_gradients(
                gradient,
                Block(own, teacher, self.labels[rows], rows),
                self.terms,
                self.temperature,
                self.values,
                scratch[3:],
            )
            logits[block] = gradient
            if self.grad_bias is not None:
                self.grad_bias.add_(gradient.sum(0))


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


def _with_bias(logits: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """The logits in float32, in the memory of `out`."""
    out.copy_(logits)
    return out if bias is None else out.add_(bias.detach())
