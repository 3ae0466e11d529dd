"""The model card of a student, its README.md: Markdown under Hugging Face front matter."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stillhouse.recipe import Recipe, TeacherRecipe, TunedTeacherRecipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report import units
from stillhouse.report.html import plain, words
from stillhouse.report.outcome import state_outcome
from stillhouse.report.page import command_line, model_name
from stillhouse.report.results import SeedResult
from stillhouse.report.table import Cell, Table, by_seed, comparison
from stillhouse.run_folder import RunFolder, read_manifest

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def model_card(
    recipe: Recipe, run: RunFolder, results: Sequence[SeedResult], result: SeedResult
) -> str:
    """The card of one seed's student; its table speaks for all seeds of the run."""
    name = model_name(recipe, run)
    outcome = state_outcome(recipe, results)
    parts = [
        f"---\n{front_matter(recipe)}---\n",
        f"# {_text(name)}\n",
        f"{_what_it_is(recipe)} {outcome.title} {outcome.text}\n",
        "## Results\n",
        _markdown(comparison(recipe, results)),
        _results_note(results, result),
        _markdown(by_seed(recipe, results)),
        "## How it was made\n",
        _how_it_was_made(recipe, result),
        "## How to use it\n",
        _how_to_use(recipe),
        "## Limits and bias\n",
        _limits(recipe),
        "## How it was measured\n",
        _bullets(result.evaluation.get("protocol") or {}),
        _bullets(result.evaluation.get("machine") or {}),
        _bullets({"versions": result.evaluation.get("versions") or {}}),
        f"- Commit: {_text(result.evaluation.get('commit') or 'unknown')}\n",
        "## Make it again\n",
        "Save the recipe below as `recipe.yaml`, then:\n",
        _block("bash", command_line("recipe.yaml", f"runs/{name}")),
        _block("yaml", dump_recipe(recipe)),
    ]
    return "\n".join(parts)


def front_matter(recipe: Recipe) -> str:
    """The YAML that the hub reads. A teacher trained here or kept in a folder has no hub name."""
    causal = recipe.tokens.language_modeling == "causal"
    facts: dict[str, Any] = {"license": recipe.report.license} if recipe.report.license else {}
    if hub_name := teacher_hub_name(recipe):
        facts["base_model"] = hub_name
    facts |= {
        "tags": ["stillhouse", "distillation"],
        "pipeline_tag": "text-generation" if causal else "fill-mask",
        "library_name": "transformers",
    }
    return yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)


def teacher_hub_name(recipe: Recipe) -> str | None:
    """The teacher's name on the hub; None for a folder and for a teacher trained here."""
    teacher = recipe.named_model
    if teacher is None or Path(teacher).exists():
        return None
    return teacher if HUB_NAME.fullmatch(teacher) and not teacher.startswith(".") else None


def _what_it_is(recipe: Recipe) -> str:
    kind = "causal" if recipe.tokens.language_modeling == "causal" else "masked"
    hub_name = teacher_hub_name(recipe)
    if hub_name:
        teacher = f"[{_text(hub_name)}](https://huggingface.co/{hub_name})"
    elif isinstance(recipe.teacher, TeacherRecipe):
        teacher = (
            f"a {recipe.teacher.family} teacher of {recipe.teacher.num_layers} layers, "
            "trained for it on the same text"
        )
    else:
        teacher = f"a teacher from a local folder ({_text(Path(recipe.named_model or '').name)})"
    if isinstance(recipe.teacher, TunedTeacherRecipe):
        teacher += ", fine-tuned for it on the same text"
    return f"A small {kind} language model, distilled with Stillhouse from {teacher}."


def _results_note(results: Sequence[SeedResult], result: SeedResult) -> str:
    if len(results) == 1:
        return (
            f"Seed {result.seed}; ratios are to the teacher. The control is the same student "
            "trained without the teacher. One seed is no evidence of the spread between seeds.\n"
        )
    return (
        f"Medians of {len(results)} seeds (smallest to largest); ratios are to the teacher. "
        f"This folder holds the student of seed {result.seed}. Each control is the same student "
        "trained without the teacher, from the same initial weights:\n"
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
        "Text": ", ".join(_source_name(source) for source in recipe.text.sources),
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


def _source_name(source: str) -> str:
    """A hub or packaged source as it is; of a path only its end, for cards are published."""
    return f"`{source if '://' in source else Path(source).name}`".replace("\n", " ")


def _layer_map(recipe: Recipe, result: SeedResult) -> str:
    manifest = read_manifest(result.run.student_init)
    layers = manifest.facts.get("layer_map") if manifest else None
    layers = layers if layers is not None else recipe.student.layer_map
    if recipe.student.weights != "teacher":
        weights = _text(Path(recipe.student.weights).name)
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
    blocks = (_block("python", code), _block("bash", command))
    return f"With transformers:\n\n{blocks[0]}\nWith stillhouse:\n\n{blocks[1]}"


def _limits(recipe: Recipe) -> str:
    license_note = (
        ""
        if recipe.report.license
        else (
            "- No license was set in the recipe (`report.license`): settle it before publishing; "
            "the teacher's license and that of the text may bind.\n"
        )
    )
    return (
        "- A student inherits its teacher's errors and biases, and those of the text it was "
        "trained on; it can make them stronger.\n"
        "- It was not tested for fairness, toxicity, truthfulness or memorized text.\n"
        "- The results hold for the validation text named below; other text and other tasks "
        "were not measured.\n"
        f"{license_note}"
    )


def _markdown(table: Table) -> str:
    head = ["", *table.columns]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' + ' ---: |' * len(table.columns)}"]
    lines += [
        f"| {_text(label)} | {' | '.join(_cell(cell) for cell in cells)} |"
        for label, cells in table.rows
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    notes = "; ".join(note for note in (cell.range, cell.ratio) if note)
    return _text(f"{cell.text} ({notes})" if notes else cell.text)


def _bullets(facts: dict[str, Any]) -> str:
    return "".join(
        f"- {_text(words(key))}: {_text(plain(key, value))}\n" for key, value in facts.items()
    )


def _text(value: str) -> str:
    """Text that Markdown shows as it is: no tags, no table cells, no line breaks of its own."""
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def _block(language: str, code: str) -> str:
    return f"```{language}\n{code.rstrip()}\n```\n"
