"""Records: named fields, from JSON lines or arrays, CSV, TSV and Parquet, in bounded memory.

Contract: records come in the order of the file, each with its number: that of its line, or, in a
JSON array or a Parquet file, its place, counted from 1. A line without any field, that is a blank
one, comes as None, so that nothing is left out unseen. Values keep their types; those of CSV and
TSV are text. A TSV file has no quotes, as those of GLUE have none; a CSV file quotes what holds
commas, quotes or line ends.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stillhouse.data.compression import reading
from stillhouse.data.formats import Format
from stillhouse.data.lines import MAX_LINE_CHARACTERS, decoded, read_lines
from stillhouse.errors import DataError

Unit = Literal["row", "line"]
Fields = Mapping[str, Any]

RECORDS: tuple[Format, ...] = ("JSON lines", "JSON", "CSV", "TSV", "Parquet")
ROWS_PER_READ = 32  # few, since one row may be a whole book
DIALECTS: Mapping[str, Mapping[str, Any]] = {
    "CSV": {"delimiter": ",", "strict": True},
    "TSV": {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "strict": True},
}
SEPARATORS = {";": "semicolon", "\t": "tab", ",": "comma", "|": "bar"}
JSON_NAMES: Mapping[type, str] = {
    list: "list", dict: "object", str: "string", int: "number", float: "number", bool: "boolean",
    type(None): "null",
}  # fmt: skip


class Record(NamedTuple):
    """One record: what messages call it, its number, and its fields; None where it has none."""

    where: str
    number: int
    fields: Fields | None


def read_records(
    path: Path,
    format: Format,
    *,
    name: str | None = None,
    unit: Unit = "row",
    header: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[Record]:
    """The records of a file, in order.

    Args:
        name: What messages call the file, where that is not its path.
        unit: What messages call a line.
        header: The names of the first columns of a CSV or TSV file whose first line has none.
        columns: Of a Parquet file that has the first of these, only these are read.

    Raises:
        DataError: what cannot be read, with the file and the record.
    """
    shown = name or str(path)
    if format == "Parquet":
        return _parquet(path, shown, columns)
    if format == "JSON":
        return _json(path, shown, unit)
    if format == "JSON lines":
        return _json_lines(read_lines(path, unit), shown, unit)
    return _table(path, shown, format, header)


def _json(path: Path, shown: str, unit: Unit) -> Iterator[Record]:
    """One object a line, or one array of objects: the first character tells."""
    blocks = decoded(path, unit)
    held = ""
    for block in blocks:
        held += block
        if held.strip():
            break
    blocks = chain([held] if held else [], blocks)
    if held.lstrip().startswith("["):
        return _json_array(blocks, shown)
    return _json_lines(read_lines(path, unit, blocks), shown, unit)


def _json_lines(lines: Iterator[tuple[int, str]], shown: str, unit: Unit) -> Iterator[Record]:
    for number, line in lines:
        where = f"{shown} {unit} {number}"
        if not line.strip():
            yield Record(where, number, None)
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{where} is not JSON ({error}). Each line must be one JSON object; a .json file "
                "may also be one array of objects."
            ) from error
        yield Record(where, number, _checked(fields, where) or None)


def _json_array(blocks: Iterator[str], shown: str) -> Iterator[Record]:
    """The elements of an array, read one by one."""
    text = _Text(blocks)
    number = 0
    try:
        text.take("[")
        if text.peek() == "]":
            text.take("]")
        else:
            separator = ","
            while separator == ",":
                number += 1
                where = f"{shown} row {number}"
                yield Record(where, number, _checked(text.take_value(), where) or None)
                separator = text.take(",", "]")
        if text.peek():
            raise ValueError(f"{text.peek()!r} stands after the array's end")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"{shown} row {number} is not JSON ({reason}). The file must be one array of objects: "
            '[{"text": "..."}, ...].'
        ) from error


class _Text:
    """Text that is read as it is needed, and forgotten once it is taken."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._held = ""
        self._start = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._start < len(self._held):
                if self._held[self._start] not in " \t\r\n":
                    return self._held[self._start]
                self._start += 1
            if not self._more():
                return ""

    def take(self, *wanted: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"{' or '.join(wanted)} is missing, found {found or 'the end'!r}")
        self._start += 1
        return found

    def take_value(self) -> Any:
        """The next JSON value; one that is not whole is tried again with twice as much text."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._start)
            except json.JSONDecodeError:
                size = len(self._held) - self._start
                if size > MAX_LINE_CHARACTERS or not self._more(size):
                    raise
            else:
                self._start = end
                return value

    def _more(self, at_least: int = 1) -> bool:
        self._held = self._held[self._start :]
        self._start = 0
        parts = [self._held]
        for block in self._blocks:
            parts.append(block)
            at_least -= len(block)
            if at_least <= 0:
                break
        self._held = "".join(parts)
        return len(parts) > 1


def _checked(fields: Any, where: str) -> Fields:
    if not isinstance(fields, dict):
        raise DataError(
            f"{where} is a JSON {JSON_NAMES[type(fields)]}, not an object. "
            'Each must be like {"id": "...", "text": "..."}.'
        )
    return fields


def _table(
    path: Path, shown: str, format: Format, header: Sequence[str] | None
) -> Iterator[Record]:
    # The limit of the whole process: raised for everyone, never lowered.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_CHARACTERS))
    first_line = ""

    def lines() -> Iterator[str]:
        nonlocal first_line
        for _, line in read_lines(path):
            first_line = first_line or line.strip()
            yield line

    reader = csv.reader(lines(), **DIALECTS[format])
    names = list(header or ())
    start = 1
    try:
        for values in reader:
            number, start = start, reader.line_num + 1
            where = f"{shown} row {number}"
            if not values or (len(values) == 1 < len(names) and not values[0].strip()):
                yield Record(where, number, None)
            elif not names:
                names = _column_names(values, where, format)
            elif start == number + 1 == 2 and _are_names(values, names):
                raise DataError(
                    f"{where} names the columns itself: {', '.join(names)}. Set `header` to null."
                )
            elif len(values) < len(names) or (len(values) > len(names) and header is None):
                hint = _other_separator(first_line, format) if len(values) == 1 else ""
                raise DataError(
                    f"{where} has {len(values)} fields, where the columns are "
                    f"{len(names)}: {', '.join(names)}{hint or '. Correct the row.'}"
                )
            else:
                yield Record(where, number, dict(zip(names, values, strict=False)))
    except csv.Error as error:
        hint = _other_separator(first_line, format)
        raise DataError(
            f"{shown} row {start} cannot be read ({error}){hint or '. Correct its quotes.'}"
        ) from error


def _are_names(values: Sequence[str], names: Sequence[str]) -> bool:
    pairs = zip(values, names, strict=False)
    return all(value.strip().casefold() == name.casefold() for value, name in pairs)


def _column_names(values: list[str], where: str, format: Format) -> list[str]:
    names = [name.strip() for name in values]
    if len(set(names)) < len(names):
        raise DataError(f"{where} names a column twice: {', '.join(names)}. Rename one of them.")
    if len(names) == 1 and (hint := _other_separator(names[0], format)):
        raise DataError(f"{where} names one column, {names[0]!r:.80}{hint}")
    return names


def _other_separator(line: str, format: Format) -> str:
    """The end of a message, where a line has the separators of another format alone."""
    own = DIALECTS[format]["delimiter"]
    found = next((mark for mark in SEPARATORS if mark in line), None)
    if own in line or found is None:
        return ""
    others = {",": "rename it to end in .csv", "\t": "rename it to end in .tsv"}
    advice = others.get(found, f"save it with {SEPARATORS[own]}s")
    return f": the file looks like {SEPARATORS[found]}-separated values, not {format}; {advice}."


def _parquet(path: Path, shown: str, columns: Sequence[str] | None) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with (
            reading(path),
            parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table,
        ):
            names = table.schema_arrow.names
            if len(set(names)) < len(names):
                raise DataError(f"{shown} names a column twice: {', '.join(names)}.")
            some = columns is not None and columns[0] in names
            wanted = [name for name in names if not some or name in (columns or ())]
            classes = _classes(table.schema_arrow.metadata or {})
            for batch in table.iter_batches(ROWS_PER_READ, columns=wanted, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    values = {name: batch[name][row].as_py() for name in wanted}
                    fields = with_class_names(values, classes)
                    yield Record(f"{shown} row {number}", number, fields)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{shown} is not a readable Parquet file: {error} (after row {number}). "
            "Fetch or write it again."
        ) from error


def _classes(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """The names of each column of classes, as the library `datasets` stores them in a file."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return {
            column: names
            for column, feature in features.items()
            if (names := (feature.get("feature") or feature).get("names"))
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # written by another program
        return {}


def with_class_names(fields: Fields, classes: Mapping[str, Sequence[str]]) -> Fields:
    """Fields whose classes, or lists of them, are given by name; a class below 0 is not known."""

    def named(value: Any, names: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [named(each, names) for each in value]
        return names[value] if isinstance(value, int) and value >= 0 else None

    return {
        key: named(value, classes[key]) if key in classes else value
        for key, value in fields.items()
    }
