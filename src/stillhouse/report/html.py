"""What report pages are made of: one self-contained file, no script, nothing from elsewhere.

Everything that comes from a user (names, prompts, paths, text) passes through `html.escape`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from stillhouse.report import units
from stillhouse.report.outcome import Outcome
from stillhouse.report.table import NOT_FINITE, Cell, Table


def whole_page(name: str, kind: str, outcome: Outcome, body: str) -> str:
    """The page around its sections: what it is of, and the outcome in words."""
    style = (resources.files("stillhouse.report") / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}: {kind} report</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n"
        f'<header>\n<p class="kind">Stillhouse {kind} report</p>\n<h1>{escape(name)}</h1>\n'
        f'<p class="outcome {outcome.verdict}">{escape(outcome.title)}</p>\n'
        f'<p class="lead">{escape(outcome.text)}</p>\n</header>\n<main>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def table_html(table: Table, models: Sequence[str]) -> str:
    """A table that scrolls by itself; the first columns, those of `models`, have their colors."""
    names = [*models, *[""] * (len(table.columns) - len(models))]
    head = "".join(
        f'<th scope="col"><span class="name-{escape(name)}">{escape(title)}</span></th>'
        for title, name in zip(table.columns, names, strict=True)
    )
    rows = "".join(
        f'<tr class="{_row_class(label)}"><th scope="row">{escape(label)}</th>'
        f"{''.join(_cell(cell) for cell in cells)}</tr>\n"
        for label, cells in table.rows
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table"><table>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )


def _row_class(label: str) -> str:
    return "summary" if label == "Median" else "row"


def _cell(cell: Cell) -> str:
    if cell.is_missing:
        kind = ' class="bad"' if cell.text == NOT_FINITE else ""
        return f"<td><em{kind}>{escape(cell.text)}</em></td>"
    notes = "".join(f"<span>{escape(note)}</span>" for note in (cell.range, cell.ratio) if note)
    return f"<td>{escape(cell.text)}{notes}</td>"


def definitions(facts: Mapping[str, Any]) -> str:
    """A mapping as a description list; sizes in bytes become readable."""
    items = "".join(
        f"<dt>{escape(words(key))}</dt><dd>{escape(plain(key, value))}</dd>"
        for key, value in facts.items()
    )
    return f"<dl>{items}</dl>" if items else ""


def words(key: str) -> str:
    """A key for people: stride_s512 -> Stride s512, memory_bytes -> Memory."""
    text = key.removesuffix("_bytes").replace("_", " ")
    return "GPUs" if text == "gpus" else text[:1].upper() + text[1:]


def plain(key: str, value: Any) -> str:
    """A fact as one line of text; within a mapping, what was not given is left out."""
    if key.endswith("_bytes") and isinstance(value, (int, float)):
        return units.size_bytes(value)
    if isinstance(value, Mapping):
        given = {name: plain(str(name), each) for name, each in value.items() if each is not None}
        return "; ".join(f"{words(str(name))}: {each}" for name, each in given.items() if each)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)
