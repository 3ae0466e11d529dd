"""Checkpoints: the whole state of a training run, committed whole, verified on load.

`checkpoints/MODEL/step-00001000/` holds the weights, the optimizer's state, `state.json` and a
manifest with the size and SHA-256 of each. Sample order, masks and dropout follow from (seed,
step), so there is no generator state to keep. The newest checkpoint that verifies is loaded;
damaged ones are renamed and reported.

Tensors are stored in safetensors, one file per rank that has a shard: rows of the first axis, in
the order of the ranks (`model-00002-of-00004.safetensors`). Replicated weights are one shard, which
the first rank writes. A checkpoint of any number of shards can be resumed on any number of ranks.
"""

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stillhouse.errors import ResourceError, RunError, TrainingError
from stillhouse.runs.atomic import explained_os_errors, fsync_path, temporary_path
from stillhouse.runs.manifest import Inputs, changed_settings, commit_folder, is_up_to_date, verify
from stillhouse.training.device import is_out_of_memory
from stillhouse.training.parallel import is_sharded
from stillhouse.training.progress import Progress
from stillhouse.training.ranks import ALONE, NEVER, Ranks, StopRequest
from stillhouse.training.settings import CheckpointRecipe

LONGEST_IDLE_SECONDS = 1200.0  # while the other rank writes no byte
LONGEST_SHUTDOWN_SECONDS = 15.0  # the same after a signal, as when a rank is lost
EVERY_ROW = slice(None)
ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}  # of each parameter that has had a gradient

State = dict[str, dict[str, Tensor]]  # tensors by kind, `model` or `optimizer`, and name


@dataclass
class Checkpoints:
    """The committed states of one model's training, which resumes with the same `inputs` only.

    Those of `keep_steps` are kept until the end. With `overwrite` existing ones are removed rather
    than loaded.
    """

    folder: Path
    inputs: Inputs
    settings: CheckpointRecipe
    say: Callable[[str], None]
    ranks: Ranks = ALONE
    keep_steps: Collection[int] = ()
    overwrite: bool = False
    _saving: Future[None] | None = field(default=None, init=False)
    _newest: int = field(default=0, init=False)
    _first_process: int = field(default_factory=os.getpid, init=False)

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
        num_shards = self.ranks.size if is_sharded(model) else 1
        if self.ranks.rank < num_shards:
            state = state_of(model, optimizer, target)
            self._saving = _in_background(
                lambda: self._write(target, num_shards, state, progress, stop)
            )

    def wait(self) -> None:
        """Wait until this rank has finished writing; raises the error of a failed save."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def check(self) -> None:
        """Raise the error of a save that has failed already."""
        if self._saving is not None and self._saving.done() and self._saving.exception():
            self.wait()

    def finish(self) -> None:
        """Wait until the last save is committed, on every rank."""
        if not self.ranks.is_first:
            self.wait()
        self.ranks.on_rank0(self.wait)

    def abandon(self) -> None:
        """After a failed training, give a running save a moment to be committed."""
        if self._saving is not None:
            wait([self._saving], LONGEST_SHUTDOWN_SECONDS)

    def load_newest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the newest intact checkpoint into model and optimizer; None without any.

        Raises:
            RunError: the checkpoint was written under another recipe, or no checkpoint is intact.
        """
        if self.overwrite:
            self.clear()
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
        self, target: Path, num_shards: int, state: State, progress: Progress, stop: StopRequest
    ) -> None:
        """Write this rank's shard. The first rank creates the folder, waits for the shards of all
        ranks, and commits them together (a two-phase commit)."""
        started, written = f"{target} started", f"{target} written"
        temporary = temporary_path(target, self._first_process)
        if not self.ranks.is_first:
            self._wait_until(lambda: self.ranks.count(started), temporary, stop)
            try:
                with explained_os_errors(temporary):
                    _write_shard(temporary, state, self.ranks.rank, num_shards)
            except FileNotFoundError as error:  # the first rank gave up and removed it
                raise _lost(temporary) from error
            self.ranks.count(written, 1)
            return
        _check_space(self.folder, num_shards, state)
        with commit_folder(target, self.inputs) as temporary:
            self.ranks.count(started, 1)
            _write_shard(temporary, state, 0, num_shards)
            (temporary / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
            self._wait_until(lambda: self.ranks.count(written) == num_shards - 1, temporary, stop)
            self._wait_until(  # a shared disk may show them late
                lambda: len(list(temporary.glob("*.safetensors"))) == 2 * num_shards,
                temporary,
                NEVER,
            )
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
            is_stopping = stop.signal_number is not None
            longest = LONGEST_SHUTDOWN_SECONDS if is_stopping else LONGEST_IDLE_SECONDS
            if now - quiet_since > longest:
                raise _lost(temporary)
            time.sleep(0.01)

    def _superseded(self) -> list[Path]:
        every = self.settings.keep_every_steps
        steps = {path: int(path.name.removeprefix("step-")) for path in self.committed()}
        return [
            path
            for path in list(steps)[: -self.settings.keep_last]
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
                has_changed = not is_up_to_date(path, self.inputs)
                if not has_changed:
                    check_shapes(path, shapes)
                    _read_progress(path)
            except (RunError, SafetensorError, ValueError, LookupError) as error:
                backup = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(backup, ignore_errors=True)
                path.rename(backup)
                self.say(f"Checkpoint {path} is damaged and was moved to {backup.name}: {error}")
            else:
                if has_changed:
                    raise self._changed(path)
                return int(path.name.removeprefix("step-"))
        if found or list(self.folder.glob("damaged-step-*")):
            raise RunError(
                f"No checkpoint in {self.folder} is intact. To start over, remove that folder "
                "or name the stage in --overwrite."
            )
        return 0

    def _changed(self, path: Path) -> RunError:
        changes = "; ".join(changed_settings(path, self.inputs))
        stage = self.inputs.stage.partition(" ")[0]
        return RunError(
            f"{path} was written under another recipe ({changes}), so training cannot resume from "
            f"it. Restore the recipe, give another --run-dir, or restart this stage with "
            f"--overwrite {stage}."
        )


def _in_background(work: Callable[[], None]) -> Future[None]:
    """Run `work` in a daemon thread, which does not keep a failed process alive."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised by `result`
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future


def _lost(temporary: Path) -> TrainingError:
    return TrainingError(
        f"Another rank was lost, or gave up, before {temporary.parent} had its next checkpoint. "
        "Every committed one is kept; run the same command again to resume."
    )


def _size_of(folder: Path) -> int:
    """Bytes of the files in a folder, while other ranks write and rename them."""
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.iterdir())
    return 0


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, target: Path) -> State:
    """A CPU copy of a training's tensors, of sharded ones this rank's rows, to be written to
    `target`.

    Raises:
        ResourceError: out of memory.
    """
    parameters = dict(model.named_parameters())
    try:
        return {
            "model": {name: copied(parameter) for name, parameter in parameters.items()},
            "optimizer": {
                f"{name}/{key}": copied(value)
                for name, parameter in parameters.items()
                for key, value in optimizer.state.get(parameter, {}).items()
            },
        }
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"There is not enough memory for a copy of the training's state, which {target} is "
            "written from. Every earlier checkpoint is kept; add memory, or use a smaller model."
        ) from error


def _write_shard(folder: Path, state: State, number: int, count: int) -> None:
    """Write shard `number` of `count`, each file under a temporary name until complete."""
    for kind, tensors in state.items():
        name = f"{kind}-{number + 1:05d}-of-{count:05d}"
        unfinished = folder / f"{name}.unfinished"
        save_file(tensors, unfinished)
        fsync_path(unfinished)  # here: another machine cannot flush what this one holds
        unfinished.rename(folder / f"{name}.safetensors")


def _check_space(folder: Path, num_shards: int, state: State) -> None:
    needed = num_shards * sum(each.nbytes for kind in state.values() for each in kind.values())
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceError(
            f"The disk is too full for a checkpoint in {folder}: it takes {needed / 1e6:,.0f} MB, "
            f"and {free / 1e6:,.0f} MB are free. Free some space and run the same command again; "
            "a run resumes from its last commit."
        )


def _read_progress(path: Path) -> Progress:
    """Raises ValueError where a value is not what it should be."""
    text = (path / "state.json").read_text(encoding="utf-8")
    progress = TypeAdapter(Progress).validate_json(text, strict=True)
    if progress.step != int(path.name.removeprefix("step-")):
        raise ValueError(f"{path}/state.json holds the state of another step")
    return progress


def check_shapes(folder: Path, shapes: Mapping[str, list[int]]) -> None:
    """Check that a checkpoint belongs to a model whose parameters have these shapes.

    Raises:
        ValueError: it does not.
    """
    with _opened(folder, "model") as tensors:
        if {name: tensors.shape(name) for name in tensors.names} != shapes:
            raise ValueError(f"{folder} holds the parameters of another model")
    with _opened(folder, "optimizer") as tensors:
        keys: dict[str, set[str]] = {}
        for name in tensors.names:
            parameter, _, key = name.rpartition("/")
            keys.setdefault(parameter, set()).add(key)
            if tensors.shape(name) != ([] if key == "step" else shapes.get(parameter)):
                raise ValueError(f"{folder} holds the optimizer's state of another model")
        if not keys.keys() <= shapes.keys() or any(each != ADAMW_STATE for each in keys.values()):
            raise ValueError(f"{folder} holds another optimizer's state")


def restore_weights(folder: Path, model: nn.Module) -> None:
    """Load a model's weights from a checkpoint that `check_shapes` accepts."""
    with torch.no_grad(), _opened(folder, "model") as tensors:
        for name, parameter in model.named_parameters():
            tensors.copy_into(parameter, name)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a model and its optimizer from a checkpoint that `check_shapes` accepts."""
    restore_weights(folder, model)
    parameters = dict(model.named_parameters())
    with torch.no_grad(), _opened(folder, "optimizer") as tensors:
        for full_name in tensors.names:
            name, _, key = full_name.rpartition("/")
            parameter = parameters[name]
            if tensors.shape(full_name):
                value = torch.empty_like(parameter, requires_grad=False)
                tensors.copy_into(value, full_name)
            else:
                value = tensors.rows(full_name).to(parameter.device)
            optimizer.state[parameter][key] = value


@contextmanager
def _opened(folder: Path, kind: str) -> Iterator["_Tensors"]:
    """The tensors of one kind, `model` or `optimizer`."""
    with ExitStack() as stack:
        paths = sorted(folder.glob(f"{kind}-*.safetensors"))
        yield _Tensors([stack.enter_context(safe_open(path, framework="pt")) for path in paths])


@dataclass(frozen=True)
class _Tensors:
    """The tensors of one kind in a checkpoint, over all shards."""

    _files: list[Any]

    @property
    def names(self) -> Iterable[str]:
        return self._files[0].keys()

    def shape(self, name: str) -> list[int]:
        """The shape of the whole tensor."""
        shapes = [file.get_slice(name).get_shape() for file in self._files]
        return [sum(shape[0] for shape in shapes), *shapes[0][1:]] if shapes[0] else []

    def copy_into(self, target: Tensor, name: str) -> None:
        """Fill a tensor, or this rank's rows of a sharded one."""
        if not isinstance(target, DTensor):
            target.copy_(self.rows(name))
            return
        mesh, local = target.device_mesh, target.to_local()
        rows_of_a_rank = -(-target.shape[0] // mesh.size())
        first = min(mesh.get_local_rank() * rows_of_a_rank, target.shape[0])
        local.copy_(self.rows(name, slice(first, first + len(local))))

    def rows(self, name: str, wanted: slice = EVERY_ROW) -> Tensor:
        """Rows of the first axis, by default all; a scalar as it is."""
        slices = [file.get_slice(name) for file in self._files]
        if not slices[0].get_shape():
            return self._files[0].get_tensor(name)
        starts = [0, *itertools.accumulate(piece.get_shape()[0] for piece in slices)]
        first, stop, _ = wanted.indices(starts[-1])
        found = [
            piece[max(first - start, 0) : min(stop, end) - start]
            for piece, (start, end) in zip(slices, itertools.pairwise(starts), strict=True)
            if start < stop and end > first
        ]
        return torch.cat(found or [slices[0][0:0]])


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, of a sharded tensor this rank's rows."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().to("cpu", copy=True).contiguous()
