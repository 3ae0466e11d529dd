"""Rows: the records of a task's file, each with its place, validated on access; and the copies of
remote datasets, which are fetched into the run once.

Contract: what cannot be read raises a DataError that names the user's own file and the row. An
empty field is an empty text; a row without any field, that is a blank line, is left out unless it
is asked for, and `blank_rows` gives the numbers of those.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.formats import TABLE_SUFFIXES, Fields, Record, TableFile, format_of
from stillhouse.data.sources import check_online, source_of
from stillhouse.data.text import COMPRESSED, check_characters, read_blocks, read_lines
from stillhouse.errors import DataError, RunError
from stillhouse.runs.manifest import (
    Inputs,
    commit_file,
    is_up_to_date,
    manifest_path,
    read_manifest,
)

LARGEST = 3.4028234663852886e38  # of float32
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")
PACKAGED = {"templates": Path(__file__).parents[1] / "tasks" / "templates.jsonl"}
COPY = "data "  # begins the stage in the manifest of a copy, before the dataset's name


def path_of(source: str, folder: Path) -> Path:
    """The file with the examples of `source`: its copy in `folder`, fetched or not, if remote."""
    if source in PACKAGED:
        return PACKAGED[source]
    if not source_of(source).is_remote:
        return Path(source).expanduser()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", source.partition("://")[2])
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]  # since two names may read alike
    return folder / f"{name}-{digest}.jsonl"


def check_file(source: str, key: str) -> None:
    """Refuse a local source that is not a file.

    Raises:
        DataError: there is no such file, or it is a folder or a glob.
    """
    if source in PACKAGED or source_of(source).is_remote:
        return
    if os.path.isfile(os.path.expanduser(source)):
        return
    if os.path.isdir(os.path.expanduser(source)) or (glob.has_magic(source) and glob.glob(source)):
        raise DataError(
            f"{key}: {source!r:.200} is not a single file. A task has one file for training and "
            "one for each split; join the files that belong together."
        )
    raise DataError(f"{key}: there is no file {source!r:.200} (seen from {Path.cwd()}).")


def name_of(path: Path) -> str:
    """What errors call a file: the name of its dataset, for a copy that `fetch` made."""
    if path.suffix == ".jsonl" and manifest_path(path).is_file():
        with contextlib.suppress(RunError):  # the manifest of something else
            manifest = read_manifest(path)
            if manifest is not None and manifest.inputs.stage.startswith(COPY):
                return manifest.inputs.stage.removeprefix(COPY)
    return str(path)


def fetch(
    source: str, folder: Path, key: str, say: Callable[[str], None], *, offline: bool
) -> None:
    """Write a remote dataset to `folder` as JSON lines, once.

    Raises:
        NetworkError: offline, or the hub cannot be reached.
        RecipeError: the package that reads it is not installed.
        DataError: there is no such dataset, configuration or split.
    """
    path, inputs = path_of(source, folder), Inputs(f"{COPY}{source}", {}, {})
    read_rows = source_of(source).read_rows
    if read_rows is None or is_up_to_date(path, inputs):
        return
    check_online(source, key, offline=offline)
    say(f"fetching {source}")
    rows = read_rows(source)
    try:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:  # an image, a date
        raise DataError(
            f"{source} has a column that is neither text nor numbers: {error}."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    commit_file(path, content.encode(), inputs)


@dataclass(frozen=True)
class Row:
    """A row and where it is; its fields are validated on access."""

    where: str
    fields: Fields

    def text(self, column: str) -> str:
        """A text, which may be blank; null and NaN give an empty one."""
        value = self.value(column)
        if value is None or value != value:
            return ""
        if not isinstance(value, str):
            raise self.wrong(column, "a text")
        return value

    def number(self, column: str) -> float:
        """A number within the range of float32, or a text that gives one."""
        value = self.value(column)
        try:
            if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
                raise ValueError
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.wrong(column, "a number") from error
        if not abs(number) <= LARGEST:
            raise self.wrong(column, "a finite number")
        return number

    def value(self, column: str) -> Any:
        """A value of any type; text and lists of text hold whole characters."""
        if column not in self.fields:
            # A name that is a number or a sentence: the first line is a row, as far as can be seen.
            odd = any(NUMBER.fullmatch(name) or name.count(" ") > 1 for name in self.fields)
            advice = "; where the first line is a row, name the columns in `header`" if odd else ""
            raise DataError(
                f"{self.where} has no column {column!r}; it has "
                f"{', '.join(map(repr, self.fields)) or 'none'}. Name the right one in `columns`"
                f"{advice}."
            )
        value = self.fields[column]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                check_characters(each, f"{self.where}: the column {column!r}")
        return value

    def wrong(self, column: str, wanted: str) -> DataError:
        """The error for a field that does not hold a value of the wanted kind."""
        found = repr(self.fields[column])
        return DataError(
            f"{self.where}: the column {column!r} must hold {wanted}; it holds {found:.60}. "
            "Correct the row, or leave it out."
        )


def read_rows(
    path: Path,
    column: str = "text",
    *,
    header: Sequence[str] | None = None,
    keep_blank: bool = False,
    plain: bool = False,
) -> list[Row]:
    """All rows of a file, in order; a field that only some rows have is null in the others.

    Args:
        column: The column of the text, which tells the table in a file of several.
        header: The names of the first columns, where the first line does not give them.
        keep_blank: Include rows without any field, each field null.
        plain: Whether a plain text file is read, too: its rows are its lines, and `column` is
            their only field.

    Raises:
        DataError: no such file, another format, no rows, or a row that does not match the others.
    """
    records = _records(path, column, header, plain=plain)
    found = [record for record in records if keep_blank or record.fields is not None]
    columns = dict.fromkeys(name for record in found for name in record.fields or ())
    if not columns:
        raise DataError(f"{name_of(path)} holds no rows. Give a file with some.")
    return [Row(record.where, {**columns, **(record.fields or {})}) for record in found]


def blank_rows(path: Path, *, header: Sequence[str] | None = None) -> list[int]:
    """The numbers of the rows without any field.

    Raises:
        DataError: as `read_rows`.
    """
    if not format_of(path).by_line:
        return []
    records = _records(path, "text", header, plain=True)
    return [record.number for record in records if record.fields is None]


def _records(
    path: Path, column: str, header: Sequence[str] | None, *, plain: bool
) -> Iterator[Record]:
    format, name = format_of(path), name_of(path)
    if plain and format.name == "text":
        for number, line in read_lines(path):
            fields = {column: line.rstrip("\r\n")} if line.strip() else None
            yield Record(f"{name} row {number}", number, fields)
    elif format.read_records is None:
        raise DataError(
            f"{name} is not a table: its name must end in {', '.join(TABLE_SUFFIXES)} (or these "
            f"with {', '.join(COMPRESSED)})."
        )
    else:
        yield from format.read_records(TableFile(path, name, column, header))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, or not JSON.
    """
    try:
        return json.loads("".join(read_blocks(path, "row")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
