"""Tables and text for a terminal: labels on the left, numbers on the right."""

import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SMALLEST_WIDTH, LARGEST_WIDTH = 80, 110
Part = str | Text | Table


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", wrap: bool = False
) -> Table:
    """A table whose titles and cells are plain text.

    Args:
        wrap: Break long titles and cells over several lines, such as those with paths.
    """
    result = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for number, name in enumerate(columns):
        result.add_column(
            Text(name),
            justify="right" if number else "left",
            no_wrap=not (wrap and number),
            overflow="fold",
        )
    for row in rows:
        result.add_row(*map(Text, row))
    return result


def show(*parts: Part) -> None:
    """Print on stdout: tables, text that wraps (`rich.text.Text`), and strings, unbroken."""
    _print(Console(highlight=False), parts)


def render(*parts: Part) -> str:
    """The same as a string, as wide as the terminal but between 80 and 110 columns."""
    page = io.StringIO()
    columns = min(LARGEST_WIDTH, max(SMALLEST_WIDTH, Console().width))
    _print(Console(file=page, width=columns, highlight=False), parts)
    return page.getvalue().strip("\n")


def _print(console: Console, parts: Iterable[Part]) -> None:
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))
