"""Tagged sentences: a token and its tag on each line, as in CoNLL's files, blank lines between.

Tags are `O`, or `B-` or `I-` with a kind of entity. A span that begins with `I-`, as the older IOB1
scheme has it, is read as if it began with `B-` (IOB2).

Source: Tjong Kim Sang and De Meulder 2003 (arXiv:cs/0306050).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.data.rows import read_lines, read_rows
from stillhouse.errors import DataError

TAG = re.compile(r"O|[BI]-\S+")
DOCUMENT = "-DOCSTART-"
COMMENT = "#\t"


@dataclass(frozen=True)
class Sentence:
    """Tokens, the tag of each, and where the first one stands."""

    where: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(
    path: Path, *, token_column: int = 0, tag_column: int = -1, prefix: str = ""
) -> list[Sentence]:
    """The sentences of a file, in order.

    Columns are apart by tabs where a line has one, else by spaces. Lines of `-DOCSTART-`, and those
    that begin with `#` and a tab, are no tokens.

    Args:
        token_column: Counted from 0; from the end where negative.
        tag_column: The same.
        prefix: What stands before every token and is no part of it, such as `en:`.

    Raises:
        DataError: no such file, no sentence, or a line that is not like this.
    """
    sentences: list[Sentence] = []
    tokens: list[str] = []
    tags: list[str] = []
    first = 0

    def end() -> None:
        if tokens:
            where = f"{path} row {first}"
            sentences.append(Sentence(where, tuple(tokens), tuple(as_iob2(tags))))
            tokens.clear()
            tags.clear()

    for number, line in read_lines(path):
        line = line.rstrip("\r\n")
        if not line.strip() or line.startswith((DOCUMENT, COMMENT)):
            end()
            continue
        first = first if tokens else number
        token, tag = _columns(line, f"{path} row {number}", token_column, tag_column)
        tokens.append(token.removeprefix(prefix))
        tags.append(tag)
    end()
    if not sentences:
        raise DataError(f"{path} holds no sentence. Give a file with a token and its tag a line.")
    return sentences


def read_tagged_rows(path: Path, tokens: str, tags: str) -> list[Sentence]:
    """The sentences of lines of JSON, as datasets have them.

    Args:
        tokens: The name of a sentence's list of tokens.
        tags: The name of the list of their tags.

    Raises:
        DataError: no such file, no sentence, or a row that is not like this.
    """
    sentences = []
    for row in read_rows(path):
        found, marks = row.texts(tokens), row.texts(tags)
        if len(found) != len(marks):
            raise DataError(f"{row.where} has {len(found)} tokens and {len(marks)} tags.")
        wrong = next((tag for tag in marks if not TAG.fullmatch(tag)), None)
        if wrong is not None:
            raise DataError(f"{row.where}: {wrong!r} is no tag O, B-KIND or I-KIND.")
        if found:
            sentences.append(Sentence(row.where, tuple(found), tuple(as_iob2(marks))))
    return sentences


def as_iob2(tags: Sequence[str]) -> Iterator[str]:
    """The same spans, each beginning with `B-`."""
    before = "O"
    for tag in tags:
        begins = tag.startswith("I-") and before[2:] != tag[2:]
        before = f"B-{tag[2:]}" if begins else tag
        yield before


def _columns(line: str, where: str, token_column: int, tag_column: int) -> tuple[str, str]:
    values = line.split("\t") if "\t" in line else line.split()
    try:
        token, tag = values[token_column].strip(), values[tag_column].strip()
    except IndexError:
        raise DataError(
            f"{where} has {len(values)} columns, too few for a token in {token_column} and a tag "
            f"in {tag_column} (counted from 0): {line!r:.60}."
        ) from None
    if len(values) < 2 or not token or not TAG.fullmatch(tag):
        raise DataError(
            f"{where}: {line!r:.60} is no token with a tag O, B-KIND or I-KIND. Correct the line, "
            "or name the columns."
        )
    return token, tag
