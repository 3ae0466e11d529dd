"""What a cleaning step is: a value that its module exports."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.errors import DataError
from stillhouse.section import Section


@dataclass(slots=True)
class Page:
    """A document on its way through the steps, which may change its text.

    Attributes:
        html: The page's source, for a web page of which nothing has been extracted yet.
        language: Its ISO 639-1 code; empty where no step has found it.
    """

    id: str
    text: str
    url: str = ""
    html: str | None = None
    language: str = ""


def existing_file(name: str, key: str) -> Path:
    """The file that a key of a recipe names.

    Raises:
        DataError: there is none.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"{key}: there is no file {name!r:.200} (seen from {Path.cwd()}).")
    return path


# Returns why a page is left out, in a few words that are the same for all such pages, or None.
Judge = Callable[[Page], str | None]


@dataclass(frozen=True)
class Step:
    """A step that judges one document at a time.

    Attributes:
        settings: Its section in a recipe.
        make: The step for a section; called once in each process that cleans.
        files: The files that a section names, whose content the result depends on.
        modules: Modules of the extra `text` that it needs.
    """

    settings: type[Section]
    make: Callable[[Any], Judge]
    files: Callable[[Any], Iterable[Path]] = lambda settings: ()
    modules: tuple[str, ...] = ()
