"""JSON lines, and JSON files that hold lines of objects or one array of objects."""

import json
import re
from collections.abc import Iterator
from typing import Any

from stillhouse.data.formats import Fields, Format, Record, TableFile
from stillhouse.data.text import MAX_LINE_CHARACTERS, read_blocks, read_lines
from stillhouse.errors import DataError

NOT_SPACE = re.compile(r"[^ \t\r\n]")
TYPE_NAMES = {
    list: "list", dict: "object", str: "string", int: "number", float: "number", bool: "boolean",
    type(None): "null",
}  # fmt: skip


def read_json(file: TableFile) -> Iterator[Record]:
    """One object a line, or one array of objects: the first character decides."""
    beginnings = (block.lstrip() for block in read_blocks(file.path, "row"))
    if next(filter(None, beginnings), "").startswith("["):
        return _read_array(file)
    return read_json_lines(file)


def read_json_lines(file: TableFile) -> Iterator[Record]:
    """One object a line."""
    for number, line in read_lines(file.path, file.on_damage):
        where = f"{file.name} row {number}"
        try:
            record = Record(where, number, _fields_of(line, where))
        except DataError as error:
            file.damaged(error)
        else:
            yield record


def _fields_of(line: str, where: str) -> Fields | None:
    try:
        fields = json.loads(line) if line.strip() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON ({error}). Each line must be one JSON object; a .json file may "
            "also be one array of objects."
        ) from error
    return _checked(fields, where)


def _checked(fields: Any, where: str) -> Fields | None:
    if not isinstance(fields, dict):
        raise DataError(
            f"{where} is a JSON {TYPE_NAMES[type(fields)]}, not an object. "
            'Each must be like {"id": "...", "text": "..."}.'
        )
    return fields or None


def _read_array(file: TableFile) -> Iterator[Record]:
    """The elements of an array, decoded one by one."""
    text = _JSONText(read_blocks(file.path, "row"))
    number = 0
    try:
        text.take("[")
        separator = text.take("]") if text.peek() == "]" else ","
        while separator == ",":
            number += 1
            where = f"{file.name} row {number}"
            yield Record(where, number, _checked(text.take_value(), where))
            separator = text.take(",", "]")
        if text.peek():
            raise ValueError(f"{text.peek()!r} follows the end of the array")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise DataError(
            f"{file.name} row {number} is not JSON ({reason}). The file must be one array of "
            'objects: [{"text": "..."}, ...].'
        ) from error


class _JSONText:
    """JSON text that is read as it is needed, and dropped once it is decoded."""

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self._held = ""
        self._start = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while (found := NOT_SPACE.search(self._held, self._start)) is None:
            self._start = len(self._held)
            if not self._read_more():
                return ""
        self._start = found.start()
        return found.group()

    def take(self, *wanted: str) -> str:
        """The next character, which must be one of these."""
        found = self.peek()
        if found not in wanted:
            raise ValueError(f"{' or '.join(wanted)} is missing, found {found or 'the end'!r}")
        self._start += 1
        return found

    def take_value(self) -> Any:
        """The next JSON value; an incomplete one is decoded again with twice as much text."""
        self.peek()
        while True:
            try:
                value, self._start = self._decoder.raw_decode(self._held, self._start)
            except json.JSONDecodeError:
                size = len(self._held) - self._start
                if size > MAX_LINE_CHARACTERS or not self._read_more(size):
                    raise
            else:
                return value

    def _read_more(self, at_least: int = 1) -> bool:
        parts = [self._held[self._start :]]
        while at_least > 0 and (block := next(self._blocks, "")):
            parts.append(block)
            at_least -= len(block)
        self._held, self._start = "".join(parts), 0
        return len(parts) > 1


FORMATS = (
    Format(
        "JSON lines",
        (".jsonl", ".ndjson", ".jsonlines", ".jl"),
        read_records=read_json_lines,
        has_lists=True,
        documents="one object per line; its text is in `corpus.text_field`, its id in `id`",
        rows="one object per line",
    ),
    Format(
        "JSON",
        (".json",),
        read_records=read_json,
        has_lists=True,
        documents="the same, or one array of objects",
        rows="the same; for question answering also SQuAD's format",
    ),
)
