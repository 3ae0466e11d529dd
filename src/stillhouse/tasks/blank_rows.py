"""Rows of a task's file without any field, which are left out of training and scores, and said."""

from collections.abc import Sequence
from pathlib import Path

from stillhouse.data.formats.registry import format_name
from stillhouse.data.rows import blank_rows as blank_rows_of_table
from stillhouse.tasks.settings import QuestionAnsweringTask, TaskRecipe, TokenClassificationTask
from stillhouse.tasks.squad import read_articles
from stillhouse.tasks.token_classification import LISTS
from stillhouse.wording import counted

MOST_SHOWN = 5


def blank_rows(recipe: TaskRecipe, path: Path) -> list[int]:
    """The numbers of the blank rows of a table; none where blank lines have a meaning.

    Raises:
        DataError: what cannot be read, with its file and row.
    """
    if isinstance(recipe, TokenClassificationTask) and format_name(path) not in LISTS:
        return []
    if isinstance(recipe, QuestionAnsweringTask) and read_articles(path) is not None:
        return []
    return blank_rows_of_table(path, header=getattr(recipe, "header", None))


def rows_listed(numbers: Sequence[int]) -> str:
    """Such as "2 rows (4, 17)"."""
    shown = [str(number) for number in numbers[:MOST_SHOWN]]
    rest = len(numbers) - len(shown)
    listed = ", ".join(shown) + (f" and {rest:,} more" if rest else "")
    return f"{counted(len(numbers), 'row')} ({listed})"
