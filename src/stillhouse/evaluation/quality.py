"""The quality of one model on a run's own text: one protocol for the report and for `compare`."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stillhouse.evaluation.perplexity import (
    ScoredText,
    Tick,
    UnitLosses,
    batches_of,
    cut_text,
    masked_losses,
    num_fixed_batches,
    score_text,
)
from stillhouse.evaluation.texts import file_text, validation_text
from stillhouse.families.base import Family
from stillhouse.recipe import Recipe
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.source import open_source, open_tokenizer
from stillhouse.tokens.tokenizer import special_tokens

# Nats above the loss of a guess among all tokens, from which on a model counts as diverged; one
# that was hardly trained stays within a few tenths of that guess.
DIVERGED = 1.0


def has_diverged(loss: float | None, vocabulary_size: int) -> bool:
    """Whether a model is of no use: no finite loss, or one far above a guess among all tokens."""
    return loss is None or loss > math.log(vocabulary_size) + DIVERGED


def score_on_run(
    recipe: Recipe, run: RunFolder, family: Family, model: PreTrainedModel, tick: Tick
) -> tuple[dict[str, Any], UnitLosses]:
    """A model's figures on the recipe's texts, and its losses on the units of the first one."""
    special = special_tokens(open_tokenizer(run.tokens), family.language_modeling)
    if family.language_modeling == "masked":
        source = open_source(run.tokens, recipe.tokens, "validation")
        losses = masked_losses(family, model, source, tick=tick)
        figures = {"validation_loss": losses.mean, "masked_loss": losses.mean, "perplexity": None}
        return figures, losses
    assert special.document_start is not None
    scored = {
        name: score_text(
            family,
            model,
            text,
            document_start=special.document_start,
            context=recipe.tokens.sequence_length,
            tick=tick,
        )
        for name, text in texts_of(recipe, run).items()
    }
    first, *others = scored
    figures, losses = scored[first]
    result = {"validation_loss": losses.mean, "masked_loss": None, "perplexity": figures}
    if others:
        result["perplexity_of"] = {name: scored[name][0] for name in others}
    return result, losses


def texts_of(recipe: Recipe, run: RunFolder) -> Mapping[str, ScoredText]:
    """The texts that the recipe names, by name."""
    tokenizer = open_tokenizer(run.tokens)
    return {
        name: validation_text(run.tokens)
        if name == "validation"
        else file_text(Path(name), tokenizer)
        for name in recipe.evaluation.perplexity
    }


def context_of(recipe: Recipe, model: tuple[Family, PreTrainedModel]) -> int:
    """The longest sequence that a model of the run is scored on, in tokens."""
    family, own = model
    return min(recipe.tokens.sequence_length, family.num_positions(own.config))


def num_batches(recipe: Recipe, run: RunFolder, model: tuple[Family, PreTrainedModel]) -> int:
    """How many batches scoring a model takes."""
    if recipe.tokens.language_modeling == "masked":
        return num_fixed_batches(open_source(run.tokens, recipe.tokens, "validation"))
    context = context_of(recipe, model)
    cuts = [part for text in texts_of(recipe, run).values() for part in cut_text(text, context, 0)]
    return sum(len(batches_of(windows)) for windows in cuts)
