"""Checkpoints: the whole state of a training run, committed whole, verified on load.

`checkpoints/MODEL/step-00001000/` holds the weights, the optimizer's state, `state.json` and a
manifest with the size and SHA-256 of each. Sample order, masks and dropout follow from (seed,
step), so there is no generator state to keep. The newest checkpoint that verifies is loaded;
damaged ones are moved aside, and it is said.

Tensors lie in safetensors, one file for each rank that has a part of its own: rows of the first
axis, in the order of the ranks (`model-00002-of-00004.safetensors`). Replicated weights are one
part, which the first rank writes. A checkpoint of any number of parts goes on under any number of
ranks.
"""

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stillhouse.errors import ResourceError, RunError
from stillhouse.run_folder import (
    Inputs,
    changed_settings,
    commit_folder,
    is_up_to_date,
    temporary_path,
    verify,
)
from stillhouse.training.ranks import ALONE, Ranks

LONGEST_SAVE_SECONDS = 1800.0
LONGEST_FAREWELL_SECONDS = 15.0


@dataclass(frozen=True)
class Progress:
    """How far a run is, and what it found out on its way.

    `micro_batch_sequences` is set where memory did not allow as many as were planned.
    `recent_norms` are the gradient's norms at the last steps.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    micro_batch_sequences: int | None = None
    recent_norms: tuple[float, ...] = ()

    def facts(self) -> dict[str, int | float]:
        """What a manifest says of a finished training."""
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
        say: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.folder = folder
        self.inputs = inputs
        self.keep_last = keep_last
        self.keep_every_steps = keep_every_steps
        self.say = say
        self.ranks = ranks
        self._saving: _Saving | None = None
        self._newest = 0
        self._first_process = os.getpid()

    def committed(self) -> list[Path]:
        """Folders of committed checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Commit the state after `progress.step` steps, then remove those beyond what is kept.

        The state is copied; writing goes on beside training, and `finish` waits for it.

        Raises:
            ResourceError: too little disk space, or an earlier save failed for want of it.
        """
        self.wait()
        if progress.step == self._newest:
            return
        self._newest, target = progress.step, self._path(progress.step)
        weights, state = _model_tensors(model), _optimizer_tensors(model, optimizer)
        if not self.ranks.is_first and not _is_sharded(model):
            return
        part = _Part(self.ranks.rank, self.ranks.size) if _is_sharded(model) else _Part(0, 1)
        self._saving = _Saving(lambda: self._write(target, part, weights, state, progress))

    def wait(self) -> None:
        """Wait until this rank has written what it was given; raises what went wrong."""
        if self._saving is not None:
            saving, self._saving = self._saving, None
            saving.result()

    def check(self) -> None:
        """Raise what went wrong with writing, as soon as it did."""
        if self._saving is not None and self._saving.has_failed:
            self.wait()

    def finish(self) -> None:
        """Wait until what was given to `save` is committed, on every rank."""
        if not self.ranks.is_first:
            self.wait()
        self.ranks.from_first(self.wait)

    def abandon(self) -> None:
        """Training failed: give what is being written a moment to be committed still."""
        if self._saving is not None:
            self._saving.join(LONGEST_FAREWELL_SECONDS)

    def load_newest(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
        """Restore the newest intact checkpoint into model and optimizer; None where there is none.

        Raises:
            RunError: the checkpoint was written under another recipe, or none of several is intact.
        """
        names = {name for name, _ in model.named_parameters()}
        self._newest = self.ranks.from_first(lambda: self._newest_intact(names))
        self._first_process = self.ranks.from_first(os.getpid)
        if not self._newest:
            return None
        return _restore(self._path(self._newest), model, optimizer)

    def clear(self) -> None:
        """Remove every checkpoint: the result they led to is committed."""
        if self.ranks.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _write(
        self,
        target: Path,
        part: "_Part",
        weights: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        progress: Progress,
    ) -> None:
        if part.number:  # the first rank makes the folder, and commits what all wrote
            temporary = temporary_path(target, self._first_process)
            _wait_until(temporary.is_dir, str(temporary))
            part.write(temporary, weights, state)
            return
        needed = part.count * sum(
            t.nbytes for t in itertools.chain(weights.values(), state.values())
        )
        _check_space(self.folder, needed)
        with commit_folder(target, self.inputs) as temporary:
            part.write(temporary, weights, state)
            (temporary / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
            _wait_until(lambda: part.all_are_written(temporary), f"all parts of {target}")
        for old in self._superseded():
            shutil.rmtree(old)

    def _superseded(self) -> list[Path]:
        every = self.keep_every_steps
        return [
            path
            for path in self.committed()[: -self.keep_last]
            if every is None or int(path.name.removeprefix("step-")) % every
        ]

    def _newest_intact(self, names: set[str]) -> int:
        """The step of the newest intact checkpoint, or 0; what is damaged is moved aside."""
        found = self.committed()
        for path in reversed(found):
            try:
                verify(path)
                if not is_up_to_date(path, self.inputs):
                    raise _ChangedError(self._changed_message(path))
                _check_content(path, names)
                return int(path.name.removeprefix("step-"))
            except _ChangedError as error:
                raise RunError(str(error)) from None
            except (RunError, SafetensorError, ValueError, KeyError, TypeError) as error:
                aside = path.with_name(f"damaged-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                self.say(f"Checkpoint {path} is damaged and was moved to {aside.name}: {error}")
        if found or list(self.folder.glob("damaged-step-*")):
            raise RunError(
                f"No checkpoint in {self.folder} is intact. To begin again, remove that folder "
                "or name the stage in --overwrite."
            )
        return 0

    def _changed_message(self, path: Path) -> str:
        changes = "; ".join(changed_settings(path, self.inputs))
        return (
            f"{path} was written under another recipe ({changes}), so training cannot go on from "
            "it. "
            "Restore the recipe, give another --run-dir, or begin this stage again with "
            "--overwrite distill "
            "(teacher for a teacher)."
        )


class _ChangedError(Exception):
    """A checkpoint that is intact but of another recipe."""


class _Saving:
    """Work on a thread of its own, and what became of it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # raised where the result is asked for
            self._error = error

    @property
    def has_failed(self) -> bool:
        return self._error is not None

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def result(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


@dataclass(frozen=True)
class _Part:
    """One rank's files of a checkpoint, of so many."""

    number: int
    count: int

    def path(self, folder: Path, kind: str) -> Path:
        return folder / f"{kind}-{self.number + 1:05d}-of-{self.count:05d}.safetensors"

    def write(
        self, folder: Path, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        for kind, tensors in (("model", weights), ("optimizer", state)):
            path = self.path(folder, kind)
            unfinished = path.with_suffix(".unfinished")
            save_file(dict(tensors), unfinished)
            unfinished.rename(path)

    def all_are_written(self, folder: Path) -> bool:
        return len(list(folder.glob("*.safetensors"))) == 2 * self.count


def _wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONGEST_SAVE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise ResourceError(f"Waited {LONGEST_SAVE_SECONDS:.0f} s in vain for {what}.")
        time.sleep(0.01)


def _check_space(folder: Path, needed: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceError(
            f"The disk is too full for a checkpoint in {folder}: it takes {needed / 1e6:,.0f} MB, "
            f"and {free / 1e6:,.0f} MB are free. Free some space and give the same command again; "
            "it goes on from the last commit."
        )


def _own(tensor: Tensor) -> Tensor:
    """A copy in memory of its own on the processor: of a sharded tensor this rank's rows."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().to("cpu", copy=True).contiguous()


def _is_sharded(model: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: _own(parameter) for name, parameter in model.named_parameters()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": _own(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _check_content(path: Path, names: set[str]) -> None:
    """That a verified checkpoint is of this model, and its progress can be read."""
    with _Tensors(path, "model") as tensors:
        if set(tensors.names) != names:
            raise ValueError(f"{path} holds the parameters of another model")
    _read_progress(path)


def _read_progress(path: Path) -> Progress:
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return Progress(**{**state, "recent_norms": tuple(state["recent_norms"])})


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    parameters = dict(model.named_parameters())
    with torch.no_grad(), _Tensors(path, "model") as tensors:
        for name, parameter in parameters.items():
            tensors.copy_into(parameter, name)
    with torch.no_grad(), _Tensors(path, "optimizer") as tensors:
        for full_name in tensors.names:
            name, _, key = full_name.rpartition("/")
            parameter = parameters[name]
            if key == "step":
                on_device = parameter.device.type != "cpu"
                value = tensors.rows(full_name, slice(None))
                value = value.to(parameter.device) if on_device else value
            else:
                value = torch.empty_like(parameter, requires_grad=False)
                tensors.copy_into(value, full_name)
            optimizer.state[parameter][key] = value
    return _read_progress(path)


class _Tensors:
    """The tensors of one kind in a checkpoint, whichever parts they lie in."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._paths = sorted(folder.glob(f"{kind}-*.safetensors"))
        self._stack = ExitStack()
        self._files: list[Any] = []

    def __enter__(self) -> "_Tensors":
        for path in self._paths:
            self._files.append(self._stack.enter_context(safe_open(path, framework="pt")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def names(self) -> Iterable[str]:
        return self._files[0].keys()

    def copy_into(self, target: Tensor, name: str) -> None:
        """Fill a tensor, or this rank's rows of a sharded one."""
        if not isinstance(target, DTensor):
            target.copy_(self.rows(name, slice(None)))
            return
        mesh, local = target.device_mesh, target.to_local()
        rows_of_a_rank = -(-target.shape[0] // mesh.size())
        first = min(mesh.get_local_rank() * rows_of_a_rank, target.shape[0])
        local.copy_(self.rows(name, slice(first, first + len(local))))

    def rows(self, name: str, wanted: slice) -> Tensor:
        """Some rows of the first axis, or all; of a single number the number."""
        slices = [file.get_slice(name) for file in self._files]
        if not slices[0].get_shape():
            return self._files[0].get_tensor(name)
        starts = [0, *itertools.accumulate(piece.get_shape()[0] for piece in slices)]
        first, stop, _ = wanted.indices(starts[-1])
        return torch.cat(
            [
                piece[max(first - start, 0) : min(stop, end) - start]
                for piece, start, end in zip(slices, starts, starts[1:], strict=False)
                if start < stop and end > first
            ]
            or [slices[0][0:0]]
        )
