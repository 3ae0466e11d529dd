"""Text of files: decoded, checked, and cut into lines, in bounded memory."""

import codecs
import io
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from stillhouse.data.compression import opened
from stillhouse.errors import DataError

BLOCK_BYTES = 2**20
MAX_LINE_CHARACTERS = 64 * 2**20
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# How files begin that people misname, and what to do.
KINDS = {
    b"\x1f\x8b": "gzip-compressed: let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: let its name end in .zst",
    b"BZh91AY&SY": "bzip2-compressed: let its name end in .bz2",
    b"\xfd7zXZ\0": "xz-compressed: let its name end in .xz",
    b"PAR1": "Parquet: let its name end in .parquet",
    b"%PDF-": "PDF: convert it, such as with `pdftotext`",
    b"PK\x03\x04": "ZIP (an archive, or a document of an office program): unpack or convert it",
}


def decoded(path: Path, unit: str | None = None) -> Iterator[str]:
    """A file's text in blocks, without a byte order mark at its start.

    Args:
        unit: What lines are called in messages, where the place is named by line.

    Raises:
        DataError: no such file, a damaged one, not UTF-8, or a NUL character, with the place.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # of the block's first byte
    line = 1
    with opened(path) as content:
        while True:
            block = content.read(BLOCK_BYTES)
            if offset == 0:
                _check_kind(path, block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf_8(path, unit, line, offset + len(block), error) from error
            translated = newlines.decode(text, final=not block)
            if "\0" in text:
                line += translated.count("\n", 0, translated.index("\0"))
                raise DataError(
                    f"{path} holds a NUL character in {unit or 'line'} {line}: it looks like a "
                    "binary file, or like UTF-16. Leave it out, or convert it to plain UTF-8 text."
                )
            if text:
                yield text
            if not block:
                return
            offset += len(block)
            line += translated.count("\n")


def _check_kind(path: Path, block: bytes) -> None:
    """Refuse a file whose first bytes are those of another kind."""
    for start, what in KINDS.items():
        if block.startswith(start):
            raise DataError(
                f"{path} is no text: its first bytes are those of a file that is {what}."
            )


def _not_utf_8(
    path: Path, unit: str | None, line: int, end: int, error: UnicodeDecodeError
) -> DataError:
    """`end` is where in the file the bytes end that could not be decoded."""
    first = end - len(error.object)
    found = f"0x{error.object[error.start]:02x} ({error.reason})"
    if unit is None:
        place = f"{path} is not UTF-8: byte {first + error.start} is {found}"
    else:
        before = error.object[: error.start].decode("utf-8", "replace")
        line += before.replace("\r\n", "\n").replace("\r", "\n").count("\n")
        place = (
            f"{path} {unit} {line} is not UTF-8: byte {first + error.start} of the file is {found}"
        )
    encoding = "UTF-16" if first == 0 and error.object.startswith(UTF_16) else "LATIN1"
    return DataError(
        f"{place}. Convert the file, such as with `iconv -f {encoding} -t UTF-8`, or leave it out."
    )


def read_lines(
    path: Path, unit: str = "row", blocks: Iterable[str] | None = None
) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, with their ends: `\\n`, `\\r\\n` or `\\r`.

    Args:
        unit: What lines are called in messages.
        blocks: The file's text, where its reading has begun.

    Raises:
        DataError: as `decoded`, or a line that is too long for memory.
    """
    number = size = 0
    held: list[str] = []  # what stands after the last line that is whole
    for block in chain(decoded(path, unit) if blocks is None else blocks, [""]):
        held.append(block)
        size += len(block)
        if block and "\n" not in block and "\r" not in block:
            if size > MAX_LINE_CHARACTERS:
                raise DataError(
                    f"{path} {unit} {number + 1} is longer than {MAX_LINE_CHARACTERS // 2**20} "
                    "MiB. Store a text of this length as a plain text file."
                )
            continue
        lines = io.StringIO("".join(held), newline="").readlines()
        is_last = not block
        held = [] if is_last or lines[-1].endswith("\n") else [lines.pop()]  # \r may go on with \n
        size = sum(map(len, held))
        for line in lines:
            number += 1
            yield number, line
