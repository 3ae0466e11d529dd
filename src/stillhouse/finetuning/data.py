"""The sequences of a task as a training reads them.

Axes: B sequences, T tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int

from stillhouse.finetuning.settings import TaskTrainingRecipe
from stillhouse.tasks.encoded import EncodedExample, TaskBatch, collate
from stillhouse.tokens.batches import epoch_order
from stillhouse.training.device import micro_batch_sequences, pick_precision
from stillhouse.training.work import StepShape


class TaskSource:
    """Units of one sequence; or of several that are compared with each other, drawn anew each
    epoch."""

    def __init__(
        self,
        sequences: Sequence[EncodedExample],
        *,
        pad_token_id: int,
        per_token: bool,
        group: int = 1,
        twice: bool = False,
    ) -> None:
        """Groups of so many sequences; with `twice` each one stands beside itself."""
        self.sequences = sequences
        self.pad_token_id = pad_token_id
        self.per_token = per_token
        self.group = group
        self.copies = 2 if twice else 1
        self._lengths = np.array([len(each.input_ids) for each in sequences])
        self._groups: dict[tuple[int, int], Int[np.ndarray, "U G"]] = {}

    @property
    def num_sequences(self) -> int:
        """Whole units; what is left over waits for another epoch's draw."""
        return len(self.sequences) // self.group

    @property
    def sequence_length(self) -> int:
        """Tokens of the longest unit."""
        return int(self._lengths.max()) * self.together

    @property
    def together(self) -> int:
        """Sequences of a unit."""
        return self.group * self.copies

    @property
    def mean_length(self) -> float:
        """Real tokens of a unit."""
        return float(self._lengths.mean()) * self.together

    @property
    def mean_pairs(self) -> float:
        """Positions of a unit, each with the positions of its sequence that it sees."""
        return float((self._lengths**2).mean()) * self.together

    @property
    def lengths(self) -> Int[np.ndarray, " U"] | None:
        """Tokens of each unit, where a unit is always the same."""
        return self._lengths if self.group == 1 else None

    def batch(
        self, units: Int[np.ndarray, " U"], epochs: Int[np.ndarray, " U"], seed: int
    ) -> TaskBatch:
        """The given units, each at its epoch."""
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
            together=self.together,
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
    """A step of so many units of average length; heads of tasks cost next to nothing."""
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
    """So many of the examples, in their order, drawn the same for every model and seed; or all."""
    if number is None or number >= len(examples):
        return list(examples)
    chosen = np.random.default_rng(0).choice(len(examples), number, replace=False)
    return [examples[place] for place in sorted(chosen.tolist())]
