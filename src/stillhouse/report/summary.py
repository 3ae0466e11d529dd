"""The result of a run in a terminal: the outcome in words, the table, where the report is."""

import io

from rich.console import Console
from rich.table import Table as RichTable

from stillhouse.recipe import Recipe
from stillhouse.report.outcome import state_outcome
from stillhouse.report.results import read_results
from stillhouse.report.table import Cell, Table, by_seed, comparison
from stillhouse.run_folder import RunFolder

LARGEST_WIDTH = 120


def summary(recipe: Recipe, run: RunFolder, seed_runs: list[RunFolder]) -> str:
    """The summary as text, no wider than the terminal it is read on."""
    results = read_results(recipe, seed_runs)
    outcome = state_outcome(recipe, results)
    page = io.StringIO()
    width = min(LARGEST_WIDTH, max(80, Console().width))
    console = Console(file=page, width=width, highlight=False, force_terminal=False)
    console.print(_rich(comparison(recipe, results)))
    if len(results) > 1:
        console.print(_rich(by_seed(recipe, results)))
    console.print(f"{outcome.title} {outcome.text}", markup=False)
    console.print(
        f"\nStudent: {seed_runs[0].student}\nReport:  {run.report}", markup=False, soft_wrap=True
    )
    return page.getvalue().rstrip("\n")


def _rich(table: Table) -> RichTable:
    drawn = RichTable("", *table.columns)
    for label, cells in table.rows:
        drawn.add_row(label, *map(_text, cells))
    return drawn


def _text(cell: Cell) -> str:
    details = ", ".join(detail for detail in (cell.range, cell.ratio) if detail)
    return f"{cell.text} ({details})" if details else cell.text
