"""What a file format is, and the records that tables give.

Contract: records come in the order of the file, each with its number: that of its line, or, in a
JSON array or a Parquet file, its position, counted from 1. A blank line gives a record without
fields, so that nothing is left out silently. Values keep their types; those of CSV and TSV are
text.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

Fields = Mapping[str, Any]


class Record(NamedTuple):
    """A record: what errors call it, its number, and its fields; None for a blank line."""

    where: str
    number: int
    fields: Fields | None


@dataclass(frozen=True)
class TableFile:
    """A file of records, and how to read it.

    Args:
        name: What errors call the file.
        header: The names of the first columns of a CSV or TSV file whose first line has none.
        columns: Of a Parquet file that has the first of these, only these are read.
    """

    path: Path
    name: str
    header: Sequence[str] | None = None
    columns: Sequence[str] = ()


@dataclass(frozen=True)
class Format:
    """A file format, which gives either text in blocks or records.

    Each module of this package lists its own in FORMATS, and the registry finds them there.
    """

    name: str
    suffixes: tuple[str, ...]
    read_text: Callable[[Path], Iterable[str]] | None = None
    read_records: Callable[[TableFile], Iterator[Record]] | None = None


def with_class_names(fields: Fields, classes: Mapping[str, Sequence[str]]) -> Fields:
    """Replace the class numbers of the columns in `classes`, or lists of them, by their names;
    a number below 0 is an unknown class, None."""

    def named(value: Any, names: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [named(each, names) for each in value]
        return names[value] if isinstance(value, int) and value >= 0 else None

    return {
        key: named(value, classes[key]) if key in classes else value
        for key, value in fields.items()
    }
