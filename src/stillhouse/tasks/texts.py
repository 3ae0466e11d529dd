"""Texts and pairs of texts with what is asked of them, and the sequences they become."""

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
    """A text, perhaps a second one, and the right answer where it is known."""

    text: str
    pair: str | None = None
    target: Any = None


def read_texts(
    path: Path,
    columns: Columns,
    header: Sequence[str] | None,
    target: Callable[[Row, str], Any] | None,
    *,
    keep_blank: bool = False,
) -> list[TextExample]:
    """The examples of a table; `target` reads the right answer from a row's column.

    Where one text is all that is asked for, each line of a plain text file is one.

    Args:
        keep_blank: A row without any field is an example with empty texts.
    """
    text_column = columns.text if columns.pair is None and target is None else None
    rows = read_rows(path, header=header, keep_blank=keep_blank, text_column=text_column)
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
    """One sequence for each example, at most `length` tokens; what is longer loses its end (of a
    pair the longer text first).

    Args:
        target: An answer as an array.
        unknown: What stands for one that is not known.
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
                is_cut=bool(encoding.overflowing),
                is_labeled=example.target is not None,
            )
        ]
        for example, encoding in zip(examples, encodings, strict=True)
    ]


def ids_and_types(
    encoding: Encoding, tokenizer: PreTrainedTokenizerFast
) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]:
    """Token ids and types of a text; of an empty one that has no special tokens, as with causal
    models, the end of text."""
    ids = encoding.ids or [tokenizer.eos_token_id]
    return np.array(ids, np.int64), np.array(encoding.type_ids or [0], np.int64)


def as_number(value: float) -> Float[np.ndarray, ""]:
    """A number as a target."""
    return np.array(value, np.float32)


def separate_pairs(tokenizer: PreTrainedTokenizerFast) -> None:
    """Let the end of text stand between two texts where a tokenizer of itself puts nothing there,
    as those of causal models."""
    if tokenizer.num_special_tokens_to_add(pair=True):
        return
    end, number = tokenizer.eos_token, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A", pair=f"$A {end} $B:1", special_tokens=[(end, number)]
    )
