"""What model cards are made of: Markdown that shows a user's own text as it is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillhouse.recipe import Recipe
from stillhouse.report.html import plain, words
from stillhouse.report.table import Cell, Table


def markdown(table: Table) -> str:
    """A table of numbers: labels to the left, cells to the right."""
    head = ["", *table.columns]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' + ' ---: |' * len(table.columns)}"]
    lines += [
        f"| {text(label)} | {' | '.join(_cell(cell) for cell in cells)} |"
        for label, cells in table.rows
    ]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    notes = "; ".join(note for note in (cell.range, cell.ratio) if note)
    return text(f"{cell.text} ({notes})" if notes else cell.text)


def bullets(facts: Mapping[str, Any]) -> str:
    """A list of facts, a line each."""
    return "".join(
        f"- {text(words(key))}: {text(plain(key, value))}\n" for key, value in facts.items()
    )


def text(value: str) -> str:
    """Text that Markdown shows as it is: no tags, no table cells, no line breaks of its own."""
    escaped = str(value).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
    return " ".join(escaped.split())


def block(language: str, code: str) -> str:
    """Code as it is, marked by its language."""
    return f"```{language}\n{code.rstrip()}\n```\n"


def source_name(source: str) -> str:
    """A hub or packaged source as it is; of a path only its end, for cards are published."""
    return f"`{source if '://' in source else Path(source).name}`".replace("\n", " ")


def license_note(recipe: Recipe) -> str:
    """What is to be settled before a model is published; nothing where the recipe has a licence."""
    if recipe.report.license:
        return ""
    return (
        "- No license was set in the recipe (`report.license`): settle it before publishing; "
        "the teacher's license and that of the text may bind.\n"
    )
