"""Cached outputs of the teacher for the rows of a batch.

Axes: N rows that the cache holds, k tokens kept of each, D the teacher's hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.section import Rows
from stillhouse.tokens.settings import CacheKind

Pick = slice | Int[Tensor, " n"]


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
