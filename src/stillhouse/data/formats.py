"""Formats: what a file is read as, which its name tells after an ending for its compression.

Contract: a file is never read as something that its name does not say. One with an unknown ending
is plain text only where the user names it: outright, or by a glob that ends in its suffix.
"""

from pathlib import Path
from typing import Literal

from stillhouse.data.compression import COMPRESSED
from stillhouse.errors import DataError

Format = Literal["text", "HTML", "JSON lines", "JSON", "CSV", "TSV", "Parquet"]

SUFFIXES: dict[str, Format] = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst", ".py"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "HTML"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".jl"), "JSON lines"),
    ".json": "JSON",  # one object a line, or an array of objects: the content tells
    ".csv": "CSV",
    ".tsv": "TSV",
    ".parquet": "Parquet",
}

# Formats that people name and that are no text; reading them as text would learn their markup.
CONVERT = {
    **dict.fromkeys((".pdf",), "to text, such as with `pdftotext`"),
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
    """The last suffix in lower case, before one that tells the compression; "" for none."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def format_of(path: Path) -> Format | None:
    """What a file is read as; None where its name does not tell."""
    return SUFFIXES.get(suffix_of(path))


def named_format(path: Path) -> Format:
    """What a file that the user names is read as: plain text where its name does not tell.

    Raises:
        DataError: a kind of file that is no text.
    """
    if conversion := CONVERT.get(suffix_of(path)):
        raise DataError(
            f"{path} cannot be read as text: it is a {suffix_of(path)} file. Convert it "
            f"{conversion}."
        )
    return format_of(path) or "text"
