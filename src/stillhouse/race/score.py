"""How close a student is to its teacher on held-out text.

Top-1 agreement stands for what a student generates: at temperature 0 it writes what its teacher
writes as long as their most likely tokens agree. It is taken over the second half of each sequence,
where there is context to copy from.

Axes: B sequences, T positions, R rows.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from stillhouse.evaluation.metrics.agreement import compared
from stillhouse.models.load import load_model
from stillhouse.objectives.divergences.soft_target import soft_target_loss
from stillhouse.tokens.batches import SequenceSource
from stillhouse.training.device import pick_device


@dataclass(frozen=True)
class HeldOut:
    """A student's distance from its teacher; None where its logits are not finite, or no token
    counts.

    Attributes:
        kl: KL(teacher || student) in nats per predicted token.
        top1_agreement: The share of predicted tokens in the second halves of the sequences with the
            same most likely prediction.
    """

    kl: float | None
    top1_agreement: float | None


@torch.inference_mode()
def score(teacher_folder: Path, student_folder: Path, source: SequenceSource) -> HeldOut:
    """Both over the tokens of `agreement.compared`."""
    teacher, student = load_model(teacher_folder), load_model(student_folder)
    for _, model in (teacher, student):
        model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    kl, same, num_rows, num_late = 0.0, 0, 0, 0
    for batch, chunks in compared(teacher, [student], source):
        length = batch.labels.shape[1]
        late = batch.row_numbers("predicted") % length >= length // 2
        start = 0
        for p, q in chunks:
            own = late[start : start + len(p)].to(p.device)
            start += len(p)
            kl += float(soft_target_loss(q, p, temperature=1.0))
            same += int(((p.argmax(-1) == q.argmax(-1)) & own).sum())
            num_late += int(own.sum())
        num_rows += start
    if not math.isfinite(kl):
        return HeldOut(None, None)
    return HeldOut(kl / max(1, num_rows), same / num_late if num_late else None)
