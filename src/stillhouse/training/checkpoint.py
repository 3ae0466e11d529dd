"""Checkpoints: the whole state of a training run, committed whole, verified on load.

`checkpoints/MODEL/step-00001000/` holds the weights, the optimizer's state, `state.json` and a
manifest with the size and SHA-256 of each. Sample order, masks and dropout follow from (seed,
step), so there is no generator state to keep. The newest checkpoint that verifies is loaded;
damaged ones are renamed and reported.

Tensors are stored in safetensors, one file per rank that has a shard: rows of the first axis, in
the order of the ranks (`model-00002-of-00004.safetensors`). Replicated weights are one shard, which
the first rank writes. A checkpoint of any number of shards can be resumed on any number of ranks.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from stillhouse.errors import ResourceError, RunError, TrainingError
from stillhouse.runs.atomic import explained_os_errors, temporary_path
from stillhouse.runs.manifest import Inputs, changed_settings, commit_folder, is_up_to_date, verify
from stillhouse.training.device import is_out_of_memory
from stillhouse.training.divergence import LossTrend
from stillhouse.training.parts import (
    ShardFiles,
    State,
    check_shapes,
    is_sharded,
    restore,
    restore_weights,
)
from stillhouse.training.ranks import ALONE, Ranks
from stillhouse.training.signals import NEVER, StopRequest

LONGEST_IDLE_SECONDS = 1200.0  # while the other rank writes no byte
LONGEST_SHUTDOWN_SECONDS = 15.0  # the same after a signal, as when a rank is lost


@dataclass(frozen=True)
class Progress:
    """The progress of a run, and what it needs to resume exactly.

    `micro_batch_sequences` is set where memory did not allow the planned number. `recent_norms` are
    the gradient norms of the last steps, `trend` is the trend of the loss.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    micro_batch_sequences: int | None = None
    recent_norms: tuple[float, ...] = ()
    trend: LossTrend = field(default_factory=LossTrend)

    def facts(self) -> dict[str, int | float]:
        """The facts of a finished training, for its manifest."""
        return {
            "tokens": self.tokens,
            "seconds": self.seconds,
            "steps": self.step,
            "skipped_steps": self.skipped_steps,
        }


class Checkpoints:
    """The committed states of one model's training."""

    def __init__(
        self,
        folder: Path,
        inputs: Inputs,
        *,
        keep_last: int,
        keep_every_steps: int | None = None,
        keep_steps: Collection[int] = (),
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = folder
        self.inputs = inputs
        self.keep_last = keep_last
        self.keep_every_steps = keep_every_steps
        self.keep_steps = frozenset(keep_steps)
        self.say = say
        self.ranks = ranks
        self._saving: _Saving | None = None
        self._newest = 0
        self._first_process = os.getpid()

    def committed(self) -> list[Path]:
        """Folders of committed checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        stop: StopRequest = NEVER,
    ) -> None:
        """Commit the state after `progress.step` steps, then remove those beyond what is kept.

        The state is copied and written in the background; `finish` waits for it.

        Args:
            stop: After a signal, ranks wait only briefly for one that writes nothing.

        Raises:
            ResourceError: too little disk space or memory, now or in an earlier save.
            TrainingError: another rank was lost during an earlier save.
        """
        self.finish()
        if progress.step == self._newest:
            return
        self._newest, target = progress.step, self._path(progress.step)
        part = ShardFiles(0, 1)
        if is_sharded(model):
            part = ShardFiles(self.ranks.rank, self.ranks.size)
        elif not self.ranks.is_first:
            return
        state = _state_of(model, optimizer, target)
        self._saving = _Saving(lambda: self._write(target, part, state, progress, stop))

    def wait(self) -> None:
        """Wait until this rank has finished writing; raises the error of a failed save."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def check(self) -> None:
        """Raise the error of a save that has failed already."""
        if self._saving is not None and self._saving.has_failed:
            self.wait()

    def finish(self) -> None:
        """Wait until the last save is committed, on every rank."""
        if not self.ranks.is_first:
            self.wait()
        self.ranks.on_rank0(self.wait)

    def abandon(self) -> None:
        """After a failed training, give a running save a moment to be committed."""
        if self._saving is not None:
            self._saving.join(LONGEST_SHUTDOWN_SECONDS)

    def load_newest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the newest intact checkpoint into model and optimizer; None without any.

        Raises:
            RunError: the checkpoint was written under another recipe, or no checkpoint is intact.
        """
        shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
        self._newest = self.ranks.on_rank0(lambda: self._newest_intact(shapes))
        self._first_process = self.ranks.on_rank0(os.getpid)
        if not self._newest:
            return None
        restore(self._path(self._newest), model, optimizer)
        return _read_progress(self._path(self._newest))

    def restore_weights(self, step: int, model: nn.Module) -> None:
        """Fill a whole model with the weights of a committed state.

        Raises:
            RunError: it is damaged.
        """
        verify(self._path(step))
        restore_weights(self._path(step), model)

    def clear(self) -> None:
        """Remove every checkpoint, once the result of training is committed."""
        if self.ranks.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _write(
        self, target: Path, part: ShardFiles, state: State, progress: Progress, stop: StopRequest
    ) -> None:
        """Write this rank's shard. The first rank creates the folder, waits for the shards of all
        ranks, and commits them together (a two-phase commit)."""
        begun, written = f"{target} begun", f"{target} written"
        temporary = temporary_path(target, self._first_process)
        if part.number:
            self._wait_until(lambda: self.ranks.count(begun), temporary, stop)
            try:
                with explained_os_errors(temporary):
                    part.write(temporary, state)
            except FileNotFoundError as error:  # the first rank gave up and removed it
                raise _lost(temporary) from error
            self.ranks.count(written, 1)
            return
        _check_space(self.folder, part.count * state.size_bytes)
        with commit_folder(target, self.inputs) as temporary:
            self.ranks.count(begun, 1)
            part.write(temporary, state)
            (temporary / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
            others = part.count - 1
            self._wait_until(lambda: self.ranks.count(written) == others, temporary, stop)
            self._wait_until(lambda: part.all_are_written(temporary), temporary, NEVER)
        for old in self._superseded():
            shutil.rmtree(old)

    def _wait_until(
        self, condition: Callable[[], object], temporary: Path, stop: StopRequest
    ) -> None:
        """Wait for other ranks to write their shards, for as long as any file grows."""
        size, quiet_since = -1, time.monotonic()
        while not condition():
            now, size_now = time.monotonic(), _size_of(temporary)
            if size_now != size:
                size, quiet_since = size_now, now
            hurried = stop.signal_number is not None
            longest = LONGEST_SHUTDOWN_SECONDS if hurried else LONGEST_IDLE_SECONDS
            if now - quiet_since > longest:
                raise _lost(temporary)
            time.sleep(0.01)

    def _superseded(self) -> list[Path]:
        every = self.keep_every_steps
        steps = {path: int(path.name.removeprefix("step-")) for path in self.committed()}
        return [
            path
            for path in list(steps)[: -self.keep_last]
            if (every is None or steps[path] % every) and steps[path] not in self.keep_steps
        ]

    def _newest_intact(self, shapes: Mapping[str, list[int]]) -> int:
        """The step of the newest intact checkpoint, or 0. Damaged ones are renamed, and incomplete
        ones of killed processes are removed."""
        for leftover in self.folder.glob(".step-*.tmp-*"):
            shutil.rmtree(leftover)
        found = self.committed()
        for path in reversed(found):
            try:
                verify(path)
                if not is_up_to_date(path, self.inputs):
                    raise _ChangedError(self._changed_message(path))
                check_shapes(path, shapes)
                _read_progress(path)
                return int(path.name.removeprefix("step-"))
            except _ChangedError as error:
                raise RunError(str(error)) from None
            except (RunError, SafetensorError, ValueError, LookupError, TypeError) as error:
                backup = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(backup, ignore_errors=True)
                path.rename(backup)
                self.say(f"Checkpoint {path} is damaged and was moved to {backup.name}: {error}")
        if found or list(self.folder.glob("damaged-step-*")):
            raise RunError(
                f"No checkpoint in {self.folder} is intact. To start over, remove that folder "
                "or name the stage in --overwrite."
            )
        return 0

    def _changed_message(self, path: Path) -> str:
        changes = "; ".join(changed_settings(path, self.inputs))
        stage = self.inputs.stage.partition(" ")[0]
        return (
            f"{path} was written under another recipe ({changes}), so training cannot resume from "
            "it. "
            f"Restore the recipe, give another --run-dir, or restart this stage with "
            f"--overwrite {stage}."
        )


class _ChangedError(Exception):
    """An intact checkpoint of another recipe."""


class _Saving:
    """A save that runs in a thread, and its error."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # raised by `result`
            self._error = error
        finally:
            del self._work  # and with it the copy of the state

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def result(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


def _lost(temporary: Path) -> TrainingError:
    return TrainingError(
        f"Another rank was lost, or gave up, before {temporary.parent} had its next checkpoint. "
        "Every committed one is kept; run the same command again to resume."
    )


def _size_of(folder: Path) -> int:
    """Bytes of the files in a folder, while other ranks write and rename them."""
    size = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            size += path.stat().st_size
    return size


def _state_of(model: nn.Module, optimizer: torch.optim.Optimizer, target: Path) -> State:
    try:
        return State.of(model, optimizer)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"There is not enough memory for a copy of the training's state, which {target} is "
            "written from. Every earlier checkpoint is kept; add memory, or use a smaller model."
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceError(
            f"The disk is too full for a checkpoint in {folder}: it takes {needed / 1e6:,.0f} MB, "
            f"and {free / 1e6:,.0f} MB are free. Free some space and run the same command again; "
            "a run resumes from its last commit."
        )


def _read_progress(path: Path) -> Progress:
    """Raises ValueError, TypeError or KeyError where a value is not what it should be."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    state["recent_norms"] = tuple(map(float, state["recent_norms"]))
    trend = state.pop("trend", {})
    trend["recent"] = tuple(map(float, trend.get("recent", ())))
    progress = Progress(**state, trend=LossTrend(**trend))
    counts = (progress.step, progress.tokens, progress.skipped_steps)
    optional = progress.micro_batch_sequences
    if not all(type(count) is int for count in counts) or (optional is not None and optional < 1):
        raise ValueError(f"{path}/state.json holds what cannot be counted")
    if progress.step != int(path.name.removeprefix("step-")) or not progress.seconds >= 0:
        raise ValueError(f"{path}/state.json holds the state of another step")
    return progress
