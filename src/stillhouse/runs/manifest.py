"""Manifests: the inputs of an output, and the hashes of its files."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillhouse.errors import RunError
from stillhouse.machine import library_versions, source_commit
from stillhouse.runs.atomic import (
    archive_existing,
    explained_os_errors,
    fsync_path,
    fsync_tree,
    remove_leftovers,
    temporary_path,
    write_atomic,
)
from stillhouse.runs.power import current_power

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Inputs:
    """Everything that a stage's output depends on; with equal inputs it is not rerun."""

    stage: str
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    seed: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The content of an output's `manifest.json`.

    `power` is what the stage drew on average (`energy.power`), and `joules` that times `seconds`;
    None where it is not known.
    """

    inputs: Inputs
    files: Mapping[str, Mapping[str, Any]]
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)
    commit: str | None = field(default_factory=source_commit)
    power: Mapping[str, Any] | None = None
    joules: float | None = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs and of every file's content, in hexadecimal."""
        return fingerprint({"inputs": asdict(self.inputs), "files": self.files})


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest_path(output: Path) -> Path:
    """The path of an output's manifest: inside a folder, next to a single file."""
    return (
        output.with_name(f"{output.stem}.{MANIFEST}")
        if output.suffix in (".json", ".jsonl", ".html")
        else output / MANIFEST
    )


def read_manifest(output: Path) -> Manifest | None:
    """The manifest of a stage's output, or None where the stage has not run.

    Raises:
        RunError: the manifest is there but cannot be read.
    """
    path = manifest_path(output)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("digest") != fingerprint(data):
            raise ValueError("its content does not match its digest")
        data["inputs"] = Inputs(**data["inputs"])
        for name, facts in data["files"].items():
            _ = facts["size_bytes"], facts["sha256"]
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name} lies outside")
        return Manifest(**data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{path} is damaged ({error}). Move {output} away to rerun the stage."
        ) from error


def fingerprint_of(output: Path) -> str:
    """The fingerprint of a stage's output; empty where the stage has not run."""
    manifest = read_manifest(output)
    return "" if manifest is None else manifest.fingerprint


def facts_of(output: Path) -> Mapping[str, Any]:
    """What a stage noted of its output; empty where the stage has not run."""
    manifest = read_manifest(output)
    return {} if manifest is None else manifest.facts


def is_up_to_date(output: Path, inputs: Inputs) -> bool:
    """Whether `output` was made from exactly these inputs."""
    manifest = read_manifest(output)
    return manifest is not None and fingerprint(asdict(manifest.inputs)) == fingerprint(
        asdict(inputs)
    )


def changed_settings(output: Path, inputs: Inputs) -> list[str]:
    """The differences between the inputs of `output` and `inputs`, one readable line each."""
    manifest = read_manifest(output)
    if manifest is None:
        return []
    old, new = flattened(asdict(manifest.inputs)), flattened(asdict(inputs))
    return [
        f"{key.removeprefix('sources.')} changed"
        if key.startswith("sources.")
        else f"{key.removeprefix('settings.')}: {old.get(key)} -> {new.get(key)}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def verify(output: Path) -> None:
    """Check the size and SHA-256 of every file that `output`'s manifest lists.

    Raises:
        RunError: a file is missing, cut short or altered.
    """
    manifest = read_manifest(output)
    if manifest is None:
        raise RunError(f"{output} has no {MANIFEST}: the stage that writes it has not finished.")
    for name, facts in manifest.files.items():
        path = output / name if output.is_dir() else output
        if not path.is_file():
            raise RunError(
                f"{path} is missing, though {manifest_path(output)} lists it. Move {output} away "
                "to redo it."
            )
        size, expected = path.stat().st_size, facts["size_bytes"]
        problem = f"{size} bytes, expected {expected}" if size != expected else None
        if problem is None and sha256_of(path) != facts["sha256"]:
            problem = "its content does not match its SHA-256"
        if problem is not None:
            raise RunError(f"{path} is damaged: {problem}. Move {output} away to redo it.")


@contextlib.contextmanager
def commit_folder(
    target: Path, inputs: Inputs, facts: dict[str, Any] | None = None, *, overwrite: bool = False
) -> Iterator[Path]:
    """Write a folder that appears under its name only when it is complete.

    Yields a temporary folder. On success its files are flushed to disk, `manifest.json` is added
    (with `facts`, which the body may fill), and the folder is renamed to `target`. An existing
    folder moves to `replaced/`, or is removed with `overwrite`. On failure nothing changes."""
    started = time.monotonic()
    temporary = temporary_path(target, os.getpid())
    with explained_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        temporary.mkdir()
        try:
            yield temporary
            files = {
                str(path.relative_to(temporary)): {
                    "size_bytes": path.stat().st_size,
                    "sha256": sha256_of(path),
                }
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            manifest = _manifest(inputs, files, time.monotonic() - started, facts)
            write_atomic(temporary / MANIFEST, _manifest_bytes(manifest))
            fsync_tree(temporary)
            archive_existing(target, overwrite=overwrite)
            temporary.rename(target)
            fsync_path(target.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def commit_parts(target: Path, inputs: Inputs, facts: dict[str, Any]) -> None:
    """Commit a folder whose `part-*` folders are committed: its manifest lists all their files, and
    the sum of their seconds."""
    parts = {path.name: read_manifest(path) for path in sorted(target.glob("part-*"))}
    files = {
        f"{name}/{file}": described
        for name, manifest in parts.items()
        if manifest is not None
        for file, described in manifest.files.items()
    }
    seconds = sum((each.seconds for each in parts.values() if each is not None), start=0.0)
    manifest = _manifest(inputs, files, seconds, facts)
    with explained_os_errors(target):
        write_atomic(target / MANIFEST, _manifest_bytes(manifest))


def commit_file(target: Path, content: bytes, inputs: Inputs, *, seconds: float = 0.0) -> None:
    """Write one result file and its manifest, each atomically."""
    with explained_os_errors(target):
        manifest_path(target).unlink(missing_ok=True)
        write_atomic(target, content)
        facts = {
            target.name: {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        }
        write_atomic(manifest_path(target), _manifest_bytes(_manifest(inputs, facts, seconds)))


def commit_json(target: Path, content: Any, inputs: Inputs, *, seconds: float = 0.0) -> None:
    """`commit_file` of a value as JSON, which has no NaN or infinity."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    commit_file(target, text.encode(), inputs, seconds=seconds)


def _manifest(
    inputs: Inputs,
    files: Mapping[str, Mapping[str, Any]],
    seconds: float,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of what has just been made, with the power of the running stage."""
    power = current_power()
    watts = None if power is None else power["watts"]
    joules = None if watts is None else round(watts * seconds, 3)
    return Manifest(inputs, files, round(seconds, 3), facts or {}, power=power, joules=joules)


def _manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as JSON, followed by its digest."""
    data = json.loads(json.dumps(asdict(manifest)))
    data["digest"] = fingerprint(data)
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted path."""
    if isinstance(value, Mapping):
        return {
            path: leaf
            for key, item in value.items()
            for path, leaf in flattened(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}
