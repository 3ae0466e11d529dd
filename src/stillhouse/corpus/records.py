"""Records: documents that stand as fields of JSON lines or Parquet rows.

Contract: the text is the field `corpus.text_field`; the id is the record's own `id` where it has
one (a string or a whole number), else `file:line`. A text that is missing or no string is an error.
"""

import json
from collections.abc import Iterator, Mapping
from io import BufferedIOBase
from typing import Any

from stillhouse.corpus.files import SourceFile
from stillhouse.corpus.pieces import Piece, pieces_of
from stillhouse.data.compression import reading
from stillhouse.errors import DataError

MAX_LINE_BYTES = 64 * 2**20
ROWS_PER_READ = 32  # few, since one row may be a whole book
BOM = b"\xef\xbb\xbf"


def read_json_lines(content: BufferedIOBase, file: SourceFile, text_field: str) -> Iterator[Piece]:
    """The documents of a file with one JSON object per line; blank lines are passed over."""
    offset = 0
    number = 0
    while line := content.readline(MAX_LINE_BYTES + 1):
        number += 1
        where = f"{file.path} line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise DataError(
                f"{where} is longer than {MAX_LINE_BYTES // 2**20} MiB. A .jsonl or .json file "
                "must have one JSON object per line; store longer documents as plain text files."
            )
        size = len(line)
        if number == 1:
            line = line.removeprefix(BOM)
        if line.strip():
            record = _parsed(line, where, offset + size - len(line))
            del line
            yield from record_pieces(record, text_field, where, f"{file.name}:{number}")
        offset += size


def _parsed(line: bytes, where: str, offset: int) -> Mapping[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8: byte {offset + error.start} of the file is "
            f"0x{line[error.start]:02x} ({error.reason}). Convert the file, such as with "
            "`iconv -f LATIN1 -t UTF-8`, or leave it out."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where} is not JSON ({error}). "
            "A .jsonl or .json file must have one JSON object per line."
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            f"{where} is a JSON {type(record).__name__}, not an object. "
            'Each line must be like {"id": "...", "text": "..."}.'
        )
    return record


def read_parquet(file: SourceFile, text_field: str) -> Iterator[Piece]:
    """The documents of a Parquet file, one per row."""
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with (
            reading(file.path),
            parquet.ParquetFile(file.path, buffer_size=2**20, pre_buffer=False) as table,
        ):
            names = table.schema_arrow.names
            columns = [name for name in ("id", text_field) if name in names]
            if text_field not in names:
                raise DataError(_missing_field(f"{file.path}", text_field, names))
            for batch in table.iter_batches(ROWS_PER_READ, columns=columns, use_threads=False):
                for row in range(batch.num_rows):
                    number += 1
                    record = {name: batch[name][row].as_py() for name in columns}
                    where = f"{file.path} row {number}"
                    yield from record_pieces(record, text_field, where, f"{file.name}:{number}")
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.path} is not a readable Parquet file: {error} (after row {number}). "
            "Fetch or write it again."
        ) from error


def record_pieces(
    record: Mapping[str, Any], text_field: str, where: str, default_id: str
) -> Iterator[Piece]:
    """The document of one record, as pieces."""
    if text_field not in record:
        raise DataError(_missing_field(where, text_field, list(record)))
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field {text_field!r} holds {type(text).__name__} ({text!r:.40}), not a "
            "string. Give the field with the text as corpus.text_field, or leave the record out."
        )
    _check_characters(text, where)
    own_id = record.get("id")
    is_id = isinstance(own_id, (str, int)) and not isinstance(own_id, bool) and own_id != ""
    yield from pieces_of(str(own_id) if is_id else default_id, [text])


def _missing_field(where: str, text_field: str, found: list[str]) -> str:
    return (
        f"{where} has no field {text_field!r}; its fields are "
        f"{', '.join(map(repr, found)) or 'none'}. "
        "Give the field with the text as corpus.text_field."
    )


def _check_characters(text: str, where: str) -> None:
    if "\0" in text:
        raise DataError(
            f"{where} holds a NUL character in its text: it looks like binary data. Leave it out."
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds half a surrogate pair, \\u{ord(text[error.start]):04x}, which is no "
            "character. Write the file again with whole characters, or leave the record out."
        ) from error
