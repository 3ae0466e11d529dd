"""Tagged sentences: a token and its tag per line, as in CoNLL files, separated by blank lines.

Tags are `O`, or a letter and a kind of entity. All schemes are converted to IOB2: IOB1 and IO, with
spans that begin with `I-`; IOBES, with `E-` at the end and `S-` for a single word; and BILOU, with
`L-` and `U-` instead. Numbers are positions among the names of tags.

Source: Tjong Kim Sang and De Meulder 2003 (arXiv:cs/0306050); Ratinov and Roth 2009 for BILOU.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from stillhouse.data.formats import format_of
from stillhouse.data.rows import Row, read_rows
from stillhouse.data.text import read_lines
from stillhouse.errors import DataError
from stillhouse.tasks.labels import WHOLE_NUMBER, label_name, listed
from stillhouse.tasks.settings import TokenClassificationTask

BEGINS_AND_GOES_ON = ("B", "I")
Scheme = Literal["IOB2", "IO", "IOBES", "BILOU"]
ENDS_AND_SINGLES = {"IOBES": ("E", "S"), "BILOU": ("L", "U")}
LETTERS = [*BEGINS_AND_GOES_ON, *(each for pair in ENDS_AND_SINGLES.values() for each in pair)]
TAG = re.compile(rf"O|[{''.join(LETTERS)}]-\S+")
TAGS = (
    f"(O, or one of {', '.join(f'{letter}-' for letter in LETTERS)} before a kind, such as B-PER)"
)
DOCUMENT = "-DOCSTART-"
COMMENT = ("#\t", "# ")
SPACES = re.compile(" +")  # not those that are a part of a token, such as no-break spaces


@dataclass(frozen=True)
class Sentence:
    """Tokens, their tags (none where they are not read), and the place of the first token."""

    where: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(
    path: Path, recipe: TokenClassificationTask, names: Sequence[str] = (), *, tagged: bool = True
) -> list[Sentence]:
    """The sentences of a file, in order: a token and its tag a line, or, as datasets have them,
    rows with a list of tokens and one of tags.

    Columns are separated by tabs where a line has one, else by spaces. Lines of `-DOCSTART-` are
    skipped, as are comments: lines before a sentence that begin with `#` and have no tag or another
    number of columns than the sentence's last line.

    Args:
        recipe: The columns, counted from 0, or from the end where negative, and the prefix; the
            names of the lists.
        names: Of tags that the file gives as numbers, where the recipe does not name them.
        tagged: Whether tags are read; otherwise lines may be single tokens.

    Raises:
        DataError: no such file, another format, no sentence, or a line or row that is not like
            this.
    """
    format = format_of(path)
    names = recipe.labels or names
    if tagged and format.has_lists:
        sentences = list(_sentences_of_rows(path, recipe, names))
    elif tagged and format.read_records is not None and format.name != "TSV":
        raise DataError(
            f"{path} is a {format.name} file. Give tagged sentences as a token and its tag a line, "
            "separated by a tab or spaces, with blank lines between sentences, or as lists in JSON "
            "lines or Parquet."
        )
    else:
        sentences = list(_sentences_of_lines(path, recipe, names, tagged=tagged))
    if not any(sentence.tokens for sentence in sentences):
        raise DataError(
            f"{path} holds no sentence. Give a file with a token and its tag per line, or a "
            "table with a list of tokens and one of tags in each row."
        )
    if not format.has_lists and all(_is_numbered(sentence.tokens) for sentence in sentences):
        raise DataError(
            f"{path}: the tokens of every sentence are the numbers 1, 2, ...: column "
            f"{recipe.token_column} (counted from 0) numbers the words. Set token_column to "
            f"{recipe.token_column + 1}."
        )
    return sentences


def _sentences_of_lines(
    path: Path, recipe: TokenClassificationTask, names: Sequence[str], *, tagged: bool
) -> Iterator[Sentence]:
    for block in _blocks(path, recipe.tag_column):
        tokens, tags = [], []
        for where, line in block:
            token, tag = _values(line)[0], ""
            if tagged or len(_values(line)) > 1:
                token, tag = _columns(line, where, recipe.token_column, recipe.tag_column)
            tokens.append(token.removeprefix(recipe.prefix))
            if tagged:
                tags.append(tag_name(tag, names, where))
        yield Sentence(block[0][0], tuple(tokens), tuple(as_iob2(tags)))


def _sentences_of_rows(
    path: Path, recipe: TokenClassificationTask, names: Sequence[str]
) -> Iterator[Sentence]:
    for row in read_rows(path, recipe.tokens):
        tokens, tags = words_in_row(row, recipe.tokens), row.value(recipe.tags)
        if not isinstance(tags, list):
            raise row.wrong(recipe.tags, "a list of tags")
        if len(tokens) != len(tags):
            raise DataError(f"{row.where} has {len(tokens)} tokens and {len(tags)} tags.")
        found = as_iob2([tag_name(each, names, row.where) for each in tags])
        yield Sentence(row.where, tokens, tuple(found))


def _blocks(path: Path, tag_column: int) -> Iterator[list[tuple[str, str]]]:
    """The lines of each sentence, each with its place, without comments."""
    block: list[tuple[str, str]] = []
    for number, line in chain(read_lines(path), [(0, "")]):
        line = line.rstrip("\r\n\t ")
        if line.strip() and not line.startswith(DOCUMENT):
            block.append((f"{path} row {number}", line))
            continue
        while block and _is_comment(block[0][1], block[-1][1], tag_column):
            del block[0]
        if block:
            yield block
        block = []


def _is_comment(line: str, last: str, tag_column: int) -> bool:
    """Whether a line begins with `#` and is not like the last one of its sentence."""
    values = _values(line)
    if not line.startswith(COMMENT) or len(values) != len(_values(last)):
        return line.startswith(COMMENT)
    return not -len(values) <= tag_column < len(values) or not _is_tag(values[tag_column])


def _is_tag(text: str) -> bool:
    return bool(TAG.fullmatch(text) or WHOLE_NUMBER.fullmatch(text))


def _is_numbered(tokens: Sequence[str]) -> bool:
    return list(tokens) == [str(number) for number in range(1, len(tokens) + 1)]


def words_in_row(row: Row, column: str) -> tuple[str, ...]:
    """A list of words, of which some may be empty; none where it is null."""
    values = [] if row.value(column) is None else row.value(column)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise row.wrong(column, "a list of texts")
    return tuple(values)


def tag_name(value: Any, names: Sequence[str], where: str) -> str:
    """A tag in data, by its name where it is a number.

    Raises:
        DataError: no tag, or a number that has no name.
    """
    text = label_name(value) or ""
    if not WHOLE_NUMBER.fullmatch(text):
        if isinstance(value, str) and TAG.fullmatch(value.strip()):
            return value.strip()
        raise DataError(f"{where}: {value!r:.60} is no tag {TAGS}. Correct the row.")
    if not names:
        raise DataError(
            f"{where}: the tags are numbers, such as {text}, without known names. Name them "
            "in `labels`, in the order of their numbers, such as [O, B-PER, I-PER]."
        )
    if not 0 <= int(text) < len(names):
        raise DataError(
            f"{where}: the tag {text} is not one of the {len(names)} of `labels` (0 to "
            f"{len(names) - 1}: {listed(names)}). Correct it, or name all tags."
        )
    return tag_name(names[int(text)], (), where)


def as_iob2(tags: Sequence[str]) -> Iterator[str]:
    """The same spans of any scheme, each beginning with `B-` and going on with `I-`."""
    open_kind = ""
    for tag in tags:
        letter, _, kind = tag.partition("-")
        begins = letter in "BSU" or kind != open_kind
        yield "O" if letter == "O" else f"{'B' if begins else 'I'}-{kind}"
        open_kind = "" if letter in "OESLU" else kind


def scheme_of(labels: Sequence[str]) -> Scheme:
    """The scheme that a model's tags belong to."""
    letters = {label[0] for label in labels if label[1:2] == "-"}
    if letters & set("ES"):
        return "IOBES"
    if letters & set("LU"):
        return "BILOU"
    return "IO" if letters == {"I"} else "IOB2"


def as_scheme(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The spans of IOB2 in another scheme."""
    if scheme == "IOB2":
        return list(tags)
    if scheme == "IO":
        return [f"I-{tag[2:]}" if tag != "O" else "O" for tag in tags]
    found, (end, single) = [], ENDS_AND_SINGLES[scheme]
    for tag, after in zip(tags, [*tags, "O"][1:], strict=True):
        goes_on = after == f"I-{tag[2:]}"
        if tag != "O" and not goes_on:
            tag = f"{single if tag[0] == 'B' else end}-{tag[2:]}"
        found.append(tag)
    return found


def _values(line: str) -> list[str]:
    if "\t" in line:
        return [value.strip(" ") for value in line.split("\t")]
    return SPACES.split(line.strip(" "))


def _columns(line: str, where: str, token_column: int, tag_column: int) -> tuple[str, str]:
    values = _values(line)
    try:
        token, tag = values[token_column], values[tag_column].strip()
    except IndexError:
        raise DataError(
            f"{where} has {len(values)} columns, too few for a token in {token_column} and a tag "
            f"in {tag_column} (counted from 0): {line!r:.60}."
        ) from None
    if len(values) < 2 or not token or not _is_tag(tag):
        raise DataError(
            f"{where}: {line!r:.60} is no token with a tag {TAGS}. Correct the line, name the "
            "columns, or give texts without tags as JSON lines."
        )
    return token, tag
