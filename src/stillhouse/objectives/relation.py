"""The relation term: self-relations of queries, keys and values, student against teacher.

As in `fused`, gradients are computed by formula while the relations of a few heads are in memory,
never all of them.

Axes: B sequences, T positions, D hidden size, r relation heads, d = D / r, n rows that count in the
sequence with most of them, H pairs of a sequence and a head, h pairs of a chunk.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.base import Family, attention_widths
from stillhouse.families.registry import family_of
from stillhouse.objectives.settings import RelationRecipe

KINDS = 3  # queries, keys and values
CHUNK_BYTES = {"cpu": 2**20, "cuda": 256 * 2**20}  # of one float32 tensor (h, n, T)


def relation_loss(
    student: Sequence[Float[Tensor, "B T _"]],
    teacher: Sequence[Float[Tensor, "B T _"]],
    visible: Bool[Tensor, "B T T"],
    rows: Bool[Tensor, "B T"],
    *,
    num_heads: int,
    most_rows: int | None = None,
) -> Float[Tensor, ""]:
    """Sum over rows of KL(teacher || student) between self-relations, in nats.

    Each kind X of vectors (queries, keys, values) is split into `num_heads` heads, whatever the
    models' own number, so their hidden sizes may differ. In one head, row i relates to the
    positions j that it may see by

        p_ij = softmax over j of x_i . x_j / sqrt(d)

    and its loss is sum over j of p_ij * (log p_ij - log q_ij), averaged over heads and kinds.
    Source: Wang et al. 2021 (MiniLMv2), section 3.1.

    Args:
        student: One tensor for each kind. Any precision; losses are taken in float32.
        teacher: The same kinds in the same order.
        visible: True where a row (second to last axis) may see a position (last axis).
        rows: The rows that count. Each must see at least one position.
        most_rows: Rows that count in the sequence with most of them. Counting them here (None)
            waits for the device.
    """
    if most_rows is None:
        most_rows = int(rows.sum(1).max())
    queries = _Queries.of(rows, visible, most_rows)
    pair_bytes = 4 * queries.positions.shape[1] * rows.shape[1]
    chunk_bytes = CHUNK_BYTES.get(rows.device.type, CHUNK_BYTES["cpu"])
    chunk_pairs = max(1, chunk_bytes // max(1, pair_bytes))
    kinds = [
        _RelationKL.apply(ours, theirs, queries, num_heads, chunk_pairs)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(kinds).mean()


@dataclass(frozen=True)
class _Queries:
    """The rows that count and what they see, padded to n with rows that do not count."""

    positions: Int[Tensor, "B n"]
    counted: Bool[Tensor, "B n"]
    visible: Bool[Tensor, "B n T"]

    @classmethod
    def of(cls, rows: Tensor, visible: Tensor, most: int) -> "_Queries":
        positions = rows.int().argsort(dim=1, descending=True, stable=True)[:, :most]
        return cls(positions, rows.gather(1, positions), _gather_rows(visible, positions))

    def of_sequences(self, sequences: Int[Tensor, " h"]) -> "_Queries":
        return _Queries(self.positions[sequences], self.counted[sequences], self.visible[sequences])


class _RelationKL(torch.autograd.Function):
    """One kind: the sum over rows of the mean over heads."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        queries: _Queries,
        num_heads: int,
        chunk_pairs: int,
    ) -> Tensor:
        ours, theirs = _split_heads(student, num_heads), _split_heads(teacher, num_heads)
        gradient = torch.zeros_like(ours)
        sequences = torch.arange(len(ours), device=ours.device) // num_heads
        total = ours.new_zeros(())
        with torch.autocast(ours.device.type, enabled=False):
            for start in range(0, len(ours), chunk_pairs):
                part = slice(start, start + chunk_pairs)
                chunk = queries.of_sequences(sequences[part])
                total += _add_chunk(ours[part], theirs[part], chunk, gradient[part])
        scale = ours.shape[-1] ** -0.25 / num_heads
        ctx.gradient = _join_heads(gradient.mul_(scale), num_heads)
        return total / num_heads

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        # In place: like autograd itself, this goes backward once.
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(grad_outputs[0]), None, None, None, None


def _split_heads(tensor: Float[Tensor, "B T D"], num_heads: int) -> Float[Tensor, "H T d"]:
    """Vectors of each sequence and head, divided by d^(1/4), so that products are scaled."""
    batch, length, size = tensor.shape[0], tensor.shape[1], tensor.shape[2] // num_heads
    heads = tensor.float().view(batch, length, num_heads, size).transpose(1, 2)
    return (heads * size**-0.25).reshape(batch * num_heads, length, size)


def _join_heads(tensor: Float[Tensor, "H T d"], num_heads: int) -> Float[Tensor, "B T D"]:
    pairs, length, size = tensor.shape
    heads = tensor.view(pairs // num_heads, num_heads, length, size).transpose(1, 2)
    return heads.reshape(pairs // num_heads, length, num_heads * size)


def _add_chunk(
    student: Float[Tensor, "h T ds"],
    teacher: Float[Tensor, "h T dt"],
    queries: _Queries,
    gradient: Float[Tensor, "h T ds"],
) -> Float[Tensor, ""]:
    """The chunk's sum; its gradient with respect to `student` is added to `gradient`."""
    student_rows = _gather_rows(student, queries.positions)
    teacher_rows = _gather_rows(teacher, queries.positions)
    log_q = _log_relations(student_rows, student, queries.visible)
    log_p = _log_relations(teacher_rows, teacher, queries.visible)
    p, counted = log_p.exp(), queries.counted[..., None]
    value = log_p.sub_(log_q).mul_(p).mul_(counted).sum()
    grad_scores = log_q.exp_().sub_(p).mul_(counted)
    # A vector is in a score as the row that sees, and as the position that is seen.
    grad_rows = torch.bmm(grad_scores, student)
    gradient.scatter_add_(1, queries.positions[..., None].expand_as(grad_rows), grad_rows)
    gradient.baddbmm_(grad_scores.transpose(1, 2), student_rows)
    return value


def _gather_rows(tensor: Tensor, positions: Tensor) -> Tensor:
    """The rows of (B, T, ...) at positions (B, n), as (B, n, ...)."""
    return tensor.gather(1, positions[..., None].expand(-1, -1, tensor.shape[-1]))


def _log_relations(
    rows: Float[Tensor, "h n d"], positions: Float[Tensor, "h T d"], visible: Bool[Tensor, "h n T"]
) -> Float[Tensor, "h n T"]:
    """Log of each row's distribution over what it sees; finite also where it sees nothing."""
    scores = torch.bmm(rows, positions.transpose(1, 2))
    scores.masked_fill_(~visible, torch.finfo(scores.dtype).min)
    return torch.log_softmax(scores, dim=-1)


@dataclass(frozen=True)
class RelationPlan:
    """The layers that are compared, counted from 0, and the number of relation heads."""

    student_layer: int
    teacher_layer: int
    num_heads: int


def plan_relation(
    recipe: RelationRecipe, student: PretrainedConfig, teacher: PretrainedConfig
) -> RelationPlan:
    """The recipe resolved for two models: by default their last layers, and as many heads as the
    student's attention has.

    Raises:
        RecipeError: a layer that a model does not have, heads that do not divide both hidden
            sizes, or a model whose queries, keys and values cannot be separated.
    """
    for model, config in (("student", student), ("teacher", teacher)):
        if not family_of(config).attention_projections:
            raise RecipeError(
                f"losses.relation compares queries, keys and values, which lie side by side, head "
                f"by head, in the {model}'s architecture, {config.model_type}. Leave "
                "losses.relation out."
            )
    return RelationPlan(
        _layer("student", recipe.student_layer, student.num_hidden_layers),
        _layer("teacher", recipe.teacher_layer, teacher.num_hidden_layers),
        _num_heads(recipe.heads, student, teacher),
    )


def check_relation(
    recipe: RelationRecipe | None, student: PretrainedConfig, teacher: PretrainedConfig
) -> None:
    """Check that these two models can have the relation term.

    Raises:
        RecipeError: as `plan_relation` does.
    """
    if recipe is not None and recipe.weight > 0:
        plan_relation(recipe, student, teacher)


def _layer(model: str, wanted: int | None, num_layers: int) -> int:
    last = num_layers - 1
    if wanted is not None and wanted > last:
        raise RecipeError(
            f"losses.relation.{model}_layer is {wanted}, but the {model} has layers 0 to {last}. "
            f"Choose one of those, or leave the key out for the last."
        )
    return last if wanted is None else wanted


def _num_heads(wanted: int | None, student: PretrainedConfig, teacher: PretrainedConfig) -> int:
    num_heads = wanted or student.num_attention_heads
    widths = [attention_widths(config) for config in (student, teacher)]
    common = math.gcd(*widths[0], *widths[1])
    if common % num_heads == 0:
        return num_heads
    given = str(wanted) if wanted else f"left out, so it is the student's own {num_heads}"
    nearest = max(count for count in range(1, num_heads + 1) if common % count == 0)
    ours, theirs = (" and ".join(map(str, dict.fromkeys(each))) for each in widths)
    raise RecipeError(
        f"losses.relation.heads is {given}, but it must divide the hidden sizes of "
        f"the student ({ours}) and of the teacher ({theirs}). Set it "
        f"to {nearest}, or to another number that divides both."
    )


class QKVHook:
    """Captures one layer's queries, keys and values, each (B, T, D), while it is open.

    The hooks stay on the layer: a compiled body traces the hooks of its first run and ignores later
    ones. Create the hook before that run.
    """

    def __init__(self, family: Family, model: PreTrainedModel, layer: int) -> None:
        parent = family.layers_of(model)[layer]
        queries, keys = attention_widths(model.config)
        is_fused = len(family.attention_projections) == 1
        self._widths = [queries, keys, keys] if is_fused else None
        self._captured: list[Tensor] | None = None
        for name in family.attention_projections:
            parent.get_submodule(name).register_forward_hook(self._capture)

    @contextmanager
    def open(self) -> Iterator[list[Tensor]]:
        """A list that a forward pass fills; the hook keeps no reference to it afterwards."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured = None

    def _capture(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        # DeBERTa projects relative positions too, by the same modules and afterwards.
        if self._captured is not None and len(self._captured) < KINDS:
            split = [output] if self._widths is None else output.split(self._widths, dim=-1)
            self._captured.extend(split)


class RelationTerm:
    """Captures the compared layers of a live teacher and of its student in their forward passes."""

    def __init__(
        self, recipe: RelationRecipe, teacher_family: Family, teacher: PreTrainedModel
    ) -> None:
        self.recipe = recipe
        self.teacher_family = teacher_family
        self.teacher = teacher
        # Student's hook, teacher's hook, number of relation heads.
        self._hooks: WeakKeyDictionary[PreTrainedModel, tuple[QKVHook, QKVHook, int]] = (
            WeakKeyDictionary()
        )

    @contextmanager
    def watch(
        self, family: Family, student: PreTrainedModel
    ) -> Iterator[Callable[..., Float[Tensor, ""]]]:
        """Within this context each body runs once; then the given `relation_loss` of their queries,
        keys and values takes `visible`, `rows` and `most_rows`.

        Raises:
            RecipeError: as `plan_relation` does.
        """
        if student not in self._hooks:
            plan = plan_relation(self.recipe, student.config, self.teacher.config)
            self._hooks[student] = (
                QKVHook(family, student, plan.student_layer),
                QKVHook(self.teacher_family, self.teacher, plan.teacher_layer),
                plan.num_heads,
            )
        of_student, of_teacher, num_heads = self._hooks[student]
        with of_student.open() as ours, of_teacher.open() as theirs:
            yield partial(relation_loss, ours, theirs, num_heads=num_heads)
