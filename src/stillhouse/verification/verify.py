"""`stillhouse verify`: every check of a recipe, as a table."""

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stillhouse.objectives.divergences import DIVERGENCES
from stillhouse.recipe import Recipe
from stillhouse.verification.checks import Check
from stillhouse.verification.language import language_case, language_checks
from stillhouse.verification.tasks import task_case, task_checks


def verify_recipe(name: str, recipe: Recipe, *, offline: bool) -> dict[str, Any]:
    """Every check of the recipe, by what it trains. Writes to a temporary folder only.

    Raises:
        StillhouseError: the recipe, its teacher or its text cannot be used.
    """
    parts: dict[str, list[Check]] = {}
    terms: dict[str, set[str]] = {}
    if recipe.corpus is not None:
        with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as folder:
            case = language_case(recipe, Path(folder), offline=offline)
            terms["distillation"] = {*DIVERGENCES, *case.losses().active()}
            parts["distillation"] = list(language_checks(case))
    for task, settings in recipe.finetuning.items():
        with tempfile.TemporaryDirectory(prefix="stillhouse-verify-") as folder:
            own = task_case(task, settings, recipe, Path(folder), offline=offline)
            terms[task] = {*own.losses().active()}
            parts[task] = list(task_checks(own, Path(folder)))
    return {
        "recipe": name,
        "checks": {part: [check.as_json() for check in found] for part, found in parts.items()},
        "not_verified": {
            part: sorted(terms[part] - {check.name for check in found})
            for part, found in parts.items()
        },
        "failed": sum(not check.passed for found in parts.values() for check in found),
    }


def print_checks(result: dict[str, Any]) -> None:
    """The checks of each part as a table, and the losses that no formula checks, on stdout."""
    console = Console(highlight=False, markup=False)
    for part, checks in result["checks"].items():
        title = f"{result['recipe']}: {part}"
        table = Table("check", "compared with", title=title, title_justify="left")
        for column in ("off by", "at most", "unit", ""):
            table.add_column(column, no_wrap=True)
        for check in checks:
            figures = (f"{check['difference']:.1e}", f"{check['bound']:.0e}", check["unit"])
            verdict = "ok" if check["passed"] else "FAILED"
            table.add_row(check["name"], check["compared"], *figures, verdict)
        console.print(table)
        if missing := result["not_verified"][part]:
            console.print(f"not compared with a formula: {', '.join(missing)}")
