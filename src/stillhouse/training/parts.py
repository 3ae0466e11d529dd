"""The files of a checkpoint: safetensors in shards, one per rank whose rows are its own.

A shard holds rows of every tensor's first axis, in the order of the ranks. Each rank writes its own
rows, and reads the rows that it needs from whichever files hold them.
"""

import itertools
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from stillhouse.runs.atomic import fsync_path

EVERY_ROW = slice(None)
ADAMW_STATE = {"step", "exp_avg", "exp_avg_sq"}  # of each parameter that has had a gradient


@dataclass(frozen=True)
class State:
    """A CPU copy of a training's tensors; of sharded ones this rank's rows."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> "State":
        parameters = dict(model.named_parameters())
        return cls(
            {name: _copied(parameter) for name, parameter in parameters.items()},
            {
                f"{name}/{key}": _copied(value)
                for name, parameter in parameters.items()
                for key, value in optimizer.state.get(parameter, {}).items()
            },
        )

    @property
    def size_bytes(self) -> int:
        tensors = itertools.chain(self.weights.values(), self.optimizer.values())
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class ShardFiles:
    """One rank's files of a checkpoint, shard `number` of `count`."""

    number: int
    count: int

    def write(self, folder: Path, state: State) -> None:
        """Write weights and optimizer state, each file under a temporary name until complete."""
        for kind, tensors in (("model", state.weights), ("optimizer", state.optimizer)):
            name = f"{kind}-{self.number + 1:05d}-of-{self.count:05d}"
            unfinished = folder / f"{name}.unfinished"
            save_file(dict(tensors), unfinished)
            fsync_path(unfinished)  # here: another machine cannot flush what this one holds
            unfinished.rename(folder / f"{name}.safetensors")

    def all_are_written(self, folder: Path) -> bool:
        return len(list(folder.glob("*.safetensors"))) == 2 * self.count


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a shard of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def check_shapes(folder: Path, shapes: Mapping[str, list[int]]) -> None:
    """Check that a checkpoint belongs to a model whose parameters have these shapes.

    Raises:
        ValueError: it does not.
    """
    with Tensors(folder, "model") as tensors:
        if {name: tensors.shape(name) for name in tensors.names} != shapes:
            raise ValueError(f"{folder} holds the parameters of another model")
    with Tensors(folder, "optimizer") as tensors:
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
    with torch.no_grad(), Tensors(folder, "model") as tensors:
        for name, parameter in model.named_parameters():
            tensors.copy_into(parameter, name)


def restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load a model and its optimizer from a checkpoint that `check_shapes` accepts."""
    restore_weights(folder, model)
    parameters = dict(model.named_parameters())
    with torch.no_grad(), Tensors(folder, "optimizer") as tensors:
        for full_name in tensors.names:
            name, _, key = full_name.rpartition("/")
            parameter = parameters[name]
            if tensors.shape(full_name):
                value = torch.empty_like(parameter, requires_grad=False)
                tensors.copy_into(value, full_name)
            else:
                value = tensors.rows(full_name).to(parameter.device)
            optimizer.state[parameter][key] = value


class Tensors:
    """The tensors of one kind (model or optimizer) in a checkpoint, over all shards."""

    def __init__(self, folder: Path, kind: str) -> None:
        self._paths = sorted(folder.glob(f"{kind}-*.safetensors"))
        self._stack = ExitStack()
        self._files: list[Any] = []

    def __enter__(self) -> "Tensors":
        for path in self._paths:
            self._files.append(self._stack.enter_context(safe_open(path, framework="pt")))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

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


def _copied(tensor: Tensor) -> Tensor:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().to("cpu", copy=True).contiguous()
