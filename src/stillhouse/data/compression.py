"""Decompression by file suffix, with errors that name the file."""

import contextlib
import importlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from stillhouse.errors import DataError, StillhouseError

MODULES = {".gz": "gzip", ".bz2": "bz2", ".xz": "lzma"}
COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")

DAMAGE = [EOFError, OSError, zlib.error]
with contextlib.suppress(ImportError):  # a Python that was built without liblzma
    from lzma import LZMAError

    DAMAGE.append(LZMAError)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes, decompressed as its suffix says.

    Raises:
        DataError: the file cannot be read or decompressed.
    """
    suffix = path.suffix.lower()
    with reading(path), contextlib.ExitStack() as stack:
        if suffix in (".zst", ".zstd"):  # of the standard library only from Python 3.14 on
            import pyarrow

            compressed = pyarrow.PythonFile(stack.enter_context(path.open("rb")), "r")
            yield stack.enter_context(pyarrow.CompressedInputStream(compressed, "zstd"))
        else:
            module = importlib.import_module(MODULES.get(suffix, "io"))
            yield stack.enter_context(module.open(path, "rb"))


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors of the disk or of a decompressor into a DataError that names the file."""
    try:
        yield
    except StillhouseError:
        raise
    except tuple(DAMAGE) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path} cannot be read ({error.strerror or error}).") from error
        raise DataError(
            f"{path} is damaged or cut short: it cannot be decompressed ({error}). "
            "Fetch or compress it again."
        ) from error
