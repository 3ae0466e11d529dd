"""Opening files: decompressed where their name says so, and what is wrong with them named."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path

from stillhouse.errors import DataError, StillhouseError

COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """A file's content, decompressed; what disk or decompressor find wrong is a DataError."""
    ending = path.suffix.lower()
    with reading(path):
        if ending == ".gz":
            with gzip.open(path, "rb") as file:
                yield file
        elif ending in (".zst", ".zstd"):
            with path.open("rb") as compressed, io.BufferedReader(_ZstdReader(compressed)) as file:
                yield file
        elif ending == ".bz2":
            import bz2

            with bz2.open(path, "rb") as file:
                yield file
        elif ending == ".xz":
            import lzma

            with lzma.open(path, "rb") as file, _as_end_of_file(lzma.LZMAError):
                yield file
        else:
            with path.open("rb") as file:
                yield file


@contextlib.contextmanager
def _as_end_of_file(kind: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kind as error:
        raise EOFError(error) from error


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong while it is read."""
    from zstandard import ZstdError

    try:
        yield
    except StillhouseError:
        raise
    except (EOFError, OSError, zlib.error, ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
        raise DataError(
            f"{path} is damaged or cut short: it cannot be decompressed ({error}). "
            "Fetch or compress it again."
        ) from error


class _ZstdReader(io.RawIOBase):
    """Zstandard frames as a stream, which tells a file that was cut short from one that has ended.

    The compressed bytes go in by the kilobyte, so even the most compressible input comes out in
    parts of at most some 32 MB.
    """

    def __init__(self, compressed: BufferedIOBase) -> None:
        import zstandard

        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._compressed = compressed
        self._inside = False
        self._unused = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._ready:
            block = self._unused or self._compressed.read(1024)
            self._unused = b""
            if not block:
                if self._inside:
                    raise EOFError("the last frame is incomplete")
                return 0
            self._inside = True
            self._ready = memoryview(self._frame.decompress(block))
            if self._frame.eof:
                self._unused = self._frame.unused_data
                self._frame = self._new_frame()
                self._inside = False
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
