"""A task's data: files of this disk as they are, datasets of the hub as files of the run."""

import hashlib
import json
import os
import re
from pathlib import Path

from stillhouse.data.hub import HUB_PREFIX, HubDataset, must_be_online
from stillhouse.errors import DataError
from stillhouse.run_folder import Inputs, commit_file, is_up_to_date
from stillhouse.training.progress import Reporter


def path_of(source: str, folder: Path) -> Path:
    """Where the examples of `source` are, or will be once they are fetched into `folder`."""
    if not source.startswith(HUB_PREFIX):
        return Path(source)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", source.removeprefix(HUB_PREFIX))
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]  # two names may read alike
    return folder / f"{name}-{digest}.jsonl"


def check_file(source: str, key: str) -> None:
    """Refuse a file of this disk that is not there.

    Raises:
        DataError: it is not.
    """
    if not source.startswith(HUB_PREFIX) and not os.path.isfile(source):
        raise DataError(f"{key}: there is no file {source!r:.200} (seen from {Path.cwd()}).")


def fetch(source: str, folder: Path, key: str, reporter: Reporter, *, offline: bool) -> None:
    """Write a dataset of the hub as lines of JSON, once.

    Raises:
        NetworkError: offline, or the hub cannot be reached.
        RecipeError: the `datasets` package is not installed.
        DataError: there is no such dataset, configuration or split.
    """
    path, inputs = path_of(source, folder), Inputs(f"data {source}", {}, {})
    if not source.startswith(HUB_PREFIX) or is_up_to_date(path, inputs):
        return
    must_be_online(source, key, offline=offline)
    reporter.say(f"fetching {source}")
    rows = HubDataset.named(source).rows()
    try:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:  # a picture, a date
        raise DataError(
            f"{source} has a column that is neither text nor numbers: {error}."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    commit_file(path, content.encode(), inputs)
