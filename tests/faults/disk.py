"""A disk that fails: the n-th write to a folder raises what the operating system would.

What Python writes is caught where pathlib and os do it; what safetensors writes, at its
`save_file`, which then leaves half a file behind and speaks of the error as it does itself.
"""

import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import transformers.modeling_utils
from safetensors import SafetensorError

import stillhouse.training.checkpoint


class FailingDisk:
    """Counts the writes below a folder; from the n-th on each fails, as a full disk does."""

    def __init__(
        self, folder: Path | str, fails_at: int | None, number: int, log: str | None
    ) -> None:
        self.folder = str(folder)
        self.fails_at = fails_at
        self.number = number
        self.writes = 0
        self.commits: list[str] = []  # the checkpoints that were committed
        self._log = log
        self._lock = threading.Lock()

    def refuses(self, path: Any) -> bool:
        """Whether this write fails."""
        if not str(path).startswith(self.folder):
            return False
        with self._lock:
            self.writes += 1
            self._note("write")
            return self.fails_at is not None and self.writes >= self.fails_at

    def committed(self, name: str) -> None:
        """A checkpoint exists under its final name."""
        self.commits.append(name)
        self._note(name)

    def _note(self, word: str) -> None:
        if self._log is not None:
            with open(self._log, "a") as log:
                log.write(f"{word}\n")

    def error(self, path: Any) -> OSError:
        return OSError(self.number, os.strerror(self.number), str(path))


@contextmanager
def failing_disk(
    folder: Path | str, fails_at: int | None, number: int, *, log: str | None = None
) -> Iterator[FailingDisk]:
    """Within, the disk below `folder` fails with the error `number` from the n-th write on.

    Args:
        log: A file that gets a line for each write and each commit, for who cannot see the disk.
    """
    disk = FailingDisk(folder, fails_at, number, log)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace"):
            _fail_before(patch, pathlib.Path, name, disk)
        _fail_on_open(patch, disk)
        _fail_on_fsync(patch, disk)
        for module, name in (
            (stillhouse.training.checkpoint, "save_file"),
            (transformers.modeling_utils, "safe_save_file"),
        ):
            _fail_half_way(patch, module, name, disk)
        yield disk


def _fail_before(patch: pytest.MonkeyPatch, owner: Any, name: str, disk: FailingDisk) -> None:
    original = getattr(owner, name)

    def failing(self: Path, *arguments: Any, **named: Any) -> Any:
        if disk.refuses(self):
            raise disk.error(self)
        done = original(self, *arguments, **named)
        if name == "rename" and done.name.startswith("step-"):
            disk.committed(done.name)
        return done

    patch.setattr(owner, name, failing)


def _fail_on_open(patch: pytest.MonkeyPatch, disk: FailingDisk) -> None:
    original = pathlib.Path.open

    def failing(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if set(mode) & set("wax+") and self.name != ".lock" and disk.refuses(self):
            raise disk.error(self)
        file = original(self, mode, *arguments, **named)
        return _FailingFile(file, self, disk) if set(mode) & set("wax+") else file

    patch.setattr(pathlib.Path, "open", failing)


class _FailingFile:
    """An open file whose writes may fail too, half way."""

    def __init__(self, file: Any, path: Path, disk: FailingDisk) -> None:
        self._file, self._path, self._disk = file, path, disk

    def write(self, content: Any) -> int:
        if self._disk.refuses(self._path):
            self._file.write(content[: len(content) // 2])
            raise self._disk.error(self._path)
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_FailingFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()


def _fail_on_fsync(patch: pytest.MonkeyPatch, disk: FailingDisk) -> None:
    original = os.fsync

    def failing(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if disk.refuses(path):
            raise disk.error(path)
        original(descriptor)

    patch.setattr(os, "fsync", failing)


def _fail_half_way(patch: pytest.MonkeyPatch, module: Any, name: str, disk: FailingDisk) -> None:
    original: Callable[..., Any] = getattr(module, name)

    def failing(tensors: Any, path: Any, *arguments: Any, **named: Any) -> Any:
        original(tensors, path, *arguments, **named)
        if disk.refuses(path):
            os.truncate(path, os.path.getsize(path) // 2)
            text = os.strerror(disk.number)
            raise SafetensorError(f"I/O error: {text} (os error {disk.number})")

    patch.setattr(module, name, failing)
