"""Measures teacher, student and controls side by side: model folders -> evaluation.json (schema
1).

`validation_units` keeps every model's losses document by document (or block by block), and
`intervals` how sure each difference to the student is. A number that is not finite is null, and
its model stands under `diverged`.
"""

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
from stillhouse.evaluation.intervals import difference
from stillhouse.evaluation.perplexity import UnitLosses, stride_of
from stillhouse.evaluation.progress import Progress
from stillhouse.evaluation.quality import context_of, has_diverged, num_batches, score_on_run
from stillhouse.evaluation.samples import text_samples
from stillhouse.evaluation.speed import measure_speed, peak_memory_bytes, shape_key
from stillhouse.evaluation.teacher_fit import advice, teacher_fit, weakness
from stillhouse.families.base import Family
from stillhouse.inference.reference import MOST_TURNS, TURNS
from stillhouse.machine import describe_machine, library_versions, source_commit
from stillhouse.models.load import count_parameters, load_model
from stillhouse.recipe import Recipe
from stillhouse.runs.manifest import Inputs, commit_file, fingerprint, read_manifest, sha256_of
from stillhouse.runs.paths import RunFolder
from stillhouse.section import recipe_part
from stillhouse.tokens.source import open_source, open_tokenizer
from stillhouse.training.device import pick_device
from stillhouse.training.progress import Reporter

NO_SPEED = {"forward_tokens_per_second": None, "generate_tokens_per_second": None}


@dataclass
class Measured:
    """What was measured once and holds for several seeds: by model folder, or by configuration."""

    quality: dict[Path, tuple[dict[str, Any], UnitLosses]] = field(default_factory=dict)
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
    losses = _measure_quality(recipe, run, folders, loaded, measured, reporter)
    models = {
        name: {
            **_size(folder, loaded[name][1]),
            **measured.quality[folder][0],
            "agreement": _agreement(recipe, run, loaded, name),
            **_training_facts(folder),
        }
        for name, folder in folders.items()
    }
    _measure_costs(recipe, folders, loaded, models, measured, reporter)
    vocabulary_size = len(open_tokenizer(run.tokens))
    diverged = [name for name, own in losses.items() if has_diverged(own.mean, vocabulary_size)]
    result = {
        "schema": 1,
        "protocol": _protocol(recipe, loaded["student"]),
        "machine": describe_machine(),
        "versions": library_versions(),
        "commit": source_commit(),
        "seed": inputs.seed,
        "models": models,
        "diverged": diverged,
        "comparison": _comparison(models),
        "intervals": {
            name: {**difference(losses["student"], own), "units": len(own.tokens), "unit": own.unit}
            for name, own in losses.items()
            if name != "student"
        },
        "validation_units": _units(losses),
        "teacher_fit": _teacher_fit(recipe, run, loaded["teacher"]),
        "samples": text_samples(recipe, run, loaded, diverged),
    }
    commit_file(run.evaluation, _json(result), inputs, seconds=time.monotonic() - started)


def _measure_quality(
    recipe: Recipe,
    run: RunFolder,
    folders: Mapping[str, Path],
    loaded: Mapping[str, tuple[Family, PreTrainedModel]],
    measured: Measured,
    reporter: Reporter,
) -> dict[str, UnitLosses]:
    """Score each model that was not scored for another seed; one bar over all."""
    waiting = [name for name, folder in folders.items() if folder not in measured.quality]
    total = len(waiting) * num_batches(recipe, run, loaded["student"])
    with Progress(reporter, f"evaluate: quality of {', '.join(waiting)}", total) as progress:
        for name in waiting:
            measured.quality[folders[name]] = score_on_run(recipe, run, *loaded[name], progress.add)
    return {name: measured.quality[folder][1] for name, folder in folders.items()}


def _measure_costs(
    recipe: Recipe,
    folders: Mapping[str, Path],
    loaded: Mapping[str, tuple[Family, PreTrainedModel]],
    models: Mapping[str, dict[str, Any]],
    measured: Measured,
    reporter: Reporter,
) -> None:
    """Add speed and peak memory, once for each configuration, where the recipe asks for them."""
    speeds = _by_shape(folders, loaded, reporter) if recipe.evaluation.speed else {}
    for name, folder in folders.items():
        shape = shape_key(folder)
        if recipe.evaluation.speed and shape not in measured.memory:
            reporter.say(f"evaluate: memory of {name}")
            measured.memory[shape] = peak_memory_bytes(folder)
        models[name]["speed"] = speeds.get(shape, NO_SPEED)
        models[name]["peak_memory_bytes"] = measured.memory.get(shape)


def _units(losses: Mapping[str, UnitLosses]) -> dict[str, Any]:
    """The losses that intervals follow from, in nats, as JSON holds them."""
    any_model = next(iter(losses.values()))
    return {
        "unit": any_model.unit,
        "tokens": any_model.tokens.tolist(),
        "loss_sums": {
            name: [round(value, 4) if math.isfinite(value) else None for value in own.sums.tolist()]
            for name, own in losses.items()
        },
    }


def _teacher_fit(
    recipe: Recipe, run: RunFolder, teacher: tuple[Family, PreTrainedModel]
) -> dict[str, Any]:
    """How well the teacher knows the text, and what to do where it does not."""
    fit = teacher_fit(recipe, run, *teacher)
    return {
        "tokens": fit.tokens,
        "loss": _finite(fit.loss),
        "unigram_loss": fit.unigram_loss,
        "warning": f"{weakness(fit)} {advice(recipe)}" if fit.is_weak else None,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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


def _agreement(
    recipe: Recipe,
    run: RunFolder,
    loaded: Mapping[str, tuple[Family, PreTrainedModel]],
    name: str,
) -> Mapping[str, float | None]:
    if name == "teacher":
        return WITH_ITSELF
    source = open_source(run.tokens, recipe.tokens, "validation")
    return agreement(loaded["teacher"], loaded[name], source)


def _by_shape(
    folders: Mapping[str, Path],
    loaded: Mapping[str, tuple[Family, PreTrainedModel]],
    reporter: Reporter,
) -> dict[str, dict[str, Any]]:
    """Speed of each distinct configuration, measured side by side, the teacher's first."""
    names: dict[str, str] = {}
    for name, folder in folders.items():
        names.setdefault(shape_key(folder), name)
    speeds = measure_speed({name: loaded[name] for name in names.values()}, reporter)
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
            losses = [model["validation_loss"] for model in (student, models[name])]
            comparison[key] = None if None in losses else losses[0] - losses[1]
    return comparison


def _ratio(top: float | None, bottom: float | None) -> float | None:
    return top / bottom if top is not None and bottom else None


def _protocol(recipe: Recipe, student: tuple[Family, PreTrainedModel]) -> dict[str, Any]:
    """In words and numbers, how the figures were taken."""
    context = context_of(recipe, student)
    if recipe.tokens.language_modeling == "masked":
        validation = (
            f"Mean loss in nats over the predicted tokens of all validation sequences of {context} "
            "tokens, under one fixed mask that is the same for every model."
        )
    else:
        validation = (
            f"Every token of the text is scored, in blocks of {context} that begin with "
            "the document start; token_s512 slides with the stride below. Words and bytes are "
            "counted on the text."
        )
    return {
        "validation": validation,
        "intervals": "95 % of a paired bootstrap over the documents of the text (over blocks where "
        "they are few): both models on the same resampled documents.",
        "agreement": "With the teacher, over the predicted tokens of the first validation "
        f"sequences, at most {ROWS:,} or a few more: acceptance is the mean of the sum of "
        "min(p, q) over the vocabulary, at temperature 1; same_choice the share of tokens where "
        "both find the same one likeliest.",
        "perplexity_block": context,
        "stride_s512": stride_of(context),
        "speed": "float32, forward over 8 sequences with the head and greedy generation of one; "
        f"models take turns, median of {TURNS} after a warm-up, or of up to {MOST_TURNS} where "
        "they vary; the range of a ratio is the 95 % interval of its median over turns. Models of "
        "one configuration are measured once.",
        "memory": "Peak resident memory of a fresh process that loads the model and runs one "
        "forward pass.",
        "texts": recipe.evaluation.perplexity,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
