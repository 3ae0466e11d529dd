"""Rows: the records of a task's file, each with its place, validated on access.

Contract: what cannot be read raises a DataError that names the user's own file and the row. An
empty field is an empty text; a row without any field, that is a blank line, is left out unless it
is asked for, and `blank_rows` gives the numbers of those.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.compression import COMPRESSED
from stillhouse.data.fetch import name_of
from stillhouse.data.formats.base import Fields, Record, TableFile
from stillhouse.data.formats.registry import TABLE_SUFFIXES, format_of
from stillhouse.data.text import check_characters, read_blocks, read_lines
from stillhouse.errors import DataError

LARGEST = 3.4028234663852886e38  # of float32
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


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
    *,
    header: Sequence[str] | None = None,
    keep_blank: bool = False,
    text_column: str | None = None,
) -> list[Row]:
    """All rows of a file, in order; a field that only some rows have is null in the others.

    Args:
        header: The names of the first columns, where the first line does not give them.
        keep_blank: Include rows without any field, each field null.
        text_column: The only column of a plain text file, whose rows are its lines; without it,
            such a file is refused.

    Raises:
        DataError: no such file, another format, no rows, or a row that does not match the others.
    """
    records = _records(path, header, text_column)
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
    records = _records(path, header, text_column="text")
    return [record.number for record in records if record.fields is None]


def _records(path: Path, header: Sequence[str] | None, text_column: str | None) -> Iterator[Record]:
    format, name = format_of(path), name_of(path)
    if format is not None and format.name == "text" and text_column is not None:
        for number, line in read_lines(path):
            fields = {text_column: line.rstrip("\r\n")} if line.strip() else None
            yield Record(f"{name} row {number}", number, fields)
    elif format is None or format.read_records is None:
        raise DataError(
            f"{name} is not a table: its name must end in {', '.join(TABLE_SUFFIXES)} (or these "
            f"with {', '.join(COMPRESSED)})."
        )
    else:
        yield from format.read_records(TableFile(path, name, header))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, or not JSON.
    """
    try:
        return json.loads("".join(read_blocks(path, "row")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
