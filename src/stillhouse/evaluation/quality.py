"""How the quality of models is measured: one protocol for the report and for `compare`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.evaluation.metrics.base import Model, Protocol, Quality
from stillhouse.evaluation.perplexity import (
    ScoredText,
    Tick,
    batches_of,
    cut_text,
    masked_losses,
    num_fixed_batches,
    score_text,
)
from stillhouse.evaluation.texts import file_text, validation_text
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.batches import SequenceSource
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.tokenizer import open_tokenizer, special_tokens

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
    length = recipe.tokens.sequence_length
    every = dict.fromkeys
    return causal_protocol(models, every(models, texts), every(models, start), length)


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

    def score(name: str, tick: Tick) -> Quality:
        start = document_starts[name]
        assert start is not None
        scored = {
            text: score_text(*models[name], each, document_start=start, context=context, tick=tick)
            for text, each in texts[name].items()
        }
        (figures, losses), *others = scored.values()
        entry = {"validation_loss": losses.mean, "masked_loss": None, "perplexity": figures}
        if others:
            entry["perplexity_of"] = {text: found for text, (found, _) in [*scored.items()][1:]}
        return entry, losses

    def num_batches(name: str) -> int:
        cuts = [
            cut_text(text, context_of(context, models[name]), 0) for text in texts[name].values()
        ]
        return sum(len(batches_of(windows)) for cut in cuts for windows in cut)

    return Protocol(score, {name: num_batches(name) for name in models})


def masked_protocol(models: Mapping[str, Model], sources: Mapping[str, SequenceSource]) -> Protocol:
    """The masked loss on packed sequences."""

    def score(name: str, tick: Tick) -> Quality:
        losses = masked_losses(*models[name], sources[name], tick=tick)
        entry: dict[str, Any] = dict.fromkeys(("validation_loss", "masked_loss"), losses.mean)
        return entry | {"perplexity": None}, losses

    return Protocol(score, {name: num_fixed_batches(each) for name, each in sources.items()})


def context_of(sequence_length: int, model: Model) -> int:
    """The longest sequence that a model is scored on, in tokens."""
    family, own = model
    return min(sequence_length, family.num_positions(own.config))
