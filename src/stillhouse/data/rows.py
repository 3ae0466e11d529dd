"""Rows: the records of a task's file, whole, each with its place and checked as it is asked for.

Contract: what cannot be read raises a DataError that names the user's own file and the row. A blank
field is a text like any other; a row without any field, that is a blank line, is left out unless it
is asked for, and `blank_rows` tells which those are.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.compression import COMPRESSED
from stillhouse.data.formats import SUFFIXES, format_of
from stillhouse.data.hub import name_of
from stillhouse.data.lines import decoded, read_lines
from stillhouse.data.records import RECORDS, Fields, Record, read_records
from stillhouse.data.text import check_characters
from stillhouse.errors import DataError

LARGEST = 3.4028234663852886e38  # of float32
NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?")


@dataclass(frozen=True)
class Row:
    """One row, and where it stands; its fields are checked as they are asked for."""

    where: str
    fields: Mapping[str, Any]

    def text(self, column: str) -> str:
        """A text, which may be blank; null (NaN) stands for an empty one."""
        value = self.value(column)
        if value is None or value != value:
            return ""
        if not isinstance(value, str):
            raise self.wrong(column, "a text")
        return value

    def number(self, column: str) -> float:
        """A number that float32 holds, or a text that is one."""
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
        """What stands there, whatever it is; of text, and lists of it, whole characters."""
        if column not in self.fields:
            raise DataError(
                f"{self.where} has no column {column!r}; it has "
                f"{', '.join(map(repr, self.fields)) or 'none'}. Name the right one in `columns`"
                f"{self._advice_on_names()}."
            )
        value = self.fields[column]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                check_characters(each, f"{self.where}: the column {column!r}")
        return value

    def _advice_on_names(self) -> str:
        """For a CSV or TSV file without a first line of names, as far as can be seen: a name that
        is a number or a sentence."""
        odd = any(NUMBER.fullmatch(name) or name.count(" ") > 1 for name in self.fields)
        return "; where the first line is a row, name the columns in `header`" if odd else ""

    def wrong(self, column: str, wanted: str) -> DataError:
        """The error for a field that does not hold what is wanted."""
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
        keep_blank: Rows without any field are there too, each field null.
        text_column: The only column of a plain text file, whose rows are its lines; None where a
            text is not all that is asked for, and such a file is refused.

    Raises:
        DataError: no such file, another format, no rows, or a row that is not like the others.
    """
    records = _records(path, header, text_column)
    found = [record for record in records if keep_blank or record.fields is not None]
    columns = dict.fromkeys(name for record in found for name in record.fields or ())
    if not columns:
        raise DataError(f"{name_of(path)} holds no rows. Give a file with some.")
    return [Row(record.where, _filled(record.fields or {}, columns)) for record in found]


def blank_rows(path: Path, *, header: Sequence[str] | None = None) -> list[int]:
    """The numbers of the rows without any field.

    Raises:
        DataError: as `read_rows`.
    """
    records = _records(path, header, text_column="text")
    return [record.number for record in records if record.fields is None]


def _records(path: Path, header: Sequence[str] | None, text_column: str | None) -> Iterator[Record]:
    format = format_of(path)
    if format == "text" and text_column is not None:
        return _lines(path, text_column)
    if format not in RECORDS:
        endings = [suffix for suffix, known in SUFFIXES.items() if known in RECORDS]
        raise DataError(
            f"{name_of(path)} is no table: its name must end in {', '.join(endings)} (or these "
            f"with {', '.join(COMPRESSED)})."
        )
    return read_records(path, format, name=name_of(path), header=header)


def _lines(path: Path, column: str) -> Iterator[Record]:
    name = name_of(path)
    for number, line in read_lines(path):
        text = line.rstrip("\r\n")
        fields = {column: text} if text.strip() else None
        yield Record(f"{name} row {number}", number, fields)


def _filled(fields: Fields, columns: Mapping[str, None]) -> Fields:
    return fields if len(fields) == len(columns) else {**columns, **fields}


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: no such file, or not JSON.
    """
    try:
        return json.loads("".join(decoded(path, "row")))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
