"""The sample text: English and code that every Python installation has.

Contract: the `.py` sources of this Python's standard library, in sorted order, each under its path
relative to the library's folder, such as `json/decoder.py`. About 11 MB.

License: the files are read from the user's own installation (Python Software Foundation License);
none of them is distributed with Stillhouse.
"""

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from stillhouse.data.formats import OnDamage
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import Content, Document, Source
from stillhouse.errors import DataError

# Not part of every installation, or not written for people to read.
LEFT_OUT = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__pycache__",
}  # fmt: skip


def sample_files(library: Path | None = None) -> list[tuple[str, Path]]:
    """Name (the relative path, with `/`) and path of each sample file, sorted by name."""
    root = library or Path(sysconfig.get_path("stdlib"))
    files: list[tuple[str, Path]] = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [
            name for name in subfolders if name not in LEFT_OUT and not name.startswith("config-")
        ]
        paths = [Path(folder, name) for name in names if name.endswith(".py")]
        files += [(path.relative_to(root).as_posix(), path) for path in paths if path.is_file()]
    if not files:
        raise DataError(
            f"The sample text is this Python's standard library, but {root} holds no .py files. "
            "Use a Python that has its library's sources, or give a text as corpus.source."
        )
    return sorted(files)


def sample_documents(library: Path | None = None) -> Iterator[tuple[str, str]]:
    """Name and text of each sample file; the few files that are not UTF-8 are left out."""
    for name, path in sample_files(library):
        yield from ((name, "".join(document.parts)) for document in _documents(name, path))


def _documents(
    name: str,
    path: Path,
    corpus: CorpusRecipe | None = None,
    on_damage: OnDamage | None = None,
) -> Iterator[Document]:
    try:
        yield Document(name, [path.read_bytes().decode("utf-8-sig")])
    except UnicodeDecodeError:
        return
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); it is part of the sample text."
        ) from error


def find(source: str) -> tuple[list[Content], Counter[str]]:
    """The sample files."""
    contents = [
        Content(
            "text",
            {"name": name, "size_bytes": path.stat().st_size},
            partial(_documents, name, path),
        )
        for name, path in sample_files()
    ]
    return contents, Counter()


SOURCE = Source("sample", find)
