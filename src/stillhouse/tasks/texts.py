"""Texts and pairs of texts with their labels: reading from a table, and encoding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tokenizers import Encoding, processors
from transformers import PreTrainedTokenizerFast

from stillhouse.data.rows import Row, read_rows
from stillhouse.data.text import check_whole_characters
from stillhouse.tasks.encoded import EncodedExample
from stillhouse.tasks.settings import Columns


@dataclass(frozen=True)
class TextExample:
    """A text, perhaps a second one, and the label where it is known."""

    text: str
    pair: str | None = None
    target: Any = None

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
    *,
    unknown: Any,
) -> list[list[EncodedExample]]:
    """One sequence per example, truncated to `length` tokens (the longer text of a pair first).

    Args:
        target: Converts a label to an array.
        unknown: The label of unlabeled examples.
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
                target(unknown if example.target is None else example.target),
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


def as_number(value: float) -> Float[np.ndarray, ""]:
    """A number as a target."""
    return np.array(value, np.float32)


def separate_pairs(tokenizer: PreTrainedTokenizerFast) -> None:
    """Separate pairs by the end-of-text token where the tokenizer adds no separator, as those of
    causal models."""
    if tokenizer.num_special_tokens_to_add(pair=True):
        return
    end, number = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {end} $B:1", special_tokens=[(end, number)]
    )
