"""The run folder: every path of a run, manifests, and commits that are whole or absent.

A stage writes into a temporary folder beside its target; `commit_folder` flushes it to disk, adds
`manifest.json` and renames it into place. What stands under its final name is therefore complete.
A stage is up to date when its manifest was made from the same settings, inputs and seed. When they
changed, the old output is moved to `replaced/`, unless the user asked by name to overwrite it.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from stillhouse.errors import ResourceError, RunError
from stillhouse.machine import library_versions, source_commit

MANIFEST = "manifest.json"
# What the operating system says of a full disk, and of a path that cannot be.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run. `shared` is the run itself, or the parent of one seed's run."""

    path: Path
    shared: Path

    @classmethod
    def at(cls, path: Path) -> "RunFolder":
        return cls(path, path)

    def for_seed(self, seed: int) -> "RunFolder":
        """The folder of one seed of several: its own results, the same corpus, tokens and
        teacher."""
        return RunFolder(self.path / f"seed-{seed}", self.path)

    @property
    def recipe(self) -> Path:
        return self.shared / "recipe.yaml"

    @property
    def corpus(self) -> Path:
        return self.shared / "corpus"

    @property
    def tokens(self) -> Path:
        return self.shared / "tokens"

    @property
    def teacher(self) -> Path:
        return self.shared / "teacher"

    @property
    def teacher_cache(self) -> Path:
        return self.shared / "teacher-cache"

    @property
    def student_init(self) -> Path:
        return self.path / "student-init"

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def control_same_time(self) -> Path:
        return self.path / "control-same-time"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def finetuned(self, task: str) -> Path:
        """Where the models of one task, and their scores, are."""
        return self.path / "finetuned" / task

    @property
    def task_data(self) -> Path:
        """Datasets of the hub that tasks read, as lines of JSON."""
        return self.shared / "task-data"

    def checkpoints(self, model: str) -> Path:
        """Where the checkpoints of one model (teacher, student, control) are."""
        return self.path / "checkpoints" / model


@dataclass(frozen=True)
class Inputs:
    """Everything a stage's output follows from; equal inputs mean that it need not run again."""

    stage: str
    settings: Mapping[str, Any]
    sources: Mapping[str, str]
    seed: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What stands in a stage's `manifest.json`."""

    inputs: Inputs
    files: Mapping[str, Mapping[str, Any]]
    seconds: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)
    commit: str | None = field(default_factory=source_commit)
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
    """Where an output's manifest stands: inside a folder, beside a single file."""
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
            f"{path} is damaged ({error}). Move {output} away; the stage then runs again."
        ) from error


def is_up_to_date(output: Path, inputs: Inputs) -> bool:
    """Whether `output` was made from exactly these inputs."""
    manifest = read_manifest(output)
    return manifest is not None and fingerprint(asdict(manifest.inputs)) == fingerprint(
        asdict(inputs)
    )


def changed_settings(output: Path, inputs: Inputs) -> list[str]:
    """What differs between the inputs of `output` and `inputs`, one readable line each."""
    manifest = read_manifest(output)
    if manifest is None:
        return []
    old, new = _flatten(asdict(manifest.inputs)), _flatten(asdict(inputs))
    changes = []
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            name = key.removeprefix("settings.").removeprefix("sources.")
            digest = key.startswith("sources.")
            changes.append(
                f"{name} changed" if digest else f"{name}: {old.get(key)} -> {new.get(key)}"
            )
    return changes


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
        size = path.stat().st_size
        if size != facts["size_bytes"]:
            raise RunError(
                f"{path} is damaged: {size} bytes, expected {facts['size_bytes']}. Move {output} "
                "away to redo it."
            )
        if sha256_of(path) != facts["sha256"]:
            raise RunError(
                f"{path} is damaged: its content does not match its SHA-256. Move {output} away to "
                "redo it."
            )


@contextlib.contextmanager
def commit_folder(
    target: Path, inputs: Inputs, facts: dict[str, Any] | None = None, *, overwrite: bool = False
) -> Iterator[Path]:
    """Write a folder that appears under its name only when it is complete.

    Yields a temporary folder. On success its files are flushed to disk, `manifest.json` is added
    (with `facts`, which the body may fill), and the folder is renamed to `target`. What stood there
    before moves to `replaced/`, or goes away with `overwrite`. On failure nothing changes."""
    started = time.monotonic()
    temporary = temporary_path(target, os.getpid())
    with explained_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        temporary.mkdir()
    try:
        with explained_os_errors(target):
            yield temporary
            files = {
                str(path.relative_to(temporary)): {
                    "size_bytes": path.stat().st_size,
                    "sha256": sha256_of(path),
                }
                for path in sorted(temporary.rglob("*"))
                if path.is_file()
            }
            manifest = Manifest(inputs, files, round(time.monotonic() - started, 3), facts or {})
            write_atomic(temporary / MANIFEST, _manifest_bytes(manifest))
            fsync_tree(temporary)
            make_room(target, overwrite=overwrite)
            temporary.rename(target)
            fsync_path(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def commit_parts(target: Path, inputs: Inputs, facts: dict[str, Any]) -> None:
    """Complete a folder whose `part-*` folders were committed one by one: its manifest lists the
    files of all, and their seconds together."""
    parts = {path.name: read_manifest(path) for path in sorted(target.glob("part-*"))}
    files = {
        f"{name}/{file}": described
        for name, manifest in parts.items()
        if manifest is not None
        for file, described in manifest.files.items()
    }
    seconds = sum(manifest.seconds for manifest in parts.values() if manifest is not None)
    manifest = Manifest(inputs, files, round(seconds, 3), facts)
    with explained_os_errors(target):
        write_atomic(target / MANIFEST, _manifest_bytes(manifest))


def commit_file(target: Path, content: bytes, inputs: Inputs, *, seconds: float = 0.0) -> None:
    """Write one result file and its manifest, each whole or not at all."""
    with explained_os_errors(target):
        manifest_path(target).unlink(missing_ok=True)
        write_atomic(target, content)
        facts = {
            target.name: {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        }
        write_atomic(
            manifest_path(target), _manifest_bytes(Manifest(inputs, facts, round(seconds, 3)))
        )


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file so that a reader sees the old content or the new, never a part."""
    temporary = temporary_path(path, os.getpid())
    _remove_leftovers(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def temporary_path(target: Path, process: int) -> Path:
    """Where a process writes what is to appear as `target`."""
    return target.with_name(f".{target.name}.tmp-{process}")


def fsync_path(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and `folder` itself."""
    for path in folder.rglob("*"):
        fsync_path(path)
    fsync_path(folder)


@contextlib.contextmanager
def locked(run: RunFolder) -> Iterator[None]:
    """Hold a run for one process, so that two commands cannot write the same folder.

    Raises:
        RunError: another process holds it, or the folder cannot be made or written.
    """
    try:
        run.shared.mkdir(parents=True, exist_ok=True)
        lock = (run.shared / ".lock").open("w")
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        if isinstance(error, OSError) and error.errno in FULL:
            raise _full_disk(run.shared, error) from error
        raise _unusable(run.shared, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{run.shared} is in use by another stillhouse process. Wait for it, or give "
                "another --run-dir."
            ) from error
        except OSError as error:
            raise _unusable(run.shared, error) from error
        yield


def _unusable(path: Path, error: OSError | ValueError) -> RunError:
    """Why no run can be kept under a path."""
    place = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if place is not None and not place.is_dir():
        reason = f"{place} is a file" if place.is_file() else f"{place} is no folder"
    return RunError(
        f"The run folder {str(path)!r:.200} cannot be written ({reason}). Give a folder that you "
        "may write with --run-dir."
    )


def _full_disk(where: Path | str, error: OSError) -> ResourceError:
    return ResourceError(
        f"The disk is full: writing {where} failed ({error.strerror}). Nothing half-written was "
        "kept. Free some space and give the same command again; a run goes on from its last commit."
    )


@contextlib.contextmanager
def explained_os_errors(path: Path | str = "a file") -> Iterator[None]:
    """Turn the operating system's write errors on `path` into ours, which say what to do."""
    try:
        with _system_errors():
            yield
    except OSError as error:
        where = error.filename or path
        if error.errno in FULL:
            raise _full_disk(where, error) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(
                f"{where} cannot be written ({error.strerror}). Give another place, for a run with "
                "--run-dir."
            ) from error
        if error.errno in PATHS:
            raise RunError(
                f"{str(where)!r:.200} cannot be used ({error.strerror}). Move what is there away, "
                "or give another path."
            ) from error
        if error.errno == errno.EIO:
            raise ResourceError(
                f"The disk failed while writing {where} ({error.strerror})."
            ) from error
        raise


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """The operating system's errors as such: safetensors gives them as text, and numpy's `tofile`
    without their number, which is that of a full disk: in a regular file only that, a quota or a
    limit of its size stops a write half way."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    except OSError as error:
        if error.errno is not None or not re.fullmatch(
            r"\d+ requested and \d+ written", str(error)
        ):
            raise
        raise OSError(
            errno.ENOSPC, f"of {str(error).replace('requested and', 'values')}"
        ) from error


def _manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest and, last, the fingerprint of what it says."""
    data = json.loads(json.dumps(asdict(manifest)))
    data["digest"] = fingerprint(data)
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {
            path: leaf
            for key, item in value.items()
            for path, leaf in _flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    return {prefix: value}


def _remove_leftovers(target: Path) -> None:
    """Remove what killed processes left behind (the run is locked by us)."""
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def make_room(target: Path, *, overwrite: bool) -> None:
    """Move what stands at `target` to `replaced/`, or remove it with `overwrite`."""
    if not target.exists():
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = target.parent / "replaced" / f"{target.name}-{stamp}"
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{target.name}-{stamp}-{number}")
    aside.parent.mkdir(exist_ok=True)
    target.rename(aside)
    if overwrite:
        shutil.rmtree(aside)
