"""A teacher cache for one batch, on disk and in the format of `stillhouse.tokens.teacher_cache`."""

import dataclasses
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stillhouse.distillation.cache import teacher_rows
from stillhouse.objectives.language_model import Teacher, project
from stillhouse.runs.manifest import Inputs, commit_folder, commit_parts
from stillhouse.section import Rows
from stillhouse.tokens.batches import Batch
from stillhouse.tokens.settings import CacheKind
from stillhouse.tokens.teacher_cache import CacheFormat, TeacherCache, part_folder, write_rows
from stillhouse.training.device import Precision, autocast

KIND: CacheKind = "sampled"
SIZE = 32


class CachedTeacher:
    """A teacher's outputs for a batch, written once and read from disk at every step."""

    def __init__(
        self,
        teacher: Teacher,
        batch: Batch,
        rows: Rows,
        *,
        temperature: float,
        hidden: bool,
        kind: CacheKind = KIND,
        size: int = SIZE,
        seed: int = 0,
    ) -> None:
        self._batch = batch
        self._folder = tempfile.TemporaryDirectory(prefix="teacher-cache-")
        model = teacher.model.config
        layout = CacheFormat(
            kind,
            min(size, model.vocab_size),
            rows,
            model.vocab_size,
            model.hidden_size if hidden else None,
            sequences_per_part=len(batch.input_ids),
        )
        generator = torch.Generator().manual_seed(seed)
        taught = teacher_rows(
            teacher,
            batch,
            layout,
            torch.rand(batch.num_rows(rows), generator=generator),
            temperature=temperature,
            precision=precision_of(teacher),
        )
        folder, inputs = Path(self._folder.name), Inputs("teacher-cache", {}, {})
        with commit_folder(part_folder(folder, 0), inputs) as temporary:
            write_rows(temporary, taught, batch.rows(rows).sum(1).numpy(), layout)
        commit_parts(folder, inputs, {"format": asdict(layout), "num_parts": 1})
        self._cache = TeacherCache(folder)

    @property
    def bytes_per_row(self) -> int:
        return self._cache.layout.bytes_per_row

    def batch(self) -> Batch:
        """The batch with its teacher's rows, as in training."""
        sequences = np.arange(len(self._batch.input_ids))
        return dataclasses.replace(self._batch, teacher=self._cache.rows(sequences))


def precision_of(teacher: Teacher) -> Precision:
    """The precision of the teacher's weights."""
    return "bf16" if next(teacher.model.parameters()).dtype == torch.bfloat16 else "fp32"


@torch.inference_mode()
def teacher_logits(teacher: Teacher, batch: Batch, rows: Rows) -> tuple[Tensor, Tensor]:
    """The teacher's last hidden states (N, D) and logits (N, V) at the rows that count."""
    with autocast(torch.device("cpu"), precision_of(teacher)):
        hidden = teacher.family.run_rows(teacher.model, batch, rows)
        head = project(teacher.family, teacher.model, hidden)
        return hidden, torch.nn.functional.linear(head.features, head.weight, head.bias)
