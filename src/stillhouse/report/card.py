"""The model card of a student, its README.md: Markdown under Hugging Face front matter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import units
from stillhouse.report.markdown import block, bullets, license_note, markdown, source_name, text
from stillhouse.report.origin import hub_name_of, origin_of
from stillhouse.report.outcome import summarize_results
from stillhouse.report.page import command_line, model_name
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    models_of,
    resampled,
    scored_text,
    seeds_of,
)
from stillhouse.report.table import by_seed, comparison
from stillhouse.runs.manifest import read_manifest
from stillhouse.runs.paths import RunFolder
from stillhouse.teacher.settings import TeacherRecipe, TunedTeacherRecipe
from stillhouse.wording import counted


def model_card(
    recipe: Recipe, run: RunFolder, results: Sequence[SeedResult], result: SeedResult
) -> str:
    """The card of one seed's student; its table speaks for all seeds of the run."""
    name = model_name(recipe, run)
    outcome = summarize_results(recipe, results)
    parts = [
        f"---\n{front_matter(recipe)}---\n",
        f"# {text(name)}\n",
        f"{_what_it_is(recipe)} {outcome.title} {outcome.text}\n",
        "## Results\n",
        markdown(comparison(recipe, results)),
        _results_note(recipe, results, result),
        markdown(by_seed(recipe, results)),
        "## How it was made\n",
        _how_it_was_made(recipe, result),
        "## How to use it\n",
        _how_to_use(recipe),
        "## Limits and bias\n",
        _limits(recipe),
        "## How it was measured\n",
        bullets(result.evaluation.get("protocol") or {}),
        where_it_comes_from(recipe, name, result.evaluation),
    ]
    return "\n".join(parts)


def where_it_comes_from(recipe: Recipe, name: str, measured: Mapping[str, Any]) -> str:
    """The end of every card: on what a model was measured, and the recipe that makes it again.

    Args:
        name: Of the run.
        measured: Has `machine`, `versions` and `commit`.
    """
    parts = [
        bullets(measured.get("machine") or {}),
        bullets({"versions": measured.get("versions") or {}}),
        f"- Commit: {text(measured.get('commit') or 'unknown')}\n",
        "## Make it again\n",
        "Save the recipe below as `recipe.yaml`, then:\n",
        block("bash", command_line("recipe.yaml", f"runs/{name}")),
        block("yaml", dump_recipe(recipe)),
    ]
    return "\n".join(parts)


def front_matter(recipe: Recipe) -> str:
    """The YAML that the hub reads. A teacher trained here or kept in a folder has no hub name."""
    causal = recipe.tokens.language_modeling == "causal"
    facts: dict[str, Any] = {"license": recipe.report.license} if recipe.report.license else {}
    if recipe.named_model and (hub_name := hub_name_of(recipe.named_model)):
        facts["base_model"] = hub_name
    facts |= {
        "tags": ["stillhouse", "distillation"],
        "pipeline_tag": "text-generation" if causal else "fill-mask",
        "library_name": "transformers",
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def _what_it_is(recipe: Recipe) -> str:
    kind = "causal" if recipe.tokens.language_modeling == "causal" else "masked"
    if isinstance(recipe.teacher, TeacherRecipe):
        teacher = (
            f"a {recipe.teacher.family} teacher of "
            f"{counted(recipe.teacher.num_layers, 'layer')}, "
            "trained for it on the same text"
        )
    else:
        teacher = origin_of(recipe.named_model or "", "teacher")
    if isinstance(recipe.teacher, TunedTeacherRecipe):
        teacher += ", fine-tuned for it on the same text"
    return f"A small {kind} language model, distilled with Stillhouse from {teacher}."


def _results_note(recipe: Recipe, results: Sequence[SeedResult], result: SeedResult) -> str:
    has_control = bool(set(CONTROLS) & set(models_of(results)))
    control = (
        " A control is the same student trained from the same initial weights without the teacher; "
        f"differences stand with their 95 % interval over {resampled(results)}."
        if has_control
        else ""
    )
    if len(results) == 1:
        return (
            f"Seed {result.seed}; ratios are to the teacher.{control} One seed is no evidence of "
            "the spread between seeds.\n"
        )
    return (
        f"Medians of {seeds_of(recipe.seeds)}, smallest to largest; ratios are to the teacher. "
        f"This folder holds the student of seed {result.seed}.{control}\n"
    )


def _how_it_was_made(recipe: Recipe, result: SeedResult) -> str:
    distillation = recipe.distillation
    losses = ", ".join(
        f"`{name}` {term.weight:g} ({term.rows} rows)"
        for name, term in distillation.losses.active().items()
    )
    trained = result.value("student", "training.tokens")
    optimizer = distillation.optimizer
    facts = {
        "Text": ", ".join(source_name(source) for source in recipe.text.sources),
        "Teacher layers copied": _layer_map(recipe, result),
        "Losses and weights": losses,
        "Temperature": f"{distillation.temperature:g}",
        "Training tokens": units.tokens(trained) if trained is not None else "unknown",
        "Sequence length": f"{recipe.tokens.sequence_length:,} tokens",
        "Optimizer": (
            f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, "
            f"{distillation.schedule.name} schedule, "
            f"{distillation.tokens_per_step:,} tokens per step"
        ),
        "Seed": str(result.seed),
    }
    return "".join(f"- {key}: {value}\n" for key, value in facts.items())


def _layer_map(recipe: Recipe, result: SeedResult) -> str:
    manifest = read_manifest(result.run.student_init)
    layers = manifest.facts.get("layer_map") if manifest else None
    layers = layers if layers is not None else recipe.student.layer_map
    if recipe.student.weights != "teacher":
        weights = text(Path(recipe.student.weights).name)
        return f"none (initial weights: {weights}); layer map {layers}"
    if isinstance(layers, list):
        return f"{', '.join(map(str, layers))} (counted from 0)"
    return "see the recipe below" if layers is None else f"{layers}, spread evenly"


def _how_to_use(recipe: Recipe) -> str:
    if recipe.tokens.language_modeling == "causal":
        code = (
            "from transformers import pipeline\n\n"
            'generate = pipeline("text-generation", model="path/to/this/folder")\n'
            'print(generate("Once upon a time", max_new_tokens=40)[0]["generated_text"])'
        )
        command = 'stillhouse generate path/to/this/folder --prompt "Once upon a time"'
    else:
        code = (
            "from transformers import pipeline\n\n"
            'fill = pipeline("fill-mask", model="path/to/this/folder")\n'
            'print(fill(f"Paris is the {fill.tokenizer.mask_token} of France."))'
        )
        command = "stillhouse compare path/to/this/folder path/to/another/model"
    blocks = (block("python", code), block("bash", command))
    return f"With transformers:\n\n{blocks[0]}\nWith stillhouse:\n\n{blocks[1]}"


def _limits(recipe: Recipe) -> str:
    return (
        "- A student inherits its teacher's errors and biases, and those of the text it was "
        "trained on; it can make them stronger.\n"
        "- It was not tested for fairness, toxicity, truthfulness or memorized text.\n"
        f"- The results hold for {_scored(recipe)}; other text and other tasks were not "
        "measured.\n"
        f"{license_note(recipe)}"
    )


def _scored(recipe: Recipe) -> str:
    """The text of the results, by a name that stands in the card."""
    text = scored_text(recipe)
    held_out = "the held-out part of the text it was trained on"
    return held_out if text == "the validation split" else f"`{text}`"
