"""Files: which files a source names, and how their bytes are read.

Contract: a file's name does not depend on where its source lies on disk: it is the path below the
source's folder (for a glob, below its part without wildcards), or the file's own name.
"""

import contextlib
import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from stillhouse.errors import DataError, StillhouseError

COMPRESSED = (".gz", ".zst", ".zstd")
TEXT_SUFFIXES = (".txt", ".md", ".text", ".py")
JSON_SUFFIXES = (".jsonl", ".json")
SUPPORTED = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".parquet")


@dataclass(frozen=True)
class SourceFile:
    """A file of text: its name within its source, and its place on this machine."""

    name: str
    path: Path

    @property
    def format(self) -> str:
        """The suffix that tells the format, after one that tells the compression."""
        return _suffix(self.path)


def find_files(source: str) -> list[SourceFile]:
    """The files that a path, a folder or a glob names, sorted by name.

    Raises:
        DataError: nothing matches.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [SourceFile(path.name, path)]
    if path.is_dir():
        files = _files_below(path)
        if not files:
            raise DataError(
                f"The folder {path} holds no file with one of the endings {', '.join(SUPPORTED)} "
                f"(or these with {', '.join(COMPRESSED)}). Name other files by a glob, such as "
                f"{path}/*.log."
            )
        return files
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    root = _folder_without_wildcards(path)
    files = [SourceFile(_relative(match, root), match) for match in matches if match.is_file()]
    if not files:
        raise DataError(
            f"No file matches corpus.source {source!r} (seen from {Path.cwd()}). "
            "Give a file, a folder, a glob such as data/**/*.txt, hf://NAME, or sample."
        )
    return sorted(set(files), key=lambda file: file.name)


def _files_below(root: Path) -> list[SourceFile]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [Path(folder, name) for name in names if not name.startswith(".")]
        found += [
            SourceFile(_relative(path, root), path)
            for path in paths
            if _suffix(path) in SUPPORTED and path.is_file()
        ]
    return sorted(found, key=lambda file: file.name)


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _folder_without_wildcards(pattern: Path) -> Path:
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedIOBase]:
    """A file's content, decompressed; what disk or decompressor find wrong is a DataError."""
    with reading(path):
        ending = path.suffix.lower()
        if ending == ".gz":
            with gzip.open(path, "rb") as file:
                yield file
        elif ending in COMPRESSED:
            with path.open("rb") as compressed, io.BufferedReader(_ZstdReader(compressed)) as file:
                yield file
        else:
            with path.open("rb") as file:
                yield file


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong while it is read."""
    from zstandard import ZstdError

    try:
        yield
    except StillhouseError:
        raise
    except (EOFError, gzip.BadGzipFile, zlib.error, ZstdError) as error:
        raise DataError(
            f"{path} is damaged or cut short: it cannot be decompressed ({error}). "
            "Fetch or compress it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error


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
