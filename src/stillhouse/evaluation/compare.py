"""Models side by side on the same text, without a run: size, speed, memory, quality.

A model that lies in a run is scored as in that run's report: the run's held-out documents, in its
blocks. Otherwise all models read the same documents in blocks of the shortest context among them.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from stillhouse.data.sources.sample import sample_documents
from stillhouse.data.splits import is_validation
from stillhouse.errors import DataError, ModelError
from stillhouse.evaluation.intervals import difference
from stillhouse.evaluation.perplexity import (
    ScoredText,
    Tick,
    UnitLosses,
    batches_of,
    cut_text,
    masked_losses,
    num_fixed_batches,
    score_text,
    stride_of,
)
from stillhouse.evaluation.progress import Progress
from stillhouse.evaluation.quality import context_of, has_diverged, num_batches, score_on_run
from stillhouse.evaluation.speed import measure_speed, peak_memory_bytes
from stillhouse.evaluation.texts import read_text, scored_text
from stillhouse.families.base import Family
from stillhouse.machine import describe_machine
from stillhouse.models.folder_check import load_model_tokenizer
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import count_parameters, load_model
from stillhouse.recipe import Recipe
from stillhouse.recipe_file import load_recipe
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.tokens.packing import MaskedSequences
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.source import open_tokenizer
from stillhouse.tokens.tokenizer import num_ids, special_tokens
from stillhouse.training.device import pick_device
from stillhouse.training.progress import Reporter

# What no packaged recipe trains on: the validation fraction of quickstart, a part of what the
# sample teacher never saw.
SAMPLE_FRACTION = 0.02
MASKED_LENGTH = 128

Loaded = Mapping[str, tuple[Family, PreTrainedModel]]
Scores = tuple[dict[str, Any], UnitLosses]


def compare_models(
    names: Sequence[str], text: Path | None, *, offline: bool, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Figures of each model, on `text`, or the held-out text of the run that the models lie in, or
    that of the sample.

    Raises:
        ModelError: causal and masked models together.
        DataError: a text without words, or that cannot be read.
    """
    folders = {name: resolve_folder(name, offline=offline) for name in dict.fromkeys(names)}
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    if len({family.language_modeling for family, _ in loaded.values()}) > 1:
        raise ModelError(
            "Causal and masked models have no common measure of quality; compare models of one "
            "kind."
        )
    for _, model in loaded.values():
        model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    protocol = _protocol(folders, loaded, text)
    with Progress(reporter, f"quality of {', '.join(names)}", protocol.num_batches) as progress:
        scores = {name: protocol.score(name, progress.add) for name in loaded}
    speeds = measure_speed(loaded, reporter)
    models = {}
    for name, (_, model) in loaded.items():
        if reporter is not None:
            reporter.say(f"memory of {name}")
        total, body = count_parameters(model)
        quality, losses = scores[name]
        models[name] = {
            "path": str(folders[name]),
            "parameters": total,
            "body_parameters": body,
            "size_bytes": sum(file.stat().st_size for file in folders[name].glob("*.safetensors")),
            "perplexity": quality["perplexity"],
            "masked_loss": quality["masked_loss"],
            "loss": losses.mean,
            "diverged": has_diverged(losses.mean, num_ids(load_model_tokenizer(folders[name]))),
            "loss_minus_first": _to_first(scores, name),
            "speed": speeds[name],
            "peak_memory_bytes": peak_memory_bytes(folders[name]),
        }
    return {
        "text": protocol.where,
        "protocol": protocol.facts,
        "machine": describe_machine(),
        "models": models,
    }


def _to_first(scores: Mapping[str, Scores], name: str) -> dict[str, float | None] | None:
    """The difference to the first model's loss with its interval, where both read the same
    tokens."""
    first, own = next(iter(scores.values()))[1], scores[name][1]
    if own is first or not np.array_equal(first.tokens, own.tokens):
        return None
    return difference(own, first)


@dataclass(frozen=True)
class _Protocol:
    """On what, and how, every model is scored."""

    where: str
    facts: dict[str, Any]
    num_batches: int
    score: Callable[[str, Tick], Scores]


def _protocol(folders: Mapping[str, Path], loaded: Loaded, text: Path | None) -> _Protocol:
    if text is None and (found := _common_run(folders)) is not None:
        return _as_in_the_report(*found, loaded)
    texts = _sample_validation() if text is None else [read_text(text)]
    where = "the sample's held-out documents" if text is None else str(text)
    tokenizers = {name: load_model_tokenizer(folder) for name, folder in folders.items()}
    scored = {name: scored_text(texts, each, where=where) for name, each in tokenizers.items()}
    context = min(family.num_positions(model.config) for family, model in loaded.values())
    family, _ = next(iter(loaded.values()))
    facts = {"documents": len(texts)}
    if family.language_modeling == "causal":
        ends = {
            name: special_tokens(each, "causal").document_start for name, each in tokenizers.items()
        }

        def score(name: str, tick: Tick) -> Scores:
            end = ends[name]
            assert end is not None
            figures, losses = score_text(
                *loaded[name], scored[name], document_start=end, context=context, tick=tick
            )
            return {"perplexity": figures, "masked_loss": None}, losses

        cuts = [part for each in scored.values() for part in cut_text(each, context, 0)]
        facts |= {"perplexity_block": context, "stride_s512": stride_of(context)}
        return _Protocol(where, facts, sum(len(batches_of(cut)) for cut in cuts), score)
    length = min(MASKED_LENGTH, context)
    sources = {
        name: _masked_source(scored[name], folder, length) for name, folder in folders.items()
    }

    def score_masked(name: str, tick: Tick) -> Scores:
        losses = masked_losses(*loaded[name], sources[name], tick=tick)
        return {"perplexity": None, "masked_loss": losses.mean}, losses

    total = sum(map(num_fixed_batches, sources.values()))
    return _Protocol(where, {**facts, "sequence_length": length}, total, score_masked)


def _as_in_the_report(recipe: Recipe, run: RunFolder, loaded: Loaded) -> _Protocol:
    """The run's own text and blocks, so that its students get the figures of its report."""
    model = next(iter(loaded.values()))
    context = context_of(recipe, model)
    facts = {"perplexity_block": context, "stride_s512": stride_of(context)}
    if recipe.tokens.language_modeling == "masked":
        facts = {"sequence_length": context}
    name = recipe.evaluation.perplexity[0]
    text = f"the held-out documents of {run.path}" if name == "validation" else name
    return _Protocol(
        text,
        {"run": str(run.path), **facts},
        len(loaded) * num_batches(recipe, run, model),
        lambda name, tick: score_on_run(recipe, run, *loaded[name], tick),
    )


def _common_run(folders: Mapping[str, Path]) -> tuple[Recipe, RunFolder] | None:
    """The run that models lie in, where all others could have been trained on its tokens; None
    where there is none, or where they lie in runs of different texts."""
    runs: dict[str, RunFolder] = {}
    for folder in folders.values():
        for place in folder.resolve().parents[:2]:
            run = RunFolder.at(place)
            manifest = read_manifest(run.tokens) if run.recipe.is_file() else None
            if manifest is not None:
                runs[manifest.fingerprint] = run
                break
    if len(runs) != 1:
        return None
    run = next(iter(runs.values()))
    vocabulary = open_tokenizer(run.tokens).get_vocab()
    if any(load_model_tokenizer(folder).get_vocab() != vocabulary for folder in folders.values()):
        return None
    return load_recipe(str(run.recipe))[1], run


def _sample_validation() -> list[str]:
    texts = [text for name, text in sample_documents() if is_validation(name, SAMPLE_FRACTION)]
    if not texts:
        raise DataError(
            "This Python's library holds no validation document; give a text with --text."
        )
    return texts


def _masked_source(text: ScoredText, folder: Path, length: int) -> MaskedSequences:
    tokenizer = load_model_tokenizer(folder)
    split = _in_memory(text, num_ids(tokenizer))
    return MaskedSequences(
        split,
        length,
        special_tokens(tokenizer, "masked"),
        MaskingRecipe(rarity_exponent=0),
        vocabulary_size=num_ids(tokenizer),
        counts=split.counts,
    )


def _in_memory(text: ScoredText, vocabulary_size: int) -> TokenSplit:
    """Tokenized documents as a split, without a folder."""
    ids = np.concatenate(text.documents)
    starts = np.cumsum([0, *map(len, text.documents)]).astype(np.uint64)
    counts = np.bincount(ids, minlength=vocabulary_size).astype(np.uint64)
    return TokenSplit(
        "text", vocabulary_size, (ids,), starts, counts, (Path(tempfile.gettempdir()),)
    )
