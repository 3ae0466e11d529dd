"""The format of a file, from its suffix (before one of a compression).

Contract: a file is never read as a format that its name does not say. One with an unknown suffix is
plain text only where the user names it: directly, or by a glob that ends in its suffix.
"""

import importlib
import pkgutil
from pathlib import Path

from stillhouse.data import formats
from stillhouse.data.compression import COMPRESSED
from stillhouse.data.formats.base import Format
from stillhouse.data.formats.plain import TEXT
from stillhouse.errors import DataError

SUFFIXES: dict[str, Format] = {
    suffix: format
    for module in pkgutil.iter_modules(formats.__path__, f"{formats.__name__}.")
    for format in getattr(importlib.import_module(module.name), "FORMATS", ())
    for suffix in format.suffixes
}
TABLE_SUFFIXES = [suffix for suffix, format in SUFFIXES.items() if format.read_records is not None]

# Formats that users name and that are not text; reading them as text would learn their markup.
CONVERT = {
    ".pdf": "to text, such as with `pdftotext`",
    **dict.fromkeys(
        (".doc", ".docx", ".odt", ".rtf", ".epub", ".ipynb"),
        "to text, such as with `pandoc -t plain`",
    ),
    **dict.fromkeys((".xls", ".xlsx", ".ods"), "to CSV"),
    **dict.fromkeys((".arrow", ".feather", ".avro", ".orc"), "to Parquet or JSON lines"),
    **dict.fromkeys((".xml", ".warc"), "to text or HTML"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "by unpacking it into a folder"),
}


def suffix_of(path: Path) -> str:
    """The last suffix in lower case, before one of a compression; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def format_of(path: Path) -> Format | None:
    """The format of a file; None where its suffix is unknown."""
    return SUFFIXES.get(suffix_of(path))


def format_name(path: Path) -> str | None:
    """The name of a file's format, such as "JSON lines"; None where its suffix is unknown."""
    return SUFFIXES[suffix].name if (suffix := suffix_of(path)) in SUFFIXES else None


def has_records(path: Path) -> bool:
    """Whether a file is of a format that gives records."""
    return suffix_of(path) in TABLE_SUFFIXES


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
    return format_of(path) or TEXT
