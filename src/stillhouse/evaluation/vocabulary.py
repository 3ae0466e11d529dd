"""What a smaller vocabulary costs: the `vocabulary` of `evaluation.json`.

Teacher, student and controls of a run have one vocabulary, so their losses per token are of the
same tokens. The teacher with all of its tokens reads other ones: it is compared per word and byte.
"""

from pathlib import Path
from typing import Any

from stillhouse.evaluation.perplexity import ScoredText, score_text
from stillhouse.evaluation.quality import validation_text
from stillhouse.models.load import load_model
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import facts_of
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.tokenizer import (
    load_tokenizer,
    open_tokenizer,
    special_tokens,
    text_encoder,
    tokenizer_path,
)
from stillhouse.training.device import pick_device
from stillhouse.training.progress import Reporter


def cost_of_vocabulary(
    recipe: Recipe, run: RunFolder, whole: Path | None, reporter: Reporter
) -> dict[str, Any] | None:
    """What stays of the training text, and the whole teacher's figures on the held-out text.

    Args:
        whole: The folder of the teacher with all tokens; None where there is no such teacher, as
            one that is fine-tuned with those that stay.

    Returns:
        None for a recipe that leaves the vocabulary as it is.
    """
    if recipe.student.vocabulary is None:
        return None
    found = {**facts_of(run.tokens)["vocabulary"], "whole_teacher": None}
    if whole is not None and recipe.tokens.language_modeling == "causal":
        reporter.say("evaluate: the teacher with all tokens")
        found["whole_teacher"] = _whole_teacher(recipe, run, whole)
    return found


def _whole_teacher(recipe: Recipe, run: RunFolder, folder: Path) -> dict[str, Any]:
    chosen = recipe.tokens.tokenizer
    assert isinstance(chosen, str)  # a trained one is not trimmed
    tokenizer = load_tokenizer(tokenizer_path(chosen, folder))
    family, model = load_model(folder, tokenizer)
    model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    start = special_tokens(tokenizer, "causal").document_start
    assert start is not None
    length = recipe.tokens.sequence_length
    text = _validation_text(run, text_encoder(tokenizer))
    figures, _ = score_text(family, model, text, document_start=start, context=length)
    return {"parameters": model.num_parameters(), "perplexity": figures}


def _validation_text(run: RunFolder, encode: Any) -> ScoredText:
    """The held-out documents in other tokens; words and bytes are those of the text."""
    own, tokenizer = validation_text(run.tokens), open_tokenizer(run.tokens)
    texts = [tokenizer.backend_tokenizer.decode(ids.tolist()) for ids in own.documents]
    return ScoredText(encode(texts), own.words, own.bytes)
