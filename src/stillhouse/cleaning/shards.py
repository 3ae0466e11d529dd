"""Shards: the parts of the text that are cleaned one by one, by as many processes as there are.

Contract: the shards follow from the files alone, their names, order and sizes. A shard is a run of
files of about one size, all of one part of the text. The documents of a larger file, and those of a
dataset that is no file, are first written to pieces of that size, one shard each, which are removed
when they are clean.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillhouse.data.documents import contents_of
from stillhouse.data.settings import CorpusRecipe
from stillhouse.data.sources import Content, source_of
from stillhouse.data.sources.files import content_of
from stillhouse.runs.atomic import write_atomic
from stillhouse.runs.manifest import fingerprint

PLAN = "plan.json"
DIVIDED = 2  # times the size of a shard, above which a file is divided


@dataclass(frozen=True)
class Group:
    """Files that are cleaned together, or one that is divided."""

    number: int
    contents: tuple[tuple[str, str], ...]  # names and paths; of a source without files, no path
    is_divided: bool
    fingerprint: str
    part: str = ""  # of the text

    @property
    def name(self) -> str:
        return f"{self.number:05d}"


@dataclass(frozen=True)
class Shard:
    """The files of a group, or one of its pieces."""

    group: Group
    piece: int = 0

    @property
    def name(self) -> str:
        return f"{self.group.name}-{self.piece:05d}"


def plan_shards(corpus: CorpusRecipe, shard_bytes: int, *, offline: bool) -> list[Group]:
    """The groups of files, each of about `shard_bytes`, in the order of the text.

    Raises:
        DataError: a source that names no file that can be read.
        NetworkError: a hub dataset while offline.
    """
    groups: list[Group] = []
    held: list[tuple[str, str]] = []
    facts: list[Any] = []
    size = 0

    def close(part: str) -> None:
        nonlocal size
        if held:
            is_divided = size > DIVIDED * shard_bytes or not held[0][1]
            groups.append(Group(len(groups), tuple(held), is_divided, fingerprint(facts), part))
        held.clear()
        facts.clear()
        size = 0

    for part, own in corpus.parts.items():
        for source, content in contents_of(own, offline=offline):
            facts_of_content = {"source": source, **content.facts}
            if content.path is None:  # a dataset, or one of the parts of a source that is no file
                if held != [(source, "")]:
                    close(part)
                held[:] = [(source, "")]
                facts.append(facts_of_content)
                continue
            num_bytes = content.facts["size_bytes"]
            is_divided = num_bytes > DIVIDED * shard_bytes
            if is_divided or size + num_bytes > shard_bytes or (held and not held[-1][1]):
                close(part)
            held.append((content.facts["name"], str(content.path)))
            facts.append(facts_of_content)
            size += num_bytes
            if is_divided:
                close(part)
        close(part)
    return groups


def contents_of_group(group: Group) -> Iterator[Content]:
    """The files of a group, or what its one source stands for."""
    for name, path in group.contents:
        if path:
            yield content_of(name, Path(path))
        else:
            yield from source_of(name).find(name)[0]


def save_plan(folder: Path, groups: list[Group]) -> str:
    """Write the groups to `folder`; returns their hash."""
    digest = fingerprint([[each.fingerprint, each.part] for each in groups])
    rows = [[each.contents, each.is_divided, each.fingerprint, each.part] for each in groups]
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(rows).encode()
    with contextlib.suppress(FileNotFoundError):
        if (folder / PLAN).read_bytes() == content:  # of several jobs, one writes it
            return digest
    write_atomic(folder / PLAN, content)
    return digest


@lru_cache(maxsize=1)
def load_plan(folder: Path, digest: str) -> list[Group]:
    """The groups that `save_plan` has written under this hash, once in a process."""
    rows = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    return [
        Group(number, tuple((name, path) for name, path in contents), is_divided, own, part)
        for number, (contents, is_divided, own, part) in enumerate(rows)
    ]
