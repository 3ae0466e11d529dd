"""Atomic writes of files and folders, and clear errors of the disk."""

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from stillhouse.errors import ResourceError, RunError

# Error numbers of a full disk and of invalid paths.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

PATHS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write in place of `path`, so that a reader sees the old content or the new, never a
    part. It replaces `path` at the end of the block; after an error nothing is left of it.

    What a killed process leaves is not removed here: it could be the file of one that still writes
    (see `remove_leftovers`).
    """
    temporary = temporary_path(path, os.getpid())
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the content of a file; see `atomic_file`."""
    remove_leftovers(path)
    with atomic_file(path) as file:
        file.write(content)


def temporary_path(target: Path, process: int) -> Path:
    """The temporary path of a process for `target`."""
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


def unusable_path(path: Path, error: OSError | ValueError) -> RunError:
    """The error of a path that cannot hold a run."""
    place = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if place is not None and not place.is_dir():
        reason = f"{place} is a file" if place.is_file() else f"{place} is no folder"
    return RunError(
        f"The run folder {str(path)!r:.200} cannot be written ({reason}). Give a folder that you "
        "may write with --run-dir."
    )


def full_disk_error(where: Path | str, error: OSError) -> ResourceError:
    return ResourceError(
        f"The disk is full: writing {where} failed ({error.strerror}). Nothing half-written was "
        "kept. Free some space and run the same command again; a run resumes from its last commit."
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
            raise full_disk_error(where, error) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(
                f"{where} cannot be written ({error.strerror}). Give another place, for a run with "
                "--run-dir."
            ) from error
        if error.errno in PATHS:
            raise RunError(
                f"{str(where)!r:.200} cannot be used ({error.strerror}). Move it away, or give "
                "another path."
            ) from error
        if error.errno == errno.EIO:
            raise ResourceError(
                f"The disk failed while writing {where} ({error.strerror})."
            ) from error
        raise


@contextlib.contextmanager
def _system_errors() -> Iterator[None]:
    """Restore the error numbers that libraries drop: safetensors reports errors of the system as
    text, and numpy's `tofile` a short write without one, which in a file means a full disk."""
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


def remove_leftovers(target: Path) -> None:
    """Remove temporary files of killed processes (this process holds the lock)."""
    for leftover in target.parent.glob(f".{target.name}.tmp-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def archive_existing(target: Path, *, overwrite: bool) -> None:
    """Move an existing `target` to `replaced/`, or remove it with `overwrite`."""
    if not target.exists():
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    backup = target.parent / "replaced" / f"{target.name}-{stamp}"
    number = 1
    while backup.exists():
        number += 1
        backup = backup.with_name(f"{target.name}-{stamp}-{number}")
    backup.parent.mkdir(exist_ok=True)
    target.rename(backup)
    if overwrite:
        shutil.rmtree(backup)
