"""What a task model reads: sequences with their targets, alone and side by side.

Axes: B sequences, T tokens of the longest of them, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stillhouse.section import Rows
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.teacher_rows import move

# What a model's outputs are: logits of one class of several, or of each label by itself; numbers;
# vectors of length 1.
OutputKind = Literal["classes", "labels", "values", "vectors"]
TaskRows = Rows | Literal["answered"]


@dataclass(frozen=True)
class EncodedExample:
    """One sequence without padding, and what is to be said of it.

    `target` is a class, a number, a place for each of a start and an end, or a value for each
    class or token; None where it is not known. `choices` are the tokens at which an answer may
    begin or end, where a task asks for that. Where it `is_cut`, not all of the text fit.
    `source` is what the task has to know of it to read a model's answer. Where it is not
    `is_labeled`, the target says what is asked, not what is right.
    """

    input_ids: Int[np.ndarray, " T"]
    token_type_ids: Int[np.ndarray, " T"]
    target: Shaped[np.ndarray, "..."] | None = None
    choices: Bool[np.ndarray, " T"] | None = None
    is_cut: bool = False
    source: Any = None
    is_labeled: bool = True


@dataclass(frozen=True)
class TaskBatch:
    """Sequences side by side, ready for a model; as `tokens.batches.Batch` it can be cut and moved.

    Only what is `asked` of the targets counts, as right answers only where a sequence is `labeled`;
    no token counts of a batch that is `is_blank`.
    `together` sequences that follow one another are one unit, which is never cut.
    """

    input_ids: Int[Tensor, "B T"]
    token_type_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    targets: Shaped[Tensor, "B _"]
    asked: Bool[Tensor, "B _"]
    labeled: Bool[Tensor, "B 1"]
    choices: Bool[Tensor, "B T"] | None
    per_token: bool
    together: int
    is_blank: bool = False

    @cached_property
    def num_tokens(self) -> int:
        return 0 if self.is_blank else int(self.attention_mask.sum())

    @property
    def answered(self) -> Bool[Tensor, "B _"]:
        """What is asked and has a right answer."""
        return self.asked & self.labeled

    def num_rows(self, rows: TaskRows) -> int:
        """Real tokens (`all`), what is asked of them (`predicted`), or what of it is `answered`."""
        if rows == "all":
            return self.num_tokens
        return int((self.asked if rows == "predicted" else self.answered).sum())

    def rows(self) -> Bool[Tensor, "B T"]:
        """The real tokens, of which a blank batch has none."""
        return (self.attention_mask > 0) & (not self.is_blank)

    def visible(self, *, causal: bool) -> Bool[Tensor, "B _ T"]:
        """True where a token (second to last axis) may see another one (last axis); one row stands
        for all where all may see the same."""
        real = (self.attention_mask > 0)[:, None, :]
        return real.expand(-1, real.shape[-1], -1).tril() if causal else real

    @cached_property
    def most_rows(self) -> int:
        """Tokens of the longest sequence."""
        return 0 if self.is_blank else int(self.attention_mask.sum(1).max())

    def to(self, device: torch.device) -> "TaskBatch":
        return self._with_each(lambda tensor: move(tensor, device))

    def split(self, sequences: int) -> Iterator["TaskBatch"]:
        """Micro-batches of at most `sequences` units each, in order, as long as their longest."""
        size = sequences * self.together
        for start in range(0, len(self.input_ids), size):
            part = self._with_each(lambda tensor, start=start: tensor[start : start + size])
            yield part._cut(max(1, int(part.attention_mask.sum(1).max())))

    def blank(self) -> "TaskBatch":
        """The same sequences, of which nothing is asked."""
        return replace(self, asked=torch.zeros_like(self.asked), is_blank=True)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "TaskBatch":
        return replace(
            self,
            input_ids=change(self.input_ids),
            token_type_ids=change(self.token_type_ids),
            attention_mask=change(self.attention_mask),
            targets=change(self.targets),
            asked=change(self.asked),
            labeled=change(self.labeled),
            choices=None if self.choices is None else change(self.choices),
        )

    def _cut(self, length: int) -> "TaskBatch":
        return replace(
            self,
            input_ids=self.input_ids[:, :length],
            token_type_ids=self.token_type_ids[:, :length],
            attention_mask=self.attention_mask[:, :length],
            targets=self.targets[:, :length] if self.per_token else self.targets,
            asked=self.asked[:, :length] if self.per_token else self.asked,
            choices=None if self.choices is None else self.choices[:, :length],
        )


def collate(
    sequences: Sequence[EncodedExample],
    *,
    pad_token_id: int,
    per_token: bool = False,
    together: int = 1,
) -> TaskBatch:
    """Sequences side by side, each padded at its end.

    Args:
        per_token: Each token has a target of its own; IGNORED where it has none.
    """
    targets = [_target(each) for each in sequences]
    choices = [each.choices for each in sequences if each.choices is not None]
    return TaskBatch(
        _padded([each.input_ids for each in sequences], pad_token_id),
        _padded([each.token_type_ids for each in sequences], 0),
        _padded([np.ones_like(each.input_ids) for each in sequences], 0),
        _padded(targets, 0),
        _padded([_asked(each) for each in sequences], False),
        torch.tensor([[each.is_labeled] for each in sequences]),
        _padded(choices, False) if choices else None,
        per_token=per_token,
        together=together,
    )


def _target(sequence: EncodedExample) -> Shaped[np.ndarray, " _"]:
    return np.zeros(1, np.int64) if sequence.target is None else np.atleast_1d(sequence.target)


def _asked(sequence: EncodedExample) -> Bool[np.ndarray, " _"]:
    target = _target(sequence)
    if sequence.target is None:
        return np.zeros_like(target, dtype=bool)
    if np.issubdtype(target.dtype, np.integer):
        return target != IGNORED
    return np.ones_like(target, dtype=bool)


def _padded(arrays: Sequence[np.ndarray], value: int) -> Tensor:
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return pad_sequence(tensors, batch_first=True, padding_value=value)
