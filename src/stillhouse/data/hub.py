"""Datasets of the Hugging Face hub, streamed row by row, or copied once into a run.

Contract: `hf://owner/name`, with `:configuration` and then `#split` where they matter, gives the
rows of that split (by default `train`) in order; a class is given by its name. The network is used
only here, for model names and by lm-evaluation-harness, and only when it is allowed.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.data.records import with_class_names
from stillhouse.errors import DataError, NetworkError, RunError, StillhouseError
from stillhouse.extras import require
from stillhouse.runs.manifest import (
    Inputs,
    commit_file,
    is_up_to_date,
    manifest_path,
    read_manifest,
)

HUB_PREFIX = "hf://"


@dataclass(frozen=True)
class HubDataset:
    """A split of a dataset that `datasets` can stream: of a hub name, or of a folder."""

    name: str
    configuration: str | None = None
    split: str = "train"

    @classmethod
    def named(cls, source: str) -> "HubDataset":
        """The dataset that `hf://...` stands for."""
        place, _, split = source.removeprefix(HUB_PREFIX).partition("#")
        name, _, configuration = place.partition(":")
        return cls(name, configuration or None, split or "train")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its rows, in order.

        Raises:
            RecipeError: the `datasets` package is not installed.
            NetworkError: the hub cannot be reached.
            DataError: there is no such dataset, configuration or split.
        """
        require("hub", purpose=f"{HUB_PREFIX}{self.name}")
        import datasets

        try:
            rows: Any = datasets.load_dataset(
                self.name, self.configuration, split=self.split, streaming=True
            )
            classes = _classes(rows.features or {})
            for row in rows:
                yield dict(with_class_names(row, classes))
        except StillhouseError:
            raise
        except Exception as error:  # the hub's clients raise errors of many libraries
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> StillhouseError:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, (FileNotFoundError, ValueError)):
            return DataError(
                f"The dataset {self.name!r} cannot be streamed ({reason}). Check the name; one "
                "with configurations is written hf://owner/name:configuration, a split "
                "hf://owner/name#split."
            )
        return NetworkError(
            f"The dataset {self.name!r} could not be fetched ({reason}). Try again, or give its "
            "files."
        )


def must_be_online(source: str, key: str, *, offline: bool) -> None:
    """Refuse a hub name where the network is forbidden.

    Raises:
        NetworkError: it is.
    """
    if offline:
        raise NetworkError(
            f"{key} {source!r} is on the hub, and --offline forbids the network. Fetch it where "
            "you have a network, and give a folder of its .parquet or .jsonl files."
        )


def _classes(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each column of classes, or of lists of them, their names."""
    from datasets import ClassLabel

    inner = {column: getattr(each, "feature", each) for column, each in features.items()}
    return {column: each.names for column, each in inner.items() if isinstance(each, ClassLabel)}


COPY = "data "  # what the manifest of a copy begins its stage with, before the dataset's name


def path_of(source: str, folder: Path) -> Path:
    """Where the examples of `source` are, or will be once they are fetched into `folder`."""
    if not source.startswith(HUB_PREFIX):
        return Path(source).expanduser()
    name = re.sub(r"[^A-Za-z0-9.]+", "-", source.removeprefix(HUB_PREFIX))
    digest = hashlib.sha256(source.encode()).hexdigest()[:8]  # two names may read alike
    return folder / f"{name}-{digest}.jsonl"


def check_file(source: str, key: str) -> None:
    """Refuse a file of this disk that is not there.

    Raises:
        DataError: it is not.
    """
    if source.startswith(HUB_PREFIX) or os.path.isfile(os.path.expanduser(source)):
        return
    if os.path.isdir(os.path.expanduser(source)) or (glob.has_magic(source) and glob.glob(source)):
        raise DataError(
            f"{key}: {source!r:.200} is not one file. The examples of a task are one file for "
            "training and one for each split; join those that belong together."
        )
    raise DataError(f"{key}: there is no file {source!r:.200} (seen from {Path.cwd()}).")


def name_of(path: Path) -> str:
    """What the user calls a file: of a copy that `fetch` made, the name of its dataset."""
    if path.suffix == ".jsonl" and manifest_path(path).is_file():
        with contextlib.suppress(RunError):  # the manifest of something else
            manifest = read_manifest(path)
            if manifest is not None and manifest.inputs.stage.startswith(COPY):
                return manifest.inputs.stage.removeprefix(COPY)
    return str(path)


def fetch(
    source: str, folder: Path, key: str, say: Callable[[str], None], *, offline: bool
) -> None:
    """Write a dataset of the hub as lines of JSON, once.

    Raises:
        NetworkError: offline, or the hub cannot be reached.
        RecipeError: the `datasets` package is not installed.
        DataError: there is no such dataset, configuration or split.
    """
    path, inputs = path_of(source, folder), Inputs(f"{COPY}{source}", {}, {})
    if not source.startswith(HUB_PREFIX) or is_up_to_date(path, inputs):
        return
    must_be_online(source, key, offline=offline)
    say(f"fetching {source}")
    rows = HubDataset.named(source).rows()
    try:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except TypeError as error:  # a picture, a date
        raise DataError(
            f"{source} has a column that is neither text nor numbers: {error}."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    commit_file(path, content.encode(), inputs)
