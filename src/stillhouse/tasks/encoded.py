"""Inputs of task models: texts with their labels, encoded sequences with their targets, and batches
of sequences.

Axes: B sequences, T tokens of the longest of them, C classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from tokenizers import Encoding, processors
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.data.text import check_whole_characters
from stillhouse.families.attention import explicit_attention_mask
from stillhouse.families.registry import family_of
from stillhouse.models.folder_check import reads_token_types
from stillhouse.section import Rows
from stillhouse.tasks.settings import Columns
from stillhouse.tokens.batches import IGNORED, move

# Logits of mutually exclusive classes, logits of independent labels, a number, or an embedding.
OutputKind = Literal["classes", "labels", "regression", "embeddings"]
TaskRows = Rows | Literal["labeled"]


@dataclass(frozen=True)
class EncodedExample:
    """One unpadded sequence and its target.

    Attributes:
        target: A class, a number, a start and an end position, or a value per class or token;
            IGNORED where there is none.
        output_mask: The tokens whose outputs count, for tasks that need it.
        is_truncated: Whether part of the text did not fit.
        source: What the task needs to interpret the model's outputs.
        is_labeled: Whether the target is a label; otherwise it only marks what to predict.
    """

    input_ids: Int[np.ndarray, " T"]
    token_type_ids: Int[np.ndarray, " T"]
    target: Shaped[np.ndarray, "..."]
    output_mask: Bool[np.ndarray, " T"] | None = None
    is_truncated: bool = False
    source: Any = None
    is_labeled: bool = True


@dataclass(frozen=True)
class TaskBatch:
    """A padded batch; like `tokens.batches.Batch` it can be split and moved.

    Losses count the targets in `target_mask`; losses on labels only those of `labeled` sequences.
    Nothing counts in a blank batch. Each `unit_size` consecutive sequences form a unit, which is
    never split.
    """

    input_ids: Int[Tensor, "B T"]
    token_type_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    targets: Shaped[Tensor, "B _"]
    target_mask: Bool[Tensor, "B _"]
    labeled: Bool[Tensor, "B 1"]
    output_mask: Bool[Tensor, "B T"] | None
    per_token: bool
    unit_size: int
    is_blank: bool = False

    @property
    def num_tokens(self) -> int:
        return 0 if self.is_blank else int(self.attention_mask.sum())

    @property
    def label_mask(self) -> Bool[Tensor, "B _"]:
        """The targets that are labels."""
        return self.target_mask & self.labeled

    def num_rows(self, rows: TaskRows) -> int:
        """The number of real tokens (`all`), targets (`predicted`) or labels (`labeled`)."""
        if rows == "all":
            return self.num_tokens
        return int((self.target_mask if rows == "predicted" else self.label_mask).sum())

    def rows(self) -> Bool[Tensor, "B T"]:
        """The tokens that are not padding; none in a blank batch."""
        return (self.attention_mask > 0) & (not self.is_blank)

    def visible(self, *, causal: bool) -> Bool[Tensor, "B _ T"]:
        """True where a token (second to last axis) may attend to another (last axis); a single row
        where all tokens share the same mask."""
        real = (self.attention_mask > 0)[:, None, :]
        return real.expand(-1, real.shape[-1], -1).tril() if causal else real

    @property
    def most_rows(self) -> int:
        """Tokens of the longest sequence."""
        return 0 if self.is_blank else int(self.attention_mask.sum(1).max())

    def to(self, device: torch.device) -> "TaskBatch":
        return self._with_each(lambda tensor: move(tensor, device))

    def split(self, sequences: int) -> Iterator["TaskBatch"]:
        """Micro-batches of at most `sequences` units each, in order, trimmed to their longest."""
        size = sequences * self.unit_size
        for start in range(0, len(self.input_ids), size):
            part = self._with_each(lambda tensor, start=start: tensor[start : start + size])
            yield part._cut(max(1, int(part.attention_mask.sum(1).max())))

    def blank(self) -> "TaskBatch":
        """The same sequences without targets."""
        return replace(self, target_mask=torch.zeros_like(self.target_mask), is_blank=True)

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> "TaskBatch":
        tensors = {name: each for name, each in vars(self).items() if isinstance(each, Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})

    def _cut(self, length: int) -> "TaskBatch":
        return replace(
            self,
            input_ids=self.input_ids[:, :length],
            token_type_ids=self.token_type_ids[:, :length],
            attention_mask=self.attention_mask[:, :length],
            targets=self.targets[:, :length] if self.per_token else self.targets,
            target_mask=self.target_mask[:, :length] if self.per_token else self.target_mask,
            output_mask=None if self.output_mask is None else self.output_mask[:, :length],
        )


def collate(
    sequences: Sequence[EncodedExample],
    *,
    pad_token_id: int,
    per_token: bool = False,
    unit_size: int = 1,
) -> TaskBatch:
    """Batch sequences, padding each at its end.

    Args:
        per_token: Whether each token has its own target (IGNORED for none).
    """
    targets = [np.atleast_1d(each.target) for each in sequences]
    masks = [each.output_mask for each in sequences if each.output_mask is not None]
    return TaskBatch(
        _padded([each.input_ids for each in sequences], pad_token_id),
        _padded([each.token_type_ids for each in sequences], 0),
        _padded([np.ones_like(each.input_ids) for each in sequences], 0),
        _padded(targets, 0),
        _padded([_is_target(target) for target in targets], False),
        torch.tensor([[each.is_labeled] for each in sequences]),
        _padded(masks, False) if masks else None,
        per_token=per_token,
        unit_size=unit_size,
    )


def inputs_of(model: PreTrainedModel, batch: TaskBatch) -> dict[str, Any]:
    """The arguments of a transformers model for a batch.

    Token types are passed only to models with several of them: some models have no such argument,
    and GPT-2 would embed them as tokens.
    """
    inputs: dict[str, Any] = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
    }
    if reads_token_types(model.config):
        inputs["token_type_ids"] = batch.token_type_ids
    if family_of(model.config).language_modeling == "causal":
        inputs["use_cache"] = False
    return inputs


def forward(model: PreTrainedModel, batch: TaskBatch) -> Any:
    """The model's output for a batch, by the fastest attention on its device."""
    family = family_of(model.config)
    causal = family.language_modeling == "causal"
    mask = family.mask_of(model, batch.visible(causal=causal)[:, None])
    inputs = inputs_of(model, batch) | {"attention_mask": mask}
    if causal:  # OPT would count positions in its mask
        length = batch.input_ids.shape[1]
        inputs["position_ids"] = torch.arange(length, device=batch.input_ids.device)[None]
    with explicit_attention_mask(model.config):
        return model(**inputs)


def _is_target(target: Shaped[np.ndarray, " _"]) -> Bool[np.ndarray, " _"]:
    """Where a target counts: any number does, and any class or position but IGNORED."""
    return (target != IGNORED) | np.issubdtype(target.dtype, np.floating)


def _padded(arrays: Sequence[np.ndarray], value: int) -> Tensor:
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    return pad_sequence(tensors, batch_first=True, padding_value=value)


@dataclass(frozen=True)
class TextExample:
    """A text, perhaps a second one, and the label where it is known; `where` names its row in
    errors."""

    text: str
    pair: str | None = None
    target: Any = None
    where: str = field(default="", compare=False)

    @property
    def inputs(self) -> dict[str, str]:
        """What a model is given."""
        return {"text": self.text} | ({} if self.pair is None else {"text_pair": self.pair})


def read_texts(
    path: Path,
    columns: Columns,
    header: Sequence[str] | None,
    target: Callable[[Row, str], Any] | None,
    *,
    keep_blank: bool = False,
) -> list[TextExample]:
    """The examples of a table, or, for single unlabeled texts, of the lines of a plain text file.

    Args:
        target: Reads the label from a row's column.
        keep_blank: Whether a row without any field is an example with empty texts.
    """
    plain = columns.pair is None and target is None
    rows = read_rows(path, columns.text, header=header, keep_blank=keep_blank, plain=plain)
    return [
        TextExample(
            row.text(columns.text),
            None if columns.pair is None else row.text(columns.pair),
            None if target is None else target(row, columns.target),
        )
        for row in rows
    ]


def encode_texts(
    examples: Sequence[TextExample],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    target: Callable[[Any], np.ndarray],
) -> list[list[EncodedExample]]:
    """One sequence per example, truncated to `length` tokens (the longer text of a pair first).

    Args:
        target: Converts a label to an array; None, for an unlabeled example, to any label.
    """
    if not examples:
        return []
    separate_pairs(tokenizer)
    for example in examples:
        for text in (example.text, example.pair or ""):
            check_whole_characters(text, "The text")
    pairs = [example.pair for example in examples if example.pair is not None]
    encodings = tokenizer(
        [example.text for example in examples],
        pairs if len(pairs) == len(examples) else None,
        truncation="longest_first",
        max_length=length,
        return_token_type_ids=True,
        split_special_tokens=True,
    ).encodings
    assert encodings is not None
    return [
        [
            EncodedExample(
                *ids_and_types(encoding, tokenizer),
                target(example.target),
                is_truncated=bool(encoding.overflowing),
                is_labeled=example.target is not None,
            )
        ]
        for example, encoding in zip(examples, encodings, strict=True)
    ]


def ids_and_types(
    encoding: Encoding, tokenizer: PreTrainedTokenizerFast
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Token ids and types of a text; those of the end-of-text token for an empty text without
    special tokens, as with causal models."""
    ids = encoding.ids or [tokenizer.eos_token_id]
    return np.array(ids, np.int64), np.array(encoding.type_ids or [0], np.int64)


def as_number(value: float | None) -> Float[np.ndarray, ""]:
    """A number as a target; 0 where it is not known."""
    return np.array(value or 0.0, np.float32)


def separate_pairs(tokenizer: PreTrainedTokenizerFast) -> None:
    """Separate pairs by the end-of-text token where the tokenizer adds no separator, as those of
    causal models."""
    if tokenizer.num_special_tokens_to_add(pair=True):
        return
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A",
        pair=f"$A {tokenizer.eos_token} $B:1",
        special_tokens=[(tokenizer.eos_token, tokenizer.eos_token_id)],
    )
