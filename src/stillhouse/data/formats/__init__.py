"""File formats, one module each: what a format is, the records that tables give, and which format a
file has, from its suffix (before one of a compression).

Contract: records come in the order of the file, each with its number: that of its line, or, in a
JSON array or a Parquet file, its position, counted from 1. A blank line gives a record without
fields, so that nothing is left out silently. Values keep their types; those of CSV and TSV are
text. A file is never read as a format that its name does not say. One with an unknown suffix is
plain text only where the user names it: directly, or by a glob that ends in its suffix.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stillhouse.data.text import COMPRESSED
from stillhouse.errors import DataError

Fields = Mapping[str, Any]
OnDamage = Callable[[DataError], None]


class Record(NamedTuple):
    """A record: what errors call it, its number, and its fields; None for a blank line."""

    where: str
    number: int
    fields: Fields | None


class WebPage(NamedTuple):
    """A page: its number in the file, counted from 1, or 0 for the only one; its address; and its
    content: HTML in bytes with the charset that its server named, or the text that a crawler has
    made of it."""

    number: int
    url: str
    content: bytes | str
    charset: str | None = None


@dataclass(frozen=True)
class TableFile:
    """A file of records, and how to read it.

    Args:
        name: What errors call the file.
        column: The column of the text, which tells the table in a file of several.
        header: The names of the first columns of a CSV or TSV file whose first line has none.
        columns: Of a Parquet file that has the first of these, only these are read.
        on_damage: Called with the error of a record that cannot be read, which is then left out;
            without it the error is raised.
    """

    path: Path
    name: str
    column: str = "text"
    header: Sequence[str] | None = None
    columns: Sequence[str] = ()
    on_damage: OnDamage | None = None

    def damaged(self, error: DataError) -> None:
        """Leave out a record that cannot be read.

        Raises:
            DataError: `error`, unless `on_damage` takes it.
        """
        if self.on_damage is None:
            raise error
        self.on_damage(error)


@dataclass(frozen=True)
class Format:
    """A file format, which gives text in blocks, records, or web pages.

    Each module of this package lists its own in FORMATS, and the registry finds them there.

    Args:
        read_pages: Reads web pages as they are; of a format that also gives text, this is what
            cleaning reads.
        is_one: Whether a file with one of the suffixes is of this format, for a suffix that other
            formats share; of a file that a folder holds. By default it is.
        by_line: Whether records are lines or elements of a file, of which some may be blank.
        has_lists: Whether a value may be a list, such as the words of a sentence.
        documents: What a corpus makes of a file, for the documentation.
        rows: What tasks make of it; empty where they do not read it.
    """

    name: str
    suffixes: tuple[str, ...]
    read_text: Callable[[Path], Iterable[str]] | None = None
    read_records: Callable[[TableFile], Iterator[Record]] | None = None
    read_pages: Callable[[TableFile], Iterator[WebPage]] | None = None
    is_one: Callable[[Path], bool] = lambda path: True
    by_line: bool = True
    has_lists: bool = False
    documents: str = ""
    rows: str = ""


def class_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The class names of each column of classes, or of lists of them, from the description of the
    columns that the library `datasets` makes and stores."""
    inner = {
        column: feature.get("feature") or feature
        for column, feature in features.items()
        if isinstance(feature, Mapping)
    }
    return {
        column: each["names"]
        for column, each in inner.items()
        if isinstance(each, Mapping) and each.get("_type") == "ClassLabel"
    }


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


SUFFIXES: dict[str, Format] = {
    suffix: format
    for module in pkgutil.iter_modules(__path__, f"{__name__}.")
    for format in getattr(importlib.import_module(module.name), "FORMATS", ())
    for suffix in format.suffixes
}
UNKNOWN = Format("", ())
TABLE_SUFFIXES = [suffix for suffix, format in SUFFIXES.items() if format.read_records is not None]

# Wikimedia names a part of a dump by its pages: .xml-p1p41242.
PART_OF_DUMP = re.compile(r"(\.xml)-p\d+p\d+.*")

# Formats that users name and that are not text; reading them as text would learn their markup.
CONVERT = {
    ".pdf": "to text, such as with `pdftotext`",
    **dict.fromkeys(
        (".doc", ".docx", ".odt", ".rtf", ".epub", ".ipynb"),
        "to text, such as with `pandoc -t plain`",
    ),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "to CSV"),
    **dict.fromkeys((".arrow", ".feather", ".avro", ".orc"), "to Parquet or JSON lines"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "by unpacking it into a folder"),
}


def suffix_of(path: Path) -> str:
    """The last suffix in lower case, before one of a compression; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return PART_OF_DUMP.sub(r"\1", suffixes[-1]) if suffixes else ""


def format_of(path: Path) -> Format:
    """The format of a file; UNKNOWN, which gives nothing, where its suffix is unknown."""
    return SUFFIXES.get(suffix_of(path), UNKNOWN)


def named_format(path: Path) -> Format:
    """The format of a file that the user names: plain text where its suffix is unknown.

    Raises:
        DataError: the suffix of a format that must be converted first.
    """
    if conversion := CONVERT.get(suffix_of(path)):
        raise DataError(
            f"{path} cannot be read as text: it is a {suffix_of(path)} file. Convert it "
            f"{conversion}."
        )
    return SUFFIXES.get(suffix_of(path), SUFFIXES[".txt"])
