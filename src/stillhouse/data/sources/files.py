"""Files, folders and globs: which files a path names, and which of them are left out.

Contract: a file's name does not depend on where its source is on the disk: it is the path below the
source's folder (for a glob, below its part without wildcards), or the file's own name. In a folder
every file with a known suffix is read; hidden files and folders are left out.
"""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from stillhouse.data.formats import (
    SUFFIXES,
    UNKNOWN,
    Format,
    OnDamage,
    TableFile,
    format_of,
    named_format,
    suffix_of,
)
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import (
    Content,
    Document,
    Source,
    page_documents,
    record_documents,
    text_documents,
)
from stillhouse.data.text import COMPRESSED
from stillhouse.errors import DataError

# Files of text: their paths by their names within their source.
Files = dict[str, Path]


def find(source: str) -> tuple[list[Content], Counter[str]]:
    """The files that a path, a folder or a glob names, sorted by name; and how many files of which
    suffix are left out.

    Raises:
        DataError: nothing matches, or none of it can be read.
    """
    files, skipped = _find_files(source)
    return [content_of(name, path) for name, path in sorted(files.items())], skipped


def content_of(name: str, path: Path) -> Content:
    """A file, which counts as changed with its size or its time of modification."""
    stat, format = path.stat(), named_format(path)
    facts = {"name": name, "size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return Content(format.name, facts, partial(_documents, name, path, format), path.resolve())


def _documents(
    name: str,
    path: Path,
    format: Format,
    corpus: CorpusRecipe,
    on_damage: OnDamage | None = None,
) -> Iterator[Document]:
    column = corpus.text_field
    file = TableFile(path, str(path), column, columns=(column, "id", "url"), on_damage=on_damage)
    if format.read_pages is not None and (format.read_text is None or on_damage is not None):
        yield from page_documents(name, format.read_pages(file))
    elif format.read_text is not None:
        yield from text_documents(name, format.read_text(path), corpus)
    else:
        assert format.read_records is not None
        yield from record_documents(name, format.read_records(file), corpus, on_damage)


def _find_files(source: str) -> tuple[Files, Counter[str]]:
    path = Path(source).expanduser()
    if path.is_file():
        named_format(path)
        return {path.name: path}, Counter()
    if path.is_dir():
        found, skipped = _known(_files_below(path), path, "")
        if not found:
            holds = f"; it holds {list_counts(skipped)}" if skipped else "; it is empty"
            raise DataError(
                f"The folder {path} holds no file with one of the suffixes {', '.join(SUFFIXES)} "
                f"(or these with {', '.join(COMPRESSED)}){holds}. Name other text files by a "
                f"glob, such as {path}/*.log."
            )
        return found, skipped
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if "**" in path.parts:  # which matches what is in the folders, too
        matches = [match for match in matches if not match.is_dir()]
    root, suffix = path, suffix_of(path)
    while glob.has_magic(str(root)):
        root = root.parent
    found, skipped = _known(matches, root, "" if glob.has_magic(suffix) else suffix)
    if not found:
        raise DataError(
            f"No file matches corpus.source {source!r} (seen from {Path.cwd()})"
            + (f" except {list_counts(skipped)}, which cannot be read" if skipped else "")
            + ". Give a file, a folder, a glob such as data/**/*.txt, hf://NAME, or sample."
            + (" Download a file from the web first." if "://" in source else "")
        )
    return found, skipped


def _known(paths: Iterable[Path], root: Path, named_suffix: str) -> tuple[Files, Counter[str]]:
    """The files that can be read, and the suffixes of the others."""
    found: Files = {}
    skipped: Counter[str] = Counter()
    for path in paths:
        suffix = suffix_of(path)
        is_named = suffix != "" and suffix == named_suffix
        format = named_format(path) if is_named else format_of(path)
        if path.name.startswith("."):
            skipped["hidden"] += 1
        elif path.is_dir():
            skipped["folder"] += 1
        elif not path.is_file():
            skipped["special file" if path.exists() else "broken link"] += 1
        elif format is UNKNOWN or not (is_named or format.is_one(path)):
            skipped[suffix or "without a suffix"] += 1
        else:
            found[path.relative_to(root).as_posix()] = path
    return found, skipped


def _files_below(root: Path) -> Iterator[Path]:
    """The files of a folder, also of linked folders, and its hidden folders.

    A folder that was listed before, as where links form a cycle, is not listed again.

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
        others = sorted({*subfolders} - {*hidden}, reverse=True)
        targets = {Path(folder, name).resolve(): name for name in others}  # the first of equals
        subfolders[:] = sorted(name for target, name in targets.items() if target not in seen)
        seen.update(targets)
        yield from (Path(folder, name) for name in [*hidden, *names])


def list_counts(counts: Counter[str]) -> str:
    """Such as "3 .pdf, 2 .png", the most frequent first."""
    return ", ".join(f"{number:,} {name}" for name, number in ordered_counts(counts))


def ordered_counts(counts: Counter[str]) -> list[tuple[str, int]]:
    """The most frequent first, then by name."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


SOURCE = Source("", find)
