"""Batches: the sequences of each training step, as a pure function of (seed, step), with the cached
outputs of the teacher where there are some.

The order of sequences is a random permutation per epoch, which follows from (seed, epoch); step k
takes the next sequences of that endless order. There is no data loader state to save or restore.

Axes: B sequences, T positions; N rows that a cache holds, k tokens kept of each, D the teacher's
hidden size.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.errors import DataError
from stillhouse.section import Rows
from stillhouse.tokens.settings import CacheKind

IGNORED = -100  # the label of a position that is not predicted
EVERYTHING = slice(None)

Pick = slice | Int[Tensor, " n"]
RowIndex = Mapping[Rows, tuple[Int[Tensor, " N"], int]]


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from pinned memory to a GPU, since other copies would wait for it."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=device.type == "cuda")


@dataclass(frozen=True)
class SparseRows:
    """A teacher's distribution over the vocabulary, as k tokens of each row.

    `rest` is, for `top_k`, the probability of all other tokens; for `sampled`, the teacher's
    negative entropy sum p log p, in nats.
    """

    kind: CacheKind
    ids: Int[Tensor, "N k"]
    weights: Float[Tensor, "N k"]
    rest: Float[Tensor, " N"]

    def __getitem__(self, pick: Pick) -> "SparseRows":
        return SparseRows(self.kind, self.ids[pick], self.weights[pick], self.rest[pick])

    @classmethod
    def join(cls, parts: Sequence["SparseRows"]) -> "SparseRows":
        """Concatenate rows, in order."""
        columns = zip(*((part.ids, part.weights, part.rest) for part in parts), strict=True)
        return cls(parts[0].kind, *map(torch.cat, columns))

    def to(self, device: torch.device) -> "SparseRows":
        columns = (self.ids, self.weights, self.rest)
        return SparseRows(self.kind, *(move(tensor, device) for tensor in columns))


@dataclass(frozen=True)
class TeacherRows:
    """The teacher's outputs for the rows of a batch, in order.

    Args:
        rows: Which rows of the batch these are.
        hidden: The last hidden states, where a loss needs them.
    """

    rows: Rows
    targets: SparseRows
    hidden: Float[Tensor, "N D"] | None

    def __getitem__(self, pick: Pick) -> "TeacherRows":
        hidden = None if self.hidden is None else self.hidden[pick]
        return TeacherRows(self.rows, self.targets[pick], hidden)

    @classmethod
    def join(cls, parts: Sequence["TeacherRows"]) -> "TeacherRows":
        """Concatenate rows, in order."""
        hidden = [part.hidden for part in parts if part.hidden is not None]
        targets = SparseRows.join([part.targets for part in parts])
        return cls(parts[0].rows, targets, torch.cat(hidden) if hidden else None)

    def to(self, device: torch.device) -> "TeacherRows":
        hidden = None if self.hidden is None else move(self.hidden, device)
        return TeacherRows(self.rows, self.targets.to(device), hidden)


@dataclass(frozen=True)
class Batch:
    """Sequences as a model reads them.

    Args:
        segment_ids: Number the documents packed into a sequence from 1; 0 is padding. A position
            attends to its own segment only and, if `causal`, to no later position.
        uniform: Every position is real and of one segment, so that no attention mask is needed.
        teacher: The cached outputs of the teacher for the batch's rows, if there is a cache.
        row_index: For each kind of rows their indices among the B * T positions and the number of
            those in the sequence that has most of them; found here if not given.
    """

    input_ids: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    segment_ids: Int[Tensor, "B T"]
    position_ids: Int[Tensor, "B T"]
    causal: bool
    uniform: bool
    teacher: TeacherRows | None = None
    row_index: InitVar[RowIndex | None] = None
    _row_index: RowIndex = field(init=False, repr=False, compare=False)

    def __post_init__(self, row_index: RowIndex | None) -> None:
        if row_index is None:
            masks = {rows: self.rows(rows) for rows in get_args(Rows)}
            row_index = {
                rows: (mask.flatten().nonzero().squeeze(1), int(mask.sum(1).max()))
                for rows, mask in masks.items()
            }
        object.__setattr__(self, "_row_index", row_index)

    def visible(self) -> Bool[Tensor, "B T T"]:
        """True where a query (second to last axis) attends to a key (last axis)."""
        same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        return same.tril() if self.causal else same

    def attention_mask(self) -> Bool[Tensor, "B 1 T T"] | None:
        """The same mask for every attention head; None where a model needs none."""
        return None if self.uniform else self.visible()[:, None]

    def rows(self, rows: Rows) -> Bool[Tensor, "B T"]:
        """True at the positions of this kind: those that are not padding, or those with a label."""
        return self.segment_ids > 0 if rows == "all" else self.labels != IGNORED

    def row_numbers(self, rows: Rows) -> Int[Tensor, " N"]:
        """The indices of the rows among the B * T positions, in order."""
        return self._row_index[rows][0]

    def num_rows(self, rows: Rows) -> int:
        return len(self.row_numbers(rows))

    def most_rows(self, rows: Rows) -> int:
        """The number of rows in the sequence that has most of them."""
        return self._row_index[rows][1]

    def to(self, device: torch.device) -> "Batch":
        """The batch on a device, with its row indices: a GPU would be waited for to find them."""
        return replace(
            self,
            input_ids=move(self.input_ids, device),
            labels=move(self.labels, device),
            segment_ids=move(self.segment_ids, device),
            position_ids=move(self.position_ids, device),
            teacher=None if self.teacher is None else self.teacher.to(device),
            row_index={
                rows: (move(numbers, device), most)
                for rows, (numbers, most) in self._row_index.items()
            },
        )

    def split(self, sequences: int) -> Iterator["Batch"]:
        """Micro-batches of at most `sequences` sequences each, in order."""
        first_row = 0
        for start in range(0, len(self.input_ids), sequences):
            part = slice(start, start + sequences)
            teacher = None
            if self.teacher is not None:
                rows = slice(first_row, first_row + int(self.rows(self.teacher.rows)[part].sum()))
                teacher, first_row = self.teacher[rows], rows.stop
            yield replace(
                self,
                input_ids=self.input_ids[part],
                labels=self.labels[part],
                segment_ids=self.segment_ids[part],
                position_ids=self.position_ids[part],
                teacher=teacher,
            )

    def blank(self) -> "Batch":
        """The same sequences as padding: without rows, they give neither loss nor gradient."""
        return replace(
            self,
            labels=torch.full_like(self.labels, IGNORED),
            segment_ids=torch.zeros_like(self.segment_ids),
            uniform=False,
            teacher=None if self.teacher is None else self.teacher[0:0],
        )


@runtime_checkable
class AnyBatch(Protocol):
    """What training needs of a batch, whatever a model reads from it."""

    def num_rows(self, rows: Any) -> int:
        """The number of rows of a kind that the objective knows."""
        ...

    def to(self, device: torch.device) -> Any:
        """The batch on a device."""

    def split(self, sequences: int) -> Iterator[Any]:
        """Micro-batches of at most `sequences` sequences."""
        ...

    def blank(self) -> Any:
        """The batch as padding, without rows."""


@runtime_checkable
class AnySource(Protocol):
    """What training needs of its data: sequences by number, of at most `sequence_length` tokens,
    whose content may depend on (seed, epoch)."""

    @property
    def num_sequences(self) -> int: ...

    @property
    def sequence_length(self) -> int: ...

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int, /) -> Any:
        """The given sequences, each as in its epoch, as one batch."""


@runtime_checkable
class SequenceSource(AnySource, Protocol):
    """The packed sequences of one split."""

    @property
    def parts(self) -> Mapping[str, range]:
        """The sequences of each part of the text; none of a text without parts."""
        ...

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The given sequences, each as in its epoch, as one batch."""
        ...


@lru_cache(maxsize=2)  # a step is of one epoch, or of two
def epoch_order(seed: int, epoch: int, num_sequences: int) -> np.ndarray:
    """The order of the sequences in an epoch: a random permutation for each (seed, epoch)."""
    generator = np.random.Generator(np.random.Philox(key=sample_key(seed, epoch, 2**64 - 1)))
    return generator.permutation(num_sequences)


def sample_key(seed: int, epoch: int, sequence: int) -> np.ndarray:
    """The random key of a sequence in an epoch: two 64-bit words, distinct for each sample."""
    return np.array([(seed % 2**32) << 32 | epoch % 2**32, sequence], dtype=np.uint64)


@dataclass(frozen=True)
class StepBatches:
    """The sequences of every optimizer step of a run, as a pure function of (seed, step).

    Args:
        lengths: Tokens of each sequence; the sequences of a step are then sorted by length, so that
            micro-batches have little padding.
    """

    source: AnySource
    _: KW_ONLY
    seed: int
    sequences_per_step: int
    num_samples: int
    lengths: np.ndarray | None = None

    def __post_init__(self) -> None:
        source = self.source
        if source.num_sequences < self.sequences_per_step:
            raise DataError(
                f"The training text gives {source.num_sequences} sequences of "
                f"{source.sequence_length} tokens, "
                f"fewer than the {self.sequences_per_step} of one optimizer step. Add text, or "
                "lower the tokens_per_step of this training, such as distillation.tokens_per_step "
                f"(to at most {source.num_sequences * source.sequence_length}; a tenth of that "
                "gives ten steps), or tokens.sequence_length."
            )

    @property
    def num_steps(self) -> int:
        return -(-self.num_samples // self.sequences_per_step)

    def samples(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Sequence numbers and epochs of a step, counted from 0; the last step may be short."""
        first, num_sequences = step * self.sequences_per_step, self.source.num_sequences
        samples = np.arange(first, min(first + self.sequences_per_step, self.num_samples))
        epochs, places = np.divmod(samples, num_sequences)
        sequences = np.empty_like(places)
        for epoch in np.unique(epochs):
            own = epochs == epoch
            sequences[own] = epoch_order(self.seed, int(epoch), num_sequences)[places[own]]
        if self.lengths is not None:
            order = np.argsort(self.lengths[sequences], kind="stable")
            sequences, epochs = sequences[order], epochs[order]
        return sequences, epochs

    def step(self, step: int, part: slice = EVERYTHING) -> Any:
        """The batch of one optimizer step, or a part of its sequences (at least one)."""
        sequences, epochs = self.samples(step)
        return self.source.batch(sequences[part], epochs[part], self.seed)
