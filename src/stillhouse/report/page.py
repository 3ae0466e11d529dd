"""The report page of a distillation; see `html`, of which it is made."""

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.recipe_file import dump_recipe
from stillhouse.report.curves import draw_curves
from stillhouse.report.html import definitions, table_html, whole_page
from stillhouse.report.outcome import summarize_results
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    label_of,
    models_of,
    resampled,
    scored_text,
    seeds_of,
)
from stillhouse.report.standing import dot_plot
from stillhouse.report.table import by_seed, comparison
from stillhouse.report.task_page import TaskResult, task_section
from stillhouse.runs.paths import RunFolder
from stillhouse.wording import counted


def model_name(recipe: Recipe, run: RunFolder) -> str:
    """The name the recipe gives, or the run folder's."""
    return recipe.report.model_name or run.shared.resolve().name


def report_page(
    recipe: Recipe,
    run: RunFolder,
    results: Sequence[SeedResult],
    tasks: Sequence[TaskResult],
) -> str:
    """The whole page as text."""
    name = model_name(recipe, run)
    outcome = summarize_results(recipe, results)
    sections = [
        dot_plot(recipe, results),
        "<h2>Comparison</h2>",
        _comparison(recipe, results),
        _seeds(recipe, results),
        *(task_section(recipe, each) for each in tasks),
        "<h2>Training</h2>",
        _skipped(results),
        _legend(results),
        draw_curves(recipe, results),
        _samples(results),
        _provenance(recipe, run, results),
    ]
    body = "\n".join(section for section in sections if section)
    return whole_page(name, "distillation", outcome, body)


def _comparison(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    note = (
        f"Median of {seeds_of(recipe.seeds)}, with the smallest and the largest value below it. "
        if len(results) > 1
        else f"Seed {results[0].seed}. "
    )
    note += (
        "Ratios are to the teacher, number by number as they stand here. How each is measured "
        "stands under Protocol."
    )
    models = models_of(results)
    return f'<p class="note">{escape(note)}</p>{table_html(comparison(recipe, results), models)}'


def _seeds(recipe: Recipe, results: Sequence[SeedResult]) -> str:
    """Every seed's losses and differences; nothing where one seed has no control to be held to."""
    has_control = bool(set(CONTROLS) & set(models_of(results)))
    if len(results) == 1 and not has_control:
        return ""
    note = f"Loss on {scored_text(recipe)}, in nats per predicted token."
    if has_control:
        note += (
            " The control is the same student, trained from the same initial weights without the "
            "teacher, so each difference is paired within its seed; below zero the student is "
            f"better. Its 95 % interval is over {resampled(results)}."
        )
    if len(results) == 1:
        note += (
            " One seed is no evidence of the spread between seeds; "
            "list several seeds in the recipe to see it."
        )
    title = "Seeds" if len(results) > 1 else "Against the control"
    table = table_html(by_seed(recipe, results), models_of(results))
    return f"<h2>{title}</h2><p>{escape(note)}</p>{table}"


def _legend(results: Sequence[SeedResult]) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 44 12" aria-hidden="true"><path class="line {escape(model)}" '
        f'd="M2 6H42"/></svg>{escape(label_of(model))}</li>'
        for model in models_of(results)
        if model != "teacher"  # which these charts do not show
    )
    return f'<ul class="legend">{items}</ul>'


def _skipped(results: Sequence[SeedResult]) -> str:
    """A sentence for every training that left out updates because its loss was not finite."""
    found = []
    for result in results:
        most: dict[str, int] = {}
        for line in result.metrics:
            model = line["model"]
            most[model] = max(most.get(model, 0), int(line.get("skipped_steps") or 0))
        seed = f" (seed {result.seed})" if len(results) > 1 else ""
        found += [
            f'<p class="bad">{escape(label_of(model))}{seed}: '
            f"{counted(number, 'optimizer step was', 'optimizer steps were')} skipped because the "
            "loss or the gradient was not finite.</p>"
            for model, number in most.items()
            if number
        ]
    return "".join(found)


def _samples(results: Sequence[SeedResult]) -> str:
    samples = results[0].evaluation.get("samples") or []
    if not samples:
        return ""
    parts = []
    for sample in samples:
        continuations = "".join(
            f'<div><h3 class="name-{escape(model)}">{escape(label_of(model))}</h3>'
            f"<p>{escape(str(text))}</p></div>"
            for model, text in sample["continuations"].items()
        )
        parts.append(
            f'<section class="sample"><p class="prompt">{escape(str(sample["prompt"]))}</p>'
            f'<div class="continuations">{continuations}</div></section>'
        )
    seed = f" of seed {results[0].seed}" if len(results) > 1 else ""
    return (
        f"<h2>Samples</h2><p>What the models{seed} write after the same prompts. A few samples "
        "show the manner of a model; they prove nothing about its quality.</p>"
        f"{''.join(parts)}"
    )


def command_line(recipe_file: str, run_dir: str) -> str:
    """The command that makes this run again."""
    return f"stillhouse run {shlex.quote(recipe_file)} --run-dir {shlex.quote(run_dir)}"


def _provenance(recipe: Recipe, run: RunFolder, results: Sequence[SeedResult]) -> str:
    first = results[0].evaluation
    seeds = ", ".join(str(result.seed) for result in results)
    folders = {label_of(model): facts.get("path") for model, facts in first["models"].items()}
    commits = sorted({str(result.evaluation.get("commit") or "unknown") for result in results})
    command = command_line(str(run.recipe), str(run.shared))
    return (
        f"<h2>Protocol</h2>{definitions(first.get('protocol') or {})}"
        f"<h2>Where the numbers come from</h2><p>One command makes this run. "
        f"A stage that is up to date is left alone; another --run-dir makes everything anew.</p>"
        f"<pre><code>{escape(command)}</code></pre>"
        f"{definitions({'seed': seeds, 'commit': ', '.join(commits)})}"
        f"{_machines(results)}"
        f"<details><summary>Versions</summary>{definitions(first.get('versions') or {})}</details>"
        f"<details><summary>Model folders</summary>{definitions(folders)}</details>"
        f"<details><summary>The recipe, every default written out</summary>"
        f"<pre><code>{escape(dump_recipe(recipe))}</code></pre></details>"
    )


def _machines(results: Sequence[SeedResult]) -> str:
    """The machine; every machine, where the seeds ran on different ones."""
    different: list[Mapping[str, Any]] = []
    for result in results:
        machine = result.evaluation.get("machine") or {}
        if machine not in different:
            different.append(machine)
    return "".join(definitions(machine) for machine in different)
