"""Measures teacher, student and controls side by side: model folders -> evaluation.json (schema
1)."""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stillhouse.evaluation.agreement import ROWS, WITH_ITSELF, agreement
from stillhouse.evaluation.perplexity import mean_loss, perplexity
from stillhouse.evaluation.samples import text_samples
from stillhouse.evaluation.speed import measure_speed, peak_memory_bytes, shape_key
from stillhouse.evaluation.texts import file_text, validation_text
from stillhouse.families import Family, count_parameters, load_model
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.recipe import Recipe, recipe_part
from stillhouse.run_folder import (
    Inputs,
    RunFolder,
    commit_file,
    fingerprint,
    read_manifest,
    sha256_of,
)
from stillhouse.tokens.source import open_source, open_tokenizer
from stillhouse.tokens.tokenizer import special_tokens
from stillhouse.training.device import pick_device
from stillhouse.training.progress import Reporter

NO_SPEED = {"forward_tokens_per_second": None, "generate_tokens_per_second": None}


@dataclass
class Measured:
    """What was measured once and holds for several seeds: by model folder, or by configuration."""

    quality: dict[Path, dict[str, Any]] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)


def evaluate_inputs(
    recipe: Recipe, run: RunFolder, teacher_fingerprint: str, outputs: Mapping[str, Path], seed: int
) -> Inputs:
    """What `evaluation.json` follows from."""
    sources = {"teacher": teacher_fingerprint}
    for name, folder in {"tokens": run.tokens, **outputs}.items():
        manifest = read_manifest(folder)
        sources[name] = manifest.fingerprint if manifest else ""
    settings = {"evaluation": recipe_part(recipe.evaluation), "tokens": recipe_part(recipe.tokens)}
    for path in recipe.evaluation.perplexity:
        if path != "validation" and Path(path).is_file():
            sources[path] = sha256_of(Path(path))
    return Inputs("evaluate", settings, sources, seed)


def evaluate(
    recipe: Recipe,
    run: RunFolder,
    folders: Mapping[str, Path],
    inputs: Inputs,
    measured: Measured,
    reporter: Reporter,
) -> None:
    """Measure every model and commit `evaluation.json`."""
    started = time.monotonic()
    loaded = {name: load_model(folder) for name, folder in folders.items()}
    for _, model in loaded.values():
        model.to(device=pick_device())  # pyright: ignore[reportCallIssue]
    models: dict[str, dict[str, Any]] = {}
    for name, (family, model) in loaded.items():
        folder = folders[name]
        if folder not in measured.quality:
            reporter.say(f"evaluate: quality of {name}")
            measured.quality[folder] = _quality(recipe, run, family, model)
        models[name] = {
            **_size(folder, model),
            **measured.quality[folder],
            "agreement": _agreement(recipe, run, loaded, name),
            **_training_facts(folder),
        }
    speeds = _by_shape(folders, loaded) if recipe.evaluation.speed else {}
    for name, folder in folders.items():
        shape = shape_key(folder)
        if recipe.evaluation.speed and shape not in measured.memory:
            reporter.say(f"evaluate: memory of {name}")
            measured.memory[shape] = peak_memory_bytes(folder)
        models[name]["speed"] = speeds.get(shape, NO_SPEED)
        models[name]["peak_memory_bytes"] = measured.memory.get(shape)
    result = {
        "schema": 1,
        "protocol": _protocol(recipe, loaded["student"]),
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "seed": inputs.seed,
        "models": models,
        "comparison": _comparison(models),
        "samples": text_samples(recipe, run, loaded),
    }
    commit_file(run.evaluation, _json(result), inputs, seconds=time.monotonic() - started)


def summarize(recipe: Recipe, run: RunFolder, seed_runs: Sequence[RunFolder]) -> None:
    """Write the run's `evaluation.json` over several seeds: each seed's result, medians and
    ranges."""
    results = [
        json.loads(seed_run.evaluation.read_text(encoding="utf-8")) for seed_run in seed_runs
    ]
    summary = {
        name: {
            key: _spread([result["models"][name][key] for result in results])
            for key in ("validation_loss", "masked_loss")
        }
        for name in results[0]["models"]
    }
    comparison = {
        key: _spread([result["comparison"][key] for result in results])
        for key in results[0]["comparison"]
    }
    content = {
        "schema": 1,
        "seeds": recipe.seeds,
        "summary": summary,
        "comparison": comparison,
        "runs": results,
    }
    sources = {f"seed {result['seed']}": fingerprint(result) for result in results}
    commit_file(run.evaluation, _json(content), Inputs("summarize", {}, sources))


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


def _size(folder: Path, model: PreTrainedModel) -> dict[str, Any]:
    total, body = count_parameters(model)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "path": str(folder),
        "parameters": total,
        "body_parameters": body,
        "size_bytes": size,
    }


def _quality(
    recipe: Recipe, run: RunFolder, family: Family, model: PreTrainedModel
) -> dict[str, Any]:
    tokenizer = open_tokenizer(run.tokens)
    special = special_tokens(tokenizer, family.language_modeling)
    if family.language_modeling == "masked":
        loss, _ = mean_loss(family, model, open_source(run.tokens, recipe.tokens, "validation"))
        return {"validation_loss": loss, "masked_loss": loss, "perplexity": None}
    assert special.end_of_text is not None
    figures = {}
    for name in recipe.evaluation.perplexity:
        text = (
            validation_text(run.tokens)
            if name == "validation"
            else file_text(Path(name), tokenizer)
        )
        figures[name] = perplexity(
            family,
            model,
            text,
            end_of_text=special.end_of_text,
            context=recipe.tokens.sequence_length,
        )
    first, *others = figures
    result = {
        "validation_loss": math.log(figures[first]["token"]),
        "masked_loss": None,
        "perplexity": figures[first],
    }
    return (
        {**result, "perplexity_of": {name: figures[name] for name in others}} if others else result
    )


def _agreement(
    recipe: Recipe,
    run: RunFolder,
    loaded: Mapping[str, tuple[Family, PreTrainedModel]],
    name: str,
) -> dict[str, float]:
    if name == "teacher":
        return WITH_ITSELF
    source = open_source(run.tokens, recipe.tokens, "validation")
    return agreement(loaded["teacher"], loaded[name], source)


def _by_shape(
    folders: Mapping[str, Path], loaded: Mapping[str, tuple[Family, PreTrainedModel]]
) -> dict[str, dict[str, float | None]]:
    """Speed of each distinct configuration, measured side by side."""
    names = {shape_key(folder): name for name, folder in reversed(list(folders.items()))}
    speeds = measure_speed({name: loaded[name] for name in reversed(list(names.values()))})
    return {shape: speeds[name] for shape, name in names.items()}


def _training_facts(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    facts = manifest.facts.get("training") if manifest else None
    return {"training": facts}


def _comparison(models: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Ratios of student over teacher, and its loss less the control's (below zero: better)."""
    teacher, student = models["teacher"], models["student"]
    speed = "forward_tokens_per_second"
    speeds = [model["speed"][speed] for model in (student, teacher)]
    perplexities = [
        model["perplexity"]["token"] if model["perplexity"] else None
        for model in (student, teacher)
    ]
    comparison: dict[str, float | None] = {
        "size_ratio": student["parameters"] / teacher["parameters"],
        "speed_ratio": _ratio(*speeds),
        "perplexity_ratio": _ratio(*perplexities),
        "loss_over_control": None,
    }
    for name, key in (
        ("control", "loss_over_control"),
        ("control_same_time", "loss_over_control_same_time"),
    ):
        if name in models:
            comparison[key] = student["validation_loss"] - models[name]["validation_loss"]
    return comparison


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _protocol(recipe: Recipe, student: tuple[Family, PreTrainedModel]) -> dict[str, Any]:
    """In words and numbers, how the figures were taken."""
    family, model = student
    context = min(recipe.tokens.sequence_length, family.num_positions(model.config))
    if family.language_modeling == "masked":
        validation = (
            f"Mean loss in nats over the predicted tokens of all validation sequences of {context} "
            "tokens, "
            "under one fixed mask that is the same for every model."
        )
    else:
        validation = (
            f"Every token of the held-out documents is scored, in blocks of {context} that begin "
            "with "
            "end-of-text; token_s512 slides with the stride below. Words and bytes are counted on "
            "the text."
        )
    return {
        "validation": validation,
        "agreement": "With the teacher, over the predicted tokens of the first validation "
        f"sequences, {ROWS:,} or a few more: acceptance is the mean of the sum of min(p, q) over "
        "the vocabulary, at temperature 1; same_choice the share of tokens where both find the "
        "same one likeliest.",
        "perplexity_block": context,
        "stride_s512": min(512, context // 2),
        "speed": "float32, forward over 8 sequences with the head and greedy generation of one; "
        "models take turns, "
        "median of 5 after a warm-up; models of one configuration are measured once.",
        "memory": "Peak resident memory of a fresh process that loads the model and runs one "
        "forward pass.",
        "texts": recipe.evaluation.perplexity,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
