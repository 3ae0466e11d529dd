"""Texts for scoring: a run's held-out documents, or a file."""

import io
from itertools import pairwise
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stillhouse.data.formats import named_format
from stillhouse.data.text import read_blocks
from stillhouse.errors import DataError
from stillhouse.evaluation.perplexity import ScoredText
from stillhouse.runs.manifest import read_manifest
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import open_tokenizer, special_tokens, text_encoder


def validation_text(tokens_folder: Path) -> ScoredText:
    """The held-out documents of a run, from its shards, without their prefix tokens."""
    split = open_split(tokens_folder, "validation")
    starts = split.document_starts.astype(int).tolist()
    prefix = len(special_tokens(open_tokenizer(tokens_folder), "causal").document_prefix)
    documents = [split.read(start + prefix, stop) for start, stop in pairwise(starts)]
    manifest = read_manifest(tokens_folder)
    assert manifest is not None
    facts = manifest.facts["splits"]["validation"]
    return ScoredText(documents, facts["words"], facts["bytes"])


def file_text(path: Path, tokenizer: PreTrainedTokenizerFast) -> ScoredText:
    """A text file as one document.

    Raises:
        DataError: no such file, not UTF-8, or empty.
    """
    return scored_text([read_text(path)], tokenizer, where=str(path))


def read_text(path: Path) -> str:
    """The contents of a text file, decompressed by its suffix, with `\\n` for line ends.

    Raises:
        DataError: no such file, a file of records or markup, or what `data.text.read_blocks`
            refuses.
    """
    path = path.expanduser()
    if not path.exists():
        raise DataError(f"There is no text file {path} (working directory: {Path.cwd()}).")
    if (format := named_format(path)).name != "text":
        raise DataError(
            f"{path} is a file of {format.name}, of which the markup would be scored as text. Give "
            "a file of plain text."
        )
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    return newlines.decode("".join(read_blocks(path)), final=True)


def scored_text(texts: list[str], tokenizer: PreTrainedTokenizerFast, *, where: str) -> ScoredText:
    """Texts as documents, tokenized by one model's tokenizer."""
    documents = [ids for ids in text_encoder(tokenizer)(texts) if len(ids)]
    words = sum(len(text.split()) for text in texts)
    if not documents or not words:
        raise DataError(f"{where} holds no words to score.")
    return ScoredText(documents, words, sum(len(text.encode()) for text in texts))
