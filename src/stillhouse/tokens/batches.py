"""Batches: what a training step reads, as a pure function of (seed, step).

The order of sequences is a permutation per epoch, drawn from (seed, epoch); step k takes the next
sequences of that endless order, whatever happened before. There is no loader state to save or lose.

Axes: B sequences, T positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from stillhouse.errors import DataError
from stillhouse.section import Rows
from stillhouse.tokens.teacher_rows import TeacherRows, move

IGNORED = -100  # the label of a position that is not predicted
EVERYTHING = slice(None)


@dataclass(frozen=True)
class Batch:
    """Some sequences, ready for a model.

    `segment_ids` number the documents packed into a sequence from 1; 0 is padding. A position sees
    only its own segment, and with `causal` only itself and what stands before it.
    `uniform` says that every position is real and of one segment, so no mask is needed.
    `teacher` is what a cache says of the rows, where there is one.
    """

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    segment_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    causal: bool
    uniform: bool
    teacher: TeacherRows | None = None
    _numbers: dict[Rows, Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _most: dict[Rows, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def visible(self) -> Bool[Tensor, "B T T"]:
        """True where a query (second to last axis) may see a key (last axis)."""
        same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        return same.tril() if self.causal else same

    def attention_mask(self) -> Bool[Tensor, "B 1 T T"] | None:
        """What is visible, for every attention head; None where a model knows by itself."""
        return None if self.uniform else self.visible()[:, None]

    def rows(self, rows: Rows) -> Bool[Tensor, "B T"]:
        """The positions that count: all that are real, or those that have a label."""
        return self.segment_ids > 0 if rows == "all" else self.labels != IGNORED

    def row_numbers(self, rows: Rows) -> Int[Tensor, " N"]:
        """Which of the B * T positions count, in order: `rows` as numbers, found once."""
        if rows not in self._numbers:
            self._numbers[rows] = self.rows(rows).flatten().nonzero().squeeze(1)
        return self._numbers[rows]

    def num_rows(self, rows: Rows) -> int:
        return len(self.row_numbers(rows))

    def most_rows(self, rows: Rows) -> int:
        """How many rows count in the sequence with most of them, found once."""
        if rows not in self._most:
            self._most[rows] = int(self.rows(rows).sum(1).max())
        return self._most[rows]

    def to(self, device: torch.device) -> "Batch":
        """The same there. Rows are numbered before: finding them on a GPU would wait for it."""
        moved = replace(
            self,
            input_ids=move(self.input_ids, device),
            labels=move(self.labels, device),
            segment_ids=move(self.segment_ids, device),
            position_ids=move(self.position_ids, device),
            teacher=None if self.teacher is None else self.teacher.to(device),
        )
        for rows in get_args(Rows):
            moved._numbers[rows] = move(self.row_numbers(rows), device)
            moved._most[rows] = self.most_rows(rows)
        return moved

    def split(self, sequences: int) -> Iterator["Batch"]:
        """Micro-batches of at most `sequences` sequences each, in order."""
        first_row = 0
        for start in range(0, len(self.input_ids), sequences):
            part = slice(start, start + sequences)
            taught = None
            if self.teacher is not None:
                rows = slice(first_row, first_row + int(self.rows(self.teacher.rows)[part].sum()))
                taught, first_row = self.teacher[rows], rows.stop
            yield replace(
                self,
                input_ids=self.input_ids[part],
                labels=self.labels[part],
                segment_ids=self.segment_ids[part],
                position_ids=self.position_ids[part],
                teacher=taught,
            )

    def blank(self) -> "Batch":
        """The same sequences as padding: no row counts, so that they teach nothing."""
        return replace(
            self,
            labels=torch.full_like(self.labels, IGNORED),
            segment_ids=torch.zeros_like(self.segment_ids),
            uniform=False,
            teacher=None if self.teacher is None else self.teacher[0:0],
        )


@runtime_checkable
class AnyBatch(Protocol):
    """What training needs of a batch, whatever a model reads of it."""

    def num_rows(self, rows: Any) -> int: ...  # of a kind that its objective counts

    def to(self, device: torch.device) -> Any: ...

    def split(self, sequences: int) -> Iterator[Any]: ...

    def blank(self) -> Any: ...


@runtime_checkable
class AnySource(Protocol):
    """What training needs of its data: units by number, of at most so many tokens; what a visit
    sees may depend on (seed, epoch)."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def sequence_length(self) -> int: ...

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int, /) -> Any: ...


@runtime_checkable
class SequenceSource(AnySource, Protocol):
    """Sequences of one split."""

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The given sequences, each at its epoch, as one batch."""
        ...


def epoch_order(seed: int, epoch: int, num_sequences: int) -> np.ndarray:
    """The order in which one epoch visits the sequences: a permutation drawn from (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(key=visit_key(seed, epoch, 2**64 - 1)))
    return generator.permutation(num_sequences)


def visit_key(seed: int, epoch: int, sequence: int) -> np.ndarray:
    """The random key of one visit to one sequence: two 64-bit words, distinct for each visit."""
    return np.array([(seed % 2**32) << 32 | epoch % 2**32, sequence], dtype=np.uint64)


class StepBatches:
    """The sequences of every optimizer step of a run, as a pure function of (seed, step)."""

    def __init__(
        self,
        source: AnySource,
        *,
        seed: int,
        sequences_per_step: int,
        num_samples: int,
        lengths: np.ndarray | None = None,
    ) -> None:
        """With `lengths`, tokens of each sequence, those of a step stand in the order of theirs: a
        micro-batch then has little padding."""
        if source.num_sequences < sequences_per_step:
            raise DataError(
                f"The training text gives {source.num_sequences} sequences of "
                f"{source.sequence_length} tokens, "
                f"fewer than the {sequences_per_step} of one optimizer step. Add text, or lower "
                "tokens_per_step "
                f"(to at most {source.num_sequences * source.sequence_length}) or "
                "tokens.sequence_length."
            )
        self.source = source
        self.seed = seed
        self.sequences_per_step = sequences_per_step
        self.num_samples = num_samples
        self.lengths = lengths
        self._orders: dict[int, np.ndarray] = {}

    @property
    def num_steps(self) -> int:
        return -(-self.num_samples // self.sequences_per_step)

    def samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequence numbers and their epochs for `step` (counted from 0); the last step may be
        short."""
        first = step * self.sequences_per_step
        samples = np.arange(first, min(first + self.sequences_per_step, self.num_samples))
        epochs, places = np.divmod(samples, self.source.num_sequences)
        needed = set(epochs.tolist())
        self._orders = {
            epoch: self._orders[epoch]
            if epoch in self._orders
            else epoch_order(self.seed, epoch, self.source.num_sequences)
            for epoch in needed
        }
        sequences = np.array(
            [self._orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]
        )
        if self.lengths is not None:
            order = np.argsort(self.lengths[sequences], kind="stable")
            sequences, epochs = sequences[order], epochs[order]
        return sequences, epochs

    def step(self, step: int, part: slice = EVERYTHING) -> Any:
        """The batch of one optimizer step, or some of its sequences (at least one)."""
        sequences, epochs = self.samples(step)
        return self.source.batch(sequences[part], epochs[part], self.seed)
