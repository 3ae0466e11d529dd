"""Rows: the named fields of a table, from JSON lines, CSV or TSV files.

Contract: what cannot be read raises a DataError that names the file and the row, which is the
number of the line in the file. A TSV file has no quotes, as those of GLUE have none; a CSV file
quotes what holds commas. The first line names the columns unless `header` does.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.compression import format_of, opened
from stillhouse.errors import DataError

JSON_SUFFIXES = (".jsonl", ".json")
DIALECTS: Mapping[str, Mapping[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "strict": True},
}


@dataclass(frozen=True)
class Row:
    """One row, and where it stands; its fields are checked as they are asked for."""

    where: str
    fields: Mapping[str, Any]

    def text(self, column: str) -> str:
        """A text that is not blank."""
        value = self.value(column)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(column, "a text that is not blank")
        return value

    def number(self, column: str) -> float:
        """A finite number, or a text that is one."""
        try:
            value = float(self.value(column))
        except (TypeError, ValueError) as error:
            raise self.wrong(column, "a number") from error
        if not math.isfinite(value):
            raise self.wrong(column, "a finite number")
        return value

    def texts(self, column: str) -> list[str]:
        """A list of texts, none of them blank."""
        values = self.value(column)
        if not isinstance(values, list) or not all(
            isinstance(value, str) and value.strip() for value in values
        ):
            raise self.wrong(column, "a list of texts that are not blank")
        return values

    def value(self, column: str) -> Any:
        """What stands there, whatever it is."""
        if column not in self.fields:
            raise DataError(
                f"{self.where} has no column {column!r}; it has "
                f"{', '.join(map(repr, self.fields)) or 'none'}. Name the right one in `columns`."
            )
        return self.fields[column]

    def wrong(self, column: str, wanted: str) -> DataError:
        """The error for a field that does not hold what is wanted."""
        found = repr(self.fields[column])
        return DataError(
            f"{self.where}: the column {column!r} must hold {wanted}; it holds {found:.60}. "
            "Correct the row, or leave it out."
        )


def read_rows(path: Path, *, header: Sequence[str] | None = None) -> list[Row]:
    """All rows of a file, in order; blank lines are passed over.

    Args:
        header: The names of the first columns, where the first line does not give them.

    Raises:
        DataError: no such file, another format, no rows, or a row that is not like the others.
    """
    suffix = format_of(path)
    if suffix in JSON_SUFFIXES:
        rows = list(_json_rows(path))
    elif suffix in DIALECTS:
        rows = list(_table_rows(path, DIALECTS[suffix], header))
    else:
        raise DataError(
            f"{path} is no table: its name must end in {', '.join([*JSON_SUFFIXES, *DIALECTS])} "
            "(or these with .gz)."
        )
    if not rows:
        raise DataError(f"{path} holds no rows. Give a file with some.")
    return rows


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, or not JSON.
    """
    text = "".join(line for _, line in read_lines(path))
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, with their ends, after a byte order mark.

    Raises:
        DataError: no such file, or not UTF-8.
    """
    with opened(path) as content:
        for number, line in enumerate(content, start=1):
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path} row {number} is not UTF-8 ({error.reason}). Convert the file, such as "
                    "with `iconv -f LATIN1 -t UTF-8`."
                ) from error


def _json_rows(path: Path) -> Iterator[Row]:
    for number, line in read_lines(path):
        where = f"{path} row {number}"
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is not JSON ({error}). Each line must be one JSON object."
            ) from error
        if not isinstance(fields, dict):
            raise DataError(f"{where} is a JSON {type(fields).__name__}, not an object.")
        yield Row(where, fields)


def _table_rows(
    path: Path, dialect: Mapping[str, Any], header: Sequence[str] | None
) -> Iterator[Row]:
    reader = csv.reader((line for _, line in read_lines(path)), **dialect)
    names = list(header or ())
    start = 1
    try:
        for values in reader:
            where, start = f"{path} row {start}", reader.line_num + 1
            if not any(values):
                continue
            if not names:
                names = values
                if len(set(names)) < len(names):
                    raise DataError(f"{where} names a column twice: {', '.join(names)}.")
                continue
            if len(values) < len(names) or (len(values) > len(names) and header is None):
                raise DataError(
                    f"{where} has {len(values)} fields, where the columns are {len(names)}: "
                    f"{', '.join(names)}."
                )
            yield Row(where, dict(zip(names, values, strict=False)))
    except csv.Error as error:
        raise DataError(f"{path} row {start} cannot be read ({error}).") from error
