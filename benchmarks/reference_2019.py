"""The distillation step of 2019, stated plainly: what it computes, and what it spends to do so.

Written afresh from a description of Sanh et al. 2019 (arXiv 1910.01108) and its published code.
Both models run in float32 through their own heads, so logits exist for every position of both;
the rows that count are selected from them afterwards. Attention is transformers' default of today,
which is faster than that of 2019: a ratio against this step is a cautious one.

Axes: B sequences, T positions, N rows that count, V vocabulary, D hidden size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from benchmarks.equality import Outcome, outcome_of
from stillhouse.section import Rows
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.training.device import Precision, autocast

TEMPERATURE = 2.0
WEIGHTS = {"soft_target": 5.0, "language_modeling": 2.0, "hidden_cosine": 1.0}
MAX_GRAD_NORM = 5.0


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences padded to the longest of them, in the form of 2019.

    Masked: a label is at its own position. Causal: labels are the tokens themselves,
    which the loss shifts by one. Both are -100 elsewhere.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    causal: bool

    @classmethod
    def of(cls, batch: Batch) -> "PaddedBatch":
        """The same sequences as Stillhouse's own batch, where each position has its own label."""
        real = batch.segment_ids > 0
        labels = batch.input_ids.where(real, IGNORED) if batch.causal else batch.labels
        return cls(batch.input_ids, real.long(), labels, batch.causal)

    def rows(self, rows: Rows) -> Bool[Tensor, "B T"]:
        """All real positions, or those that have something to predict."""
        if rows == "all":
            return self.attention_mask.bool()
        labeled = self.labels != IGNORED
        if self.causal:
            return F.pad(labeled[:, 1:], (0, 1), value=False)
        return labeled

    def num_rows(self, rows: Rows) -> int:
        return int(self.rows(rows).sum())


def reference_losses(
    student: PreTrainedModel, teacher: PreTrainedModel, batch: PaddedBatch, rows: Rows
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted loss of one batch, and each term's mean over its rows.

    `rows` is where the soft targets and the cosine count: 2019's default is all real positions.
    """
    student_logits, student_hidden = _run(student, batch)
    with torch.no_grad():
        teacher_logits, teacher_hidden = _run(teacher, batch)
    counted = batch.rows(rows)
    terms = {
        "soft_target": _soft_target(
            _select(student_logits, counted), _select(teacher_logits, counted)
        ),
        "language_modeling": _language_modeling(student_logits, batch),
        "hidden_cosine": _cosine(
            _select(student_hidden, counted), _select(teacher_hidden, counted)
        ),
    }
    return _weighted(terms), terms


def reference_optimizer(student: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW with the settings of 2019, parameter after parameter."""
    return torch.optim.AdamW(
        student.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0
    )


def reference_outcome(
    student: PreTrainedModel, teacher: PreTrainedModel, batches: Sequence[PaddedBatch], rows: Rows
) -> Outcome:
    """What the step computes over its micro-batches, without dropout, where every row weighs alike.

    (The step of 2019 itself takes the mean of the micro-batches' means.)
    """
    student.eval()
    outcome = None
    totals = {name: sum(batch.num_rows(kind) for batch in batches) for name, kind in _kinds(rows)}
    for batch in batches:
        _, means = reference_losses(student, teacher, batch, rows)
        terms = {
            name: means[name] * batch.num_rows(kind) / totals[name] for name, kind in _kinds(rows)
        }
        part = outcome_of(student, _weighted(terms), terms)
        outcome = part if outcome is None else outcome + part
    assert outcome is not None
    return outcome


def reference_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batches: Sequence[PaddedBatch],
    rows: Rows,
    optimizer: torch.optim.Optimizer,
    precision: Precision = "fp32",
) -> None:
    """One whole training step over its micro-batches: losses, gradients, clipping, update."""
    for batch in batches:
        with autocast(batch.input_ids.device, precision):
            loss, _ = reference_losses(student, teacher, batch, rows)
        (loss / len(batches)).backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad()


def _kinds(rows: Rows) -> list[tuple[str, Rows]]:
    """Each term, and the rows it counts."""
    return [(name, "predicted" if name == "language_modeling" else rows) for name in WEIGHTS]


def _weighted(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * value for name, value in terms.items()]).sum()


def _run(
    model: PreTrainedModel, batch: PaddedBatch
) -> tuple[Float[Tensor, "B T V"], Float[Tensor, "B T D"]]:
    """Logits and last hidden states of every position, padding included."""
    arguments: dict[str, Any] = {"attention_mask": batch.attention_mask}
    if batch.causal:
        # Padding is on the right, which no real position sees: 2019 gave no mask here.
        arguments = {"attention_mask": None, "use_cache": False}
    output = model(input_ids=batch.input_ids, output_hidden_states=True, **arguments)
    return output.logits, output.hidden_states[-1]


def _select(values: Float[Tensor, "B T X"], counted: Bool[Tensor, "B T"]) -> Float[Tensor, "N X"]:
    """Rows that count, by a mask as wide as the values."""
    wide = counted[:, :, None].expand_as(values)
    return values.masked_select(wide).view(-1, values.shape[-1])


def _soft_target(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Temperature^2 times the mean over rows of KL(teacher || student), both softened."""
    log_q = F.log_softmax(student_logits / TEMPERATURE, dim=-1)
    p = F.softmax(teacher_logits / TEMPERATURE, dim=-1)
    return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2


def _language_modeling(logits: Tensor, batch: PaddedBatch) -> Tensor:
    """Mean cross-entropy over labeled positions; every position passes through the softmax."""
    labels = batch.labels
    if batch.causal:
        logits, labels = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), ignore_index=IGNORED)


def _cosine(student_hidden: Tensor, teacher_hidden: Tensor) -> Tensor:
    """Mean over rows of 1 - cos(h_s, h_t)."""
    return F.cosine_embedding_loss(
        student_hidden, teacher_hidden, student_hidden.new_ones(len(student_hidden))
    )
