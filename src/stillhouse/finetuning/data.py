"""The training sequences of a task.

Axes: B sequences, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from stillhouse.finetuning.settings import TaskTrainingRecipe
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, collate
from stillhouse.tokens.batches import epoch_order
from stillhouse.training.cost import StepShape
from stillhouse.training.device import micro_batch_sequences, pick_precision


class TaskSource:
    """Units of one sequence, or of several that a loss compares, regrouped in each epoch."""

    def __init__(
        self,
        sequences: Sequence[EncodedExample],
        *,
        pad_token_id: int,
        per_token: bool,
        group: int = 1,
        twice: bool = False,
    ) -> None:
        """Groups of `group` sequences; with `twice` each sequence is followed by its copy."""
        self.sequences = sequences
        self.pad_token_id = pad_token_id
        self.per_token = per_token
        self.group = group
        self.copies = 2 if twice else 1
        self._lengths = np.array([len(each.input_ids) for each in sequences])
        self._groups: dict[tuple[int, int], Int[np.ndarray, "U G"]] = {}

    @property
    def num_sequences(self) -> int:
        """The number of complete units; the remainder differs between epochs."""
        return len(self.sequences) // self.group

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest unit."""
        return int(self._lengths.max()) * self.unit_size

    @property
    def unit_size(self) -> int:
        """Sequences of a unit."""
        return self.group * self.copies

    @property
    def mean_length(self) -> float:
        """Real tokens of a unit."""
        return float(self._lengths.mean()) * self.unit_size

    @property
    def mean_pairs(self) -> float:
        """Pairs of positions that attend to each other in a unit."""
        return float((self._lengths**2).mean()) * self.unit_size

    @property
    def lengths(self) -> Int[np.ndarray, " U"] | None:
        """Tokens of each unit, where units are fixed."""
        return self._lengths if self.group == 1 else None

    def batch(
        self, units: Int[np.ndarray, " U"], epochs: Int[np.ndarray, " U"], seed: int
    ) -> TaskBatch:
        """The given units, each in its epoch."""
        chosen = [
            self.sequences[place]
            for unit, epoch in zip(units.tolist(), epochs.tolist(), strict=True)
            for place in self._places(unit, epoch, seed)
            for _ in range(self.copies)
        ]
        return collate(
            chosen,
            pad_token_id=self.pad_token_id,
            per_token=self.per_token,
            unit_size=self.unit_size,
        )

    def _places(self, unit: int, epoch: int, seed: int) -> list[int]:
        if self.group == 1:
            return [unit]
        if (seed, epoch) not in self._groups:
            order = epoch_order(seed + 1, epoch, len(self.sequences))
            whole = order[: self.num_sequences * self.group]
            self._groups = {(seed, epoch): whole.reshape(-1, self.group)}
        return self._groups[seed, epoch][unit].tolist()


def planned_task_step(
    source: TaskSource, units: int, training: TaskTrainingRecipe, device: torch.device, taught: bool
) -> StepShape:
    """A step of `units` units of average length; the cost of task heads is negligible."""
    at_once = micro_batch_sequences(training.micro_batch_tokens, device, source.sequence_length)
    positions = units * source.mean_length
    return StepShape(
        round(positions),
        units * source.mean_pairs,
        read_rows=positions,
        student_rows=0,
        teacher_rows=0 if taught else None,
        micro_batches=-(-units // at_once),
        precision=pick_precision(training.precision, device),
    )


def subsample(examples: Sequence, number: int | None) -> list:
    """A sample of `number` examples in their order, the same for every model and seed; or all."""
    if number is None or number >= len(examples):
        return list(examples)
    chosen = np.random.default_rng(0).choice(len(examples), number, replace=False)
    return [examples[place] for place in sorted(chosen.tolist())]
