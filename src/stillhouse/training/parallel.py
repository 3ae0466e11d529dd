"""One model on many ranks: replicated (DDP) or sharded (FSDP2), with sums for gradients.

Every rank runs its own micro-batches. Gradients are summed, not averaged, and once an optimizer
step: each term was divided by its rows in the whole global batch before. A replica's buckets keep
one layout from the first step on, so that training that went on from a checkpoint adds up in the
same order: DDP lays them out anew after the first backward pass, hence a pass without rows ahead.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from stillhouse.families.registry import family_of
from stillhouse.tokens.batches import AnyBatch
from stillhouse.training.parts import is_sharded
from stillhouse.training.ranks import Ranks, lost_ranks_explained


class ModelWithLoss(nn.Module):
    """A model and its objective as one module, so that what wraps it sees each forward pass."""

    def __init__(self, model: PreTrainedModel, objective: Any) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, batch: AnyBatch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(self.model, batch, coefficients)


def shard(lesson: ModelWithLoss, ranks: Ranks, device: torch.device) -> None:
    """Split weights, gradients and optimizer state of the lesson's model over the ranks.

    Each layer is gathered when it runs; embeddings and head stay gathered through a pass.
    """
    mesh = DeviceMesh(device.type, list(range(ranks.size)))
    family = family_of(lesson.model.config)
    for layer in family.layers_of(lesson.model):
        fully_shard(layer, mesh=mesh)
    fully_shard(lesson, mesh=mesh)
    for module in lesson.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def shard_teacher(model: PreTrainedModel, ranks: Ranks, device: torch.device) -> None:
    """Split a frozen model over the ranks: each layer is gathered while it runs.

    Its embeddings, which its head shares, stay whole on every rank.
    """
    mesh = DeviceMesh(device.type, list(range(ranks.size)))
    for layer in family_of(model.config).layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)


def replicate(
    lesson: ModelWithLoss, blank: AnyBatch, coefficients: Mapping[str, float]
) -> nn.Module:
    """The lesson as one of the ranks' replicas; parameters that no term reaches stop learning.

    Args:
        blank: A micro-batch without rows.
    """
    lesson(blank, coefficients)[0].backward()
    for parameter in lesson.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    replica = DistributedDataParallel(
        lesson, forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    replica.register_comm_hook(None, _sum)
    replica(blank, coefficients)[0].backward()
    replica.zero_grad(set_to_none=True)
    return replica


def _sum(
    _: object,
    bucket: dist.GradBucket,  # pyright: ignore[reportPrivateImportUsage]
) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


@contextmanager
def communicating(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Within, a backward pass sums gradients over the ranks only where it is the step's last."""
    with lost_ranks_explained():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
        else:
            yield


def reshard(module: nn.Module) -> None:
    """Give back what a pass that was broken off has gathered."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def whole(value: Tensor) -> Tensor:
    """A value that is the same on all ranks as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_model(model: PreTrainedModel, ranks: Ranks) -> PreTrainedModel:
    """The model with all of its weights: where they were sharded a new one, on the first rank's
    processor alone; the other ranks get back what they have."""
    if not is_sharded(model):
        return model
    gathered = type(model)(model.config) if ranks.is_first else None
    with torch.no_grad(), lost_ranks_explained():
        for name, parameter in model.named_parameters():
            value = whole(parameter)
            if gathered is not None:
                gathered.get_parameter(name).copy_(value)
    return gathered or model
