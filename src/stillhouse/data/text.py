"""Reading text files: decompressed, decoded, validated and split into lines, in bounded memory.

Errors name the file.
"""

import codecs
import contextlib
import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from stillhouse.errors import DataError
from stillhouse.extras import require

MODULES = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")

DAMAGE = [EOFError, OSError, zlib.error]
with contextlib.suppress(ImportError):  # a Python that was built without liblzma
    from lzma import LZMAError

    DAMAGE.append(LZMAError)

BLOCK_BYTES = 2**20
ARROW_WINDOW_BYTES = 2**27  # the largest window that pyarrow decompresses
ZSTD_READ_BYTES = 2**10  # of which no more than 32 MiB can come: 128 KiB of every 4 bytes
MAX_LINE_CHARACTERS = 64 * 2**20
# What a compressed file may give: text of no kind is so repetitive, a decompression bomb is.
FREE_BYTES, MAX_RATIO = 64 * 2**20, 500
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# The first bytes of files that are often misnamed, and what to do about each.
SIGNATURES = {
    b"\x1f\x8b": "gzip-compressed. Rename it to end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd-compressed. Rename it to end in .zst",
    b"BZh91AY&SY": "bzip2-compressed. Rename it to end in .bz2",
    b"\xfd7zXZ\0": "xz-compressed. Rename it to end in .xz",
    b"PAR1": "a Parquet file. Rename it to end in .parquet",
    b"%PDF-": "a PDF file. Convert it, such as with `pdftotext`",
    b"PK\x03\x04": "a ZIP archive or an office document. Unpack or convert it",
}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed as its suffix says.

    Raises:
        DataError: the file cannot be read or decompressed, or is a decompression bomb.
    """
    suffix = path.suffix.lower()
    with reading(path), contextlib.ExitStack() as stack:
        if suffix not in COMPRESSED:
            yield stack.enter_context(path.open("rb"))
            return
        if suffix in MODULES:
            content = stack.enter_context(importlib.import_module(MODULES[suffix]).open(path, "rb"))
        else:
            content = _opened_zstd(path, stack)
        yield io.BufferedReader(_Limited(content, path), BLOCK_BYTES)


def _opened_zstd(path: Path, stack: contextlib.ExitStack) -> Any:
    """The content of zstd frames; the standard library has them only from Python 3.14 on."""
    file = stack.enter_context(path.open("rb"))
    window = _window_bytes(file.read(6))
    file.seek(0)
    if window > ARROW_WINDOW_BYTES:
        require("text", "zstandard", purpose=f"Reading {path}, which has a large window,")
        return _Zstd(file)
    import pyarrow

    compressed = pyarrow.PythonFile(file, "r")
    return stack.enter_context(pyarrow.CompressedInputStream(compressed, "zstd"))


class _Limited(io.RawIOBase):
    """What a decompressor gives, up to a limit that no text reaches."""

    def __init__(self, content: Any, path: Path) -> None:
        self._content = content
        self._path = path
        self._size = path.stat().st_size
        self._left = FREE_BYTES + MAX_RATIO * self._size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._content.read(len(buffer))
        self._left -= len(part)
        if self._left < 0:
            raise DataError(
                f"{self._path} is a decompression bomb: its {self._size:,} bytes give over "
                f"{MAX_RATIO} times as many. Leave it out; if it is right, decompress it yourself."
            )
        buffer[: len(part)] = part
        return len(part)


def _window_bytes(header: bytes) -> int:
    """The window that a zstd frame needs, from its first bytes (RFC 8878, section 3.1.1.1); 0 where
    that is its content, or where it is no such frame."""
    if len(header) < 6 or not header.startswith(b"\x28\xb5\x2f\xfd") or header[4] & 0x20:
        return 0
    size = 1 << (10 + (header[5] >> 3))
    return size + size // 8 * (header[5] & 7)


class _Zstd(io.RawIOBase):
    """The content of zstd frames with windows of up to 2 GiB, such as the dumps of Reddit, of which
    zstandard's own reader does not say where they are cut short."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
        self._frame: Any = None
        self._given = b""  # read from the file, but not yet decompressed
        self._held = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._held and self._has_more():
            self._held = memoryview(self._next_part())
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _has_more(self) -> bool:
        self._given = self._given or self._file.read(ZSTD_READ_BYTES)
        if not self._given and self._frame is not None:
            raise EOFError("the last frame is not complete")
        return bool(self._given)

    def _next_part(self) -> bytes:
        import zstandard

        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            part = self._frame.decompress(self._given)
        except zstandard.ZstdError as error:
            raise OSError(str(error)) from error
        self._given = self._frame.unused_data
        if self._frame.eof:
            self._frame = None
        return part


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the disk or of a decompressor into a DataError that names the file."""
    try:
        yield
    except tuple(DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
        raise DataError(
            f"{path} is damaged or cut short: it cannot be decompressed ({error}). "
            "Fetch or compress it again."
        ) from error


def read_blocks(path: Path, unit: str | None = None, *, lenient: bool = False) -> Iterator[str]:
    """A file's text in blocks, without a byte order mark.

    Args:
        unit: What errors call a line of the file; without it, an error that is not UTF-8 gives
            the position in bytes alone.
        lenient: Give bytes that are not UTF-8 as lone surrogates, and NUL characters as they are,
            for a caller that leaves out the records that have them.

    Raises:
        DataError: the file is missing or damaged, is not UTF-8, or holds a NUL character.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape" if lenient else "strict")
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # of the block's first byte
    line = 1
    with opened(path) as content:
        for block in chain(iter(lambda: content.read(BLOCK_BYTES), b""), [b""]):
            if offset == 0:
                check_signature(path, block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf_8(path, unit, line, offset + len(block), error) from error
            translated = newlines.decode(text, final=not block)
            if "\0" in text and not lenient:
                line += translated.count("\n", 0, translated.index("\0"))
                raise DataError(
                    f"{path} holds a NUL character in {unit or 'line'} {line}: it looks like a "
                    "binary file, or like UTF-16. Leave it out, or convert it to plain UTF-8 text."
                )
            if text:
                yield text
            offset += len(block)
            line += translated.count("\n")


def check_signature(path: Path, start: bytes, wanted: str = "text") -> None:
    """Refuse a file whose first bytes are those of another format or of a compression.

    Args:
        wanted: What it is read as.

    Raises:
        DataError: they are.
    """
    kinds = (kind for signature, kind in SIGNATURES.items() if start.startswith(signature))
    if kind := next(kinds, None):
        raise DataError(f"{path} is not {wanted}: its first bytes show that it is {kind}.")


def _not_utf_8(
    path: Path, unit: str | None, line: int, end: int, error: UnicodeDecodeError
) -> DataError:
    """`end` is the file's byte after those that failed to decode; `line` is where they start."""
    start = end - len(error.object)
    before = error.object[: error.start].decode("utf-8", "replace")
    line += before.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    encoding = "UTF-16" if start == 0 and error.object.startswith(UTF_16) else "LATIN1"
    return DataError(
        f"{path}{f' {unit} {line}' if unit else ''} is not UTF-8: byte {start + error.start}"
        f"{' of the file' if unit else ''} is 0x{error.object[error.start]:02x} ({error.reason}). "
        f"Convert the file, such as with `iconv -f {encoding} -t UTF-8`, or leave it out."
    )


def read_lines(
    path: Path, on_damage: Callable[[DataError], None] | None = None
) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1, with their ends: `\\n`, `\\r\\n` or `\\r`.

    Args:
        on_damage: Makes reading lenient (`read_blocks`), and is called with the error of a line
            that is too long, which is then left out.

    Raises:
        DataError: as `read_blocks`, or a line that is too long for memory.
    """
    number = size = 0
    held: list[str] = []  # what follows the last complete line
    too_long = False  # the line that it begins
    for block in chain(read_blocks(path, "row", lenient=on_damage is not None), [""]):
        held.append(block)
        size += len(block)
        if block and "\n" not in block and "\r" not in block:
            if size > MAX_LINE_CHARACTERS and not too_long:
                error = DataError(
                    f"{path} row {number + 1} is longer than {MAX_LINE_CHARACTERS // 2**20} "
                    "MiB. Store a text of this length as a plain text file."
                )
                if on_damage is None:
                    raise error
                on_damage(error)
                too_long = True
            if too_long:
                held.clear()
            continue
        lines = io.StringIO("".join(held), newline="").readlines()
        # A \r at the end of a block may be the first half of a \r\n.
        held = [lines.pop()] if block and not lines[-1].endswith("\n") else []
        size = sum(map(len, held))
        for line in lines:
            number += 1
            if not too_long:
                yield number, line
            too_long = False


def check_characters(text: str, where: str) -> None:
    """Refuse a text that holds a NUL character or a lone surrogate.

    Raises:
        DataError: it does.
    """
    if "\0" in text:
        raise DataError(f"{where} holds a NUL character: it looks like binary data. Leave it out.")
    check_whole_characters(text, where)


def check_whole_characters(text: str, where: str) -> None:
    """Refuse a text that cannot be encoded as UTF-8.

    Raises:
        DataError: it holds a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds a lone surrogate, \\u{ord(text[error.start]):04x}, which is not a "
            "character. Write the text again with whole characters, or leave it out."
        ) from error
