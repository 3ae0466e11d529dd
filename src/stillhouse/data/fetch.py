"""A task's data: its files, and copies of remote datasets that are fetched into the run once."""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from stillhouse.data.sources.registry import check_online, source_of
from stillhouse.errors import DataError, RunError
from stillhouse.runs.manifest import (
    Inputs,
    commit_file,
    is_up_to_date,
    manifest_path,
    read_manifest,
)

COPY = "data "  # begins the stage in the manifest of a copy, before the dataset's name


def path_of(source: str, folder: Path) -> Path:
    """The file with the examples of `source`: its copy in `folder`, fetched or not, if remote."""
    if not source_of(source).is_remote:
        return Path(source).expanduser()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", source.partition("://")[2])
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]  # since two names may read alike
    return folder / f"{name}-{digest}.jsonl"


def check_file(source: str, key: str) -> None:
    """Refuse a local source that is not a file.

    Raises:
        DataError: there is no such file, or it is a folder or a glob.
    """
    if source_of(source).is_remote or os.path.isfile(os.path.expanduser(source)):
        return
    if os.path.isdir(os.path.expanduser(source)) or (glob.has_magic(source) and glob.glob(source)):
        raise DataError(
            f"{key}: {source!r:.200} is not a single file. A task has one file for training and "
            "one for each split; join the files that belong together."
        )
    raise DataError(f"{key}: there is no file {source!r:.200} (seen from {Path.cwd()}).")


def name_of(path: Path) -> str:
    """What errors call a file: the name of its dataset, for a copy that `fetch` made."""
    if path.suffix == ".jsonl" and manifest_path(path).is_file():
        with contextlib.suppress(RunError):  # the manifest of something else
            manifest = read_manifest(path)
            if manifest is not None and manifest.inputs.stage.startswith(COPY):
                return manifest.inputs.stage.removeprefix(COPY)
    return str(path)


def fetch(
    source: str, folder: Path, key: str, say: Callable[[str], None], *, offline: bool
) -> None:
    """Write a remote dataset to `folder` as JSON lines, once.

    Raises:
        NetworkError: offline, or the hub cannot be reached.
        RecipeError: the package that reads it is not installed.
        DataError: there is no such dataset, configuration or split.
    """
    path, inputs = path_of(source, folder), Inputs(f"{COPY}{source}", {}, {})
    read_rows = source_of(source).read_rows
    if read_rows is None or is_up_to_date(path, inputs):
        return
    check_online(source, key, offline=offline)
    say(f"fetching {source}")
    rows = read_rows(source)
    try:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:  # an image, a date
        raise DataError(
            f"{source} has a column that is neither text nor numbers: {error}."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    commit_file(path, content.encode(), inputs)
