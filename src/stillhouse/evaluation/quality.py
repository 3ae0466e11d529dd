"""How the quality of models is measured, and on which texts: one protocol for the report and for
`compare`.
"""

import io
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from stillhouse.data.formats import named_format
from stillhouse.data.text import read_blocks
from stillhouse.errors import DataError
from stillhouse.evaluation.metrics.base import Model, Protocol, Quality
from stillhouse.evaluation.perplexity import (
    Observer,
    ScoredText,
    batches_of,
    cut_text,
    masked_losses,
    num_fixed_batches,
    score_text,
    stride_of,
)
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.batches import SequenceSource
from stillhouse.tokens.packing import open_source, ranges_of
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import open_tokenizer, special_tokens, text_encoder

# Nats above the loss of a uniform guess from which on a model counts as diverged; a model that was
# barely trained is within a few tenths of that guess.
DIVERGED = 1.0


def has_diverged(loss: float | None, vocabulary_size: int) -> bool:
    """Whether a model is unusable: no finite loss, or one far above that of a uniform guess."""
    return loss is None or loss > math.log(vocabulary_size) + DIVERGED


def run_protocol(recipe: Recipe, run: RunFolder, models: Mapping[str, Model]) -> Protocol:
    """Models of a run on the recipe's texts; differences are measured on the first one."""
    if recipe.tokens.language_modeling == "masked":
        source = open_source(run.tokens, recipe.tokens, "validation")
        return masked_protocol(models, dict.fromkeys(models, source))
    tokenizer = open_tokenizer(run.tokens)
    texts = {
        name: validation_text(run.tokens)
        if name == "validation"
        else file_text(Path(name), tokenizer)
        for name in recipe.evaluation.perplexity
    }
    start = special_tokens(tokenizer, "causal").document_start
    return causal_protocol(
        models,
        dict.fromkeys(models, texts),
        dict.fromkeys(models, start),
        recipe.tokens.sequence_length,
    )


def causal_protocol(
    models: Mapping[str, Model],
    texts: Mapping[str, Mapping[str, ScoredText]],
    document_starts: Mapping[str, int | None],
    context: int,
) -> Protocol:
    """Perplexity on texts, in blocks of `context` tokens or of a model's positions.

    Args:
        texts: For each model its texts by name.
    """

    def score(name: str, observer: Observer) -> Quality:
        start = document_starts[name]
        assert start is not None

        def scored(text: str, observer: Observer) -> Quality:
            given = texts[name][text]
            return score_text(
                *models[name], given, document_start=start, context=context, observer=observer
            )

        first, *others = texts[name]
        figures, losses = scored(first, observer)
        entry = {"validation_loss": losses.mean, "masked_loss": None, "perplexity": figures}
        if others:
            alone = Observer(observer.tick)
            entry["perplexity_of"] = {text: scored(text, alone)[0] for text in others}
        return entry, losses

    def num_batches(name: str) -> int:
        cuts = [
            cut_text(text, context_of(context, models[name]), 0) for text in texts[name].values()
        ]
        return sum(len(batches_of(windows)) for cut in cuts for windows in cut)

    block = context_of(context, next(iter(models.values())))
    facts = {"perplexity_block": block, "stride": stride_of(block)}
    return Protocol(score, {name: num_batches(name) for name in models}, facts)


def masked_protocol(models: Mapping[str, Model], sources: Mapping[str, SequenceSource]) -> Protocol:
    """The masked loss on packed sequences."""

    def score(name: str, observer: Observer) -> Quality:
        losses = masked_losses(*models[name], sources[name], observer=observer)
        entry: dict[str, Any] = dict.fromkeys(("validation_loss", "masked_loss"), losses.mean)
        return entry | {"perplexity": None}, losses

    return Protocol(
        score,
        {name: num_fixed_batches(each) for name, each in sources.items()},
        {"sequence_length": next(iter(sources.values())).sequence_length},
    )


def context_of(sequence_length: int, model: Model) -> int:
    """The longest sequence that a model is scored on, in tokens."""
    family, own = model
    return min(sequence_length, family.num_positions(own.config))


def validation_text(tokens_folder: Path) -> ScoredText:
    """The held-out documents of a run, from its shards, without their prefix tokens."""
    split = open_split(tokens_folder, "validation")
    starts = split.document_starts.astype(int).tolist()
    prefix = len(special_tokens(open_tokenizer(tokens_folder), "causal").document_prefix)
    documents = [split.read(start + prefix, stop) for start, stop in pairwise(starts)]
    manifest = read_manifest(tokens_folder)
    assert manifest is not None
    facts = manifest.facts["splits"]["validation"]
    parts = ranges_of(split.parts, split.part_bounds)
    return ScoredText(documents, facts["words"], facts["bytes"], parts)


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
