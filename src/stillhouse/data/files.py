"""Files: which files a source names, what each is read as, and which are left out.

Contract: a file's name does not depend on where its source lies on disk: it is the path below the
source's folder (for a glob, below its part without wildcards), or the file's own name. Of a folder
every file with a known ending is read; hidden files and folders are not looked into.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.data.compression import COMPRESSED
from stillhouse.data.formats import SUFFIXES, Format, format_of, named_format, suffix_of
from stillhouse.errors import DataError

HIDDEN = "hidden"
NO_SUFFIX = "without a suffix"
BROKEN_LINK, NO_FILE, FOLDER = "broken link", "special file", "folder"


@dataclass(frozen=True)
class SourceFile:
    """A file of text: its name within its source, its place on this machine, and its format."""

    name: str
    path: Path
    format: Format


@dataclass
class ReadSummary:
    """What was read as what, and what was left out.

    `files` counts files (and hub datasets) by format, `skipped` files by suffix.
    """

    files: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    blank_documents: int = 0

    def facts(self) -> dict[str, Any]:
        """The same for a manifest."""
        return {
            "files": dict(sorted(self.files.items())),
            "skipped": dict(sorted(self.skipped.items())),
            "blank_documents": self.blank_documents,
        }

    def __str__(self) -> str:
        """Such as "12 files as text, 3 as HTML; skipped 5: 3 .pdf, 2 .png"."""
        first = True
        parts = []
        for format, number in sorted(self.files.items(), key=lambda item: (-item[1], item[0])):
            files = (" file" if number == 1 else " files") if first else ""
            parts.append(f"{number:,}{files} as {format}")
            first = False
        text = ", ".join(parts)
        if self.skipped:
            text += f"; skipped {self.skipped.total():,}: {listed(self.skipped)}"
        return text


def listed(counts: Counter[str]) -> str:
    """Such as "3 .pdf, 2 .png", the most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {suffix}" for suffix, number in ordered)


def find_files(source: str) -> tuple[list[SourceFile], Counter[str]]:
    """The files that a path, a folder or a glob names, sorted by name; and how many files of which
    suffix are left out.

    Raises:
        DataError: nothing matches, or nothing of it can be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [SourceFile(path.name, path, named_format(path))], Counter()
    if path.is_dir():
        found, skipped = _known(_files_below(path), path, "")
        if not found:
            holds = f"; it holds {listed(skipped)}" if skipped else "; it is empty"
            raise DataError(
                f"The folder {path} holds no file with one of the endings {', '.join(SUFFIXES)} "
                f"(or these with {', '.join(COMPRESSED)}){holds}. Name other files of text by a "
                f"glob, such as {path}/*.log."
            )
        return found, skipped
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if "**" in path.parts:  # what is in a folder is a match of its own
        matches = [match for match in matches if not match.is_dir()]
    root = _folder_without_wildcards(path)
    found, skipped = _known(matches, root, _named_suffix(path))
    if not found:
        raise DataError(
            f"No file matches corpus.source {source!r} (seen from {Path.cwd()})"
            + (f" but for {listed(skipped)}, which cannot be read" if skipped else "")
            + ". Give a file, a folder, a glob such as data/**/*.txt, hf://NAME, or sample."
            + (" Fetch a file of the web first." if "://" in source else "")
        )
    return found, skipped


def _known(
    paths: Iterable[Path], root: Path, named_suffix: str
) -> tuple[list[SourceFile], Counter[str]]:
    """The files that can be read, and the suffixes of the others."""
    found: set[SourceFile] = set()
    skipped: Counter[str] = Counter()
    for path in paths:
        suffix = suffix_of(path)
        is_named = suffix != "" and suffix == named_suffix
        format = named_format(path) if is_named else format_of(path)
        if path.name.startswith("."):
            skipped[HIDDEN] += 1
        elif not path.is_file():
            skipped[_what_is(path)] += 1
        elif format is None:
            skipped[suffix or NO_SUFFIX] += 1
        else:
            found.add(SourceFile(path.relative_to(root).as_posix(), path, format))
    return sorted(found, key=lambda file: file.name), skipped


def _what_is(path: Path) -> str:
    """What a path that is no file is called among what is skipped."""
    if path.is_dir():
        return FOLDER
    return NO_FILE if path.exists() else BROKEN_LINK


def _files_below(root: Path) -> Iterable[Path]:
    """Files, also of folders that links lead to; and hidden folders, of which no file is named.

    A folder that was seen before, as where links make a circle, is not read again.

    Raises:
        DataError: a folder that cannot be listed.
    """

    def stop(error: OSError) -> None:
        raise DataError(
            f"The folder {error.filename} cannot be listed ({error.strerror})."
        ) from error

    seen = {root.resolve()}
    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        hidden = [name for name in subfolders if name.startswith(".")]
        shown = {name: Path(folder, name).resolve() for name in sorted({*subfolders} - {*hidden})}
        subfolders[:] = []
        for name, place in shown.items():
            if place not in seen:
                seen.add(place)
                subfolders.append(name)
        yield from (Path(folder, name) for name in [*hidden, *names])


def _named_suffix(pattern: Path) -> str:
    """The suffix that a glob ends in, where that has no wildcard."""
    suffix = suffix_of(pattern)
    return "" if glob.has_magic(suffix) else suffix


def _folder_without_wildcards(pattern: Path) -> Path:
    while glob.has_magic(str(pattern)):
        pattern = pattern.parent
    return pattern
