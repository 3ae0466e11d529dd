"""The result of a run in a terminal: the outcome in words, one row a model, where the report is."""

import io
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from stillhouse.recipe import Recipe
from stillhouse.report import units
from stillhouse.report.outcome import summarize_results
from stillhouse.report.results import (
    CONTROLS,
    SeedResult,
    loss_path,
    models_of,
    read_results,
    spread_of,
)
from stillhouse.runs.paths import RunFolder

LARGEST_WIDTH = 110
PLAIN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
SHORT = {
    "teacher": "teacher",
    "student": "student",
    "control": "control",
    "control_same_time": "control (time)",
}


def summary(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> str:
    """The summary as text, no wider than the terminal it is read on; several seeds by medians."""
    results = read_results(recipe, seed_runs)
    outcome = summarize_results(recipe, results)
    page = io.StringIO()
    width = min(LARGEST_WIDTH, max(80, Console().width))
    console = Console(file=page, width=width, highlight=False)
    console.print(_models(recipe, results))
    if len(results) > 1:
        console.print(_seeds(recipe, results))
    if len(results) > 1 and set(CONTROLS) & set(models_of(results)):
        console.print("The student's loss less its control's, with its 95 % interval:")
        console.print(_differences(recipe, results))
    console.print(f"{outcome.title} {outcome.text}", markup=False)
    console.print(f"\nStudent  {seed_runs[0].student}", markup=False, soft_wrap=True)
    console.print(f"Report   {run.report}", markup=False, soft_wrap=True)
    return page.getvalue().strip("\n")


def _models(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """One row a model: size, speeds in tokens/s, quality, what its training took."""
    masked = recipe.tokens.language_modeling == "masked"
    columns = ["params", "reads", "writes", "loss", "perplexity", "tokens", "time"]
    paths = [
        ("parameters", units.count),
        ("speed.forward_tokens_per_second", lambda rate: f"{rate:,.0f}/s"),
        ("speed.generate_tokens_per_second", lambda rate: f"{rate:,.0f}/s"),
        (loss_path(recipe), _loss),
        ("perplexity.token", units.perplexity),
        ("training.tokens", units.count),
        ("training.seconds", units.short_time),
    ]
    shown = [
        i for i in range(len(columns)) if not (masked and columns[i] in ("writes", "perplexity"))
    ]
    table = Table("", *(columns[i] for i in shown), **PLAIN)
    _align(table)
    for model in models_of(results):
        found = [(spread_of(results, model, paths[i][0]), paths[i][1]) for i in shown]
        table.add_row(SHORT[model], *("" if s is None else show(s.median) for s, show in found))
    return table


def _seeds(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Each seed's losses in nats per token."""
    path, models = loss_path(recipe), models_of(results)
    table = Table("loss", *(SHORT[model] for model in models), **PLAIN)
    _align(table)
    for result in results:
        losses = [result.value(model, path) for model in models]
        cells = ["" if loss is None else _loss(loss) for loss in losses]
        table.add_row(f"seed {result.seed}", *cells)
    return table


def _differences(recipe: Recipe, results: Sequence[SeedResult]) -> Table:
    """Each seed's student less its controls, with the 95 % interval; below zero the teacher
    helped."""
    path, controls = loss_path(recipe), [each for each in CONTROLS if each in models_of(results)]
    table = Table("", *(SHORT[each] for each in controls), **PLAIN)
    _align(table)
    for result in results:
        found = [result.minus(control, path) for control in controls]
        cells = [
            "" if each.value is None else f"{units.signed(each.value)} ({each.interval() or '?'})"
            for each in found
        ]
        table.add_row(f"seed {result.seed}", *cells)
    return table


def _loss(value: float) -> str:
    """Three decimals, but for the huge loss of a model that diverged."""
    return f"{value:.3f}" if value < 1_000 else f"{value:.1e}"


def _align(table: Table) -> None:
    """Names to the left, unbroken; numbers to the right."""
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
