"""Files: which files a source names.

Contract: a file's name does not depend on where its source lies on disk: it is the path below the
source's folder (for a glob, below its part without wildcards), or the file's own name.
"""

import glob
import os
from dataclasses import dataclass
from pathlib import Path

from stillhouse.data.compression import COMPRESSED, format_of
from stillhouse.errors import DataError

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
        return format_of(self.path)


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
            if format_of(path) in SUPPORTED and path.is_file()
        ]
    return sorted(found, key=lambda file: file.name)


def _folder_without_wildcards(pattern: Path) -> Path:
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
