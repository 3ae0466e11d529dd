"""Measures teacher, student and controls side by side: model folders -> evaluation.json.

`validation_units` holds every model's losses document by document (or block by block), and
`intervals` the confidence interval of each difference to the student. A number that is not finite
is null, and its model is listed under `diverged`.
"""

import functools
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stillhouse.evaluation.bias import bias_scores
from stillhouse.evaluation.data_sets import ScoredModel, data_files
from stillhouse.evaluation.metrics.agreement import ROWS
from stillhouse.evaluation.metrics.base import SCHEMA, Cache, Model, Subjects
from stillhouse.evaluation.metrics.registry import measure
from stillhouse.evaluation.perplexity import UnitLosses, difference, stride_of
from stillhouse.evaluation.quality import context_of, has_diverged, run_protocol
from stillhouse.evaluation.samples import text_samples
from stillhouse.evaluation.teacher_fit import teacher_fit, warning
from stillhouse.evaluation.zero_shot import zero_shot_scores
from stillhouse.inference.reference import MOST_TURNS, TURNS, shape_key
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.models.load import load_model
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import (
    Inputs,
    commit_json,
    facts_of,
    fingerprint,
    fingerprint_of,
    sha256_of,
)
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.tokens.packing import open_source
from stillhouse.tokens.shards import open_split
from stillhouse.tokens.tokenizer import open_tokenizer, tokenizer_folder, tokenizer_path
from stillhouse.training.device import pick_device
from stillhouse.training.progress import Reporter


def evaluate_inputs(
    recipe: Recipe, run: RunFolder, teacher_fingerprint: str, outputs: Mapping[str, Path], seed: int
) -> Inputs:
    """What `evaluation.json` is computed from."""
    made_here = {"tokens": run.tokens, **outputs}
    own = {name: fingerprint_of(output) for name, output in made_here.items()}
    sources = {"teacher": teacher_fingerprint, **own}
    settings: dict[str, Any] = {
        "schema": SCHEMA,
        "evaluation": recipe_part(recipe.evaluation),
        "tokens": recipe_part(recipe.tokens),
    }
    if recipe.student.vocabulary is not None:
        settings["zero_shot_teacher"] = "whole"  # it was that with the tokens that stay
    for path in recipe.evaluation.perplexity:
        if path != "validation" and Path(path).is_file():
            sources[path] = sha256_of(Path(path))
    scored = {"zero_shot": recipe.evaluation.zero_shot, "bias": recipe.evaluation.bias}
    for section, sets in scored.items():
        for name, files in data_files(sets, run).items():
            for file in files:
                key = f"{section} {name}" + (f" {file.name}" if len(files) > 1 else "")
                sources[key] = sha256_of(file)
    return Inputs("evaluate", settings, sources, seed)


def evaluate(
    recipe: Recipe,
    run: RunFolder,
    folders: Mapping[str, Path],
    inputs: Inputs,
    cache: Cache,
    reporter: Reporter,
    *,
    whole_teacher: Path | None = None,
) -> None:
    """Measure every model and commit `evaluation.json`.

    Args:
        whole_teacher: The teacher with all of its tokens, where that of `folders` has some of them.
            Scores on data sets do not depend on the tokens, so they are compared with its scores.
    """
    started = time.monotonic()
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    for _, model in loaded.values():
        model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    models = measure(
        Subjects(
            folders,
            loaded,
            run_protocol(recipe, run, loaded),
            {name: shape_key(folder) for name, folder in folders.items()},
            reporter,
            open_source(run.tokens, recipe.tokens, "validation"),
            open_split(run.tokens, "train").counts,
            recipe.evaluation.speed,
            "evaluate: ",
            cache,
        )
    )
    scored = _scored_models(recipe, run, folders, loaded, whole_teacher)
    losses = {name: cache.quality[folder][1] for name, folder in folders.items()}
    vocabulary_size = len(open_tokenizer(run.tokens))
    diverged = [name for name, own in losses.items() if has_diverged(own.mean, vocabulary_size)]
    result = {
        "schema": SCHEMA,
        "protocol": _protocol(recipe, loaded["student"]),
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "seed": inputs.seed,
        "models": models,
        "diverged": diverged,
        "comparison": _comparison(models),
        "intervals": _intervals(losses),
        "validation_units": _units(losses),
        "zero_shot": zero_shot_scores(recipe.evaluation.zero_shot, run, scored, cache, reporter),
        "bias": bias_scores(recipe.evaluation.bias, run, scored, cache, reporter),
        "vocabulary": cache.vocabulary,
        "teacher_fit": _teacher_fit(recipe, run, loaded["teacher"]),
        "samples": text_samples(recipe, run, loaded, diverged),
    }
    if parts := facts_of(run.tokens).get("parts"):
        result["parts"] = parts
    commit_json(run.evaluation, result, inputs, seconds=time.monotonic() - started)


def _intervals(losses: Mapping[str, UnitLosses]) -> dict[str, Any]:
    """The student's loss minus each other model's, with its interval; also on each part."""
    student = losses["student"]

    def with_parts(own: UnitLosses) -> dict[str, Any]:
        found = {**difference(student, own), "units": len(own.tokens), "unit": own.unit}
        if own.parts:
            found["parts"] = {
                part: difference(student.parts[part], each) for part, each in own.parts.items()
            }
        return found

    return {name: with_parts(own) for name, own in losses.items() if name != "student"}


def _units(losses: Mapping[str, UnitLosses]) -> dict[str, Any]:
    """The losses that intervals are computed from, in nats."""
    any_model = next(iter(losses.values()))
    return {
        "unit": any_model.unit,
        "tokens": any_model.tokens.tolist(),
        "loss_sums": {
            name: [round(value, 4) if math.isfinite(value) else None for value in own.sums.tolist()]
            for name, own in losses.items()
        },
    }


def _scored_models(
    recipe: Recipe,
    run: RunFolder,
    folders: Mapping[str, Path],
    models: Mapping[str, Model],
    whole_teacher: Path | None,
) -> dict[str, ScoredModel]:
    """The models as data sets are scored: a teacher that lost tokens with all of them."""

    def whole() -> PreTrainedModel:
        assert whole_teacher is not None
        _, model = load_model(whole_teacher)
        model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
        return model

    tokenizer = tokenizer_folder(run.tokens)
    scored = {
        name: ScoredModel(folders[name], partial(itemgetter(1), own), tokenizer)
        for name, own in models.items()
    }
    if whole_teacher is not None:
        own = tokenizer_path(str(recipe.tokens.tokenizer), whole_teacher)
        scored["teacher"] = ScoredModel(whole_teacher, functools.cache(whole), own)
    return scored


def _teacher_fit(recipe: Recipe, run: RunFolder, teacher: Model) -> dict[str, Any]:
    """How well the teacher models the text, and what to do where it does not."""
    fit = teacher_fit(recipe, run, *teacher)
    return {
        "tokens": fit.tokens,
        "loss": fit.loss if math.isfinite(fit.loss) else None,
        "unigram_loss": fit.unigram_loss,
        "warning": warning(fit, recipe),
    }


def summarize(recipe: Recipe, run: RunFolder, seed_runs: Sequence[RunFolder]) -> None:
    """Write the `evaluation.json` of a run with several seeds: each seed's result, medians and
    ranges."""
    results = [
        json.loads(seed_run.evaluation.read_text(encoding="utf-8")) for seed_run in seed_runs
    ]
    content = {
        "schema": SCHEMA,
        "seeds": recipe.seeds,
        "summary": {
            name: {
                key: _spread([result["models"][name][key] for result in results])
                for key in ("validation_loss", "masked_loss")
            }
            for name in results[0]["models"]
        },
        "comparison": {
            key: _spread([result["comparison"][key] for result in results])
            for key in results[0]["comparison"]
        },
        "runs": results,
    }
    sources = {f"seed {result['seed']}": fingerprint(result) for result in results}
    commit_json(run.evaluation, content, Inputs("summarize", {}, sources))


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    return {
        "median": statistics.median(numbers),
        "min": min(numbers),
        "max": max(numbers),
        "all": list(values),
    }


def _comparison(models: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Ratios of student to teacher, and the student's loss minus each control's (negative:
    better)."""
    teacher, student = models["teacher"], models["student"]
    speeds = [model["speed"]["forward_tokens_per_second"] for model in (student, teacher)]
    perplexities = [(model["perplexity"] or {}).get("token") for model in (student, teacher)]
    comparison: dict[str, float | None] = {
        "size_ratio": student["parameters"] / teacher["parameters"],
        "speed_ratio": _ratio(*speeds),
        "perplexity_ratio": _ratio(*perplexities),
        "loss_minus_control": None,
    }
    for name in ("control", "control_same_time"):
        if name in models:
            losses = [model["validation_loss"] for model in (student, models[name])]
            comparison[f"loss_minus_{name}"] = None if None in losses else losses[0] - losses[1]
    return comparison


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _protocol(recipe: Recipe, student: Model) -> dict[str, Any]:
    """How the figures were measured, in words and numbers."""
    context = context_of(recipe.tokens.sequence_length, student)
    if recipe.tokens.language_modeling == "masked":
        validation = (
            f"Mean loss in nats over the predicted tokens of all validation sequences of {context} "
            "tokens, under one fixed mask that is the same for every model."
        )
    else:
        validation = (
            f"Every token of the text is scored, in blocks of {context} that begin with "
            "the document start. The sliding-window perplexity moves by the stride below. Words "
            "and bytes are counted on the text."
        )
    return {
        "validation": validation,
        "intervals": "95 % of a paired bootstrap over the documents of the text (over blocks where "
        "there are few documents): both models on the same resampled documents.",
        "agreement": "With the teacher, over the predicted tokens of the first validation "
        f"sequences, at most {ROWS:,} or a few more. Draft acceptance rate: the mean of the sum of "
        "min(p, q) over the vocabulary, at temperature 1. Top-1 agreement: the share of tokens "
        "with the same most likely prediction. Its bins: how often the predicted token occurs in "
        "the training text, and its position in the sequence; KL from the teacher, in nats.",
        "perplexity_block": context,
        "stride": stride_of(context),
        "speed": "float32, forward over 8 sequences with the head and greedy generation of one; "
        f"models take turns, median of {TURNS} after a warm-up, or of up to {MOST_TURNS} where "
        "they vary; the range of a ratio is the 95 % interval of its median over turns. Models of "
        "one configuration are timed once.",
        "memory": "Peak resident memory of a fresh process that loads the model and runs one "
        "forward pass.",
        "texts": recipe.evaluation.perplexity,
    }
