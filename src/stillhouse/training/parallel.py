"""One model on many ranks: replicated (DDP) or sharded (FSDP2), with sums for gradients.

Every rank runs its own micro-batches. Gradients are summed, not averaged, and once an optimizer
step: each term was divided by its rows in the whole global batch before. A replica's buckets keep
one layout from the first step on, so that training that resumed from a checkpoint adds up in the
same order: DDP rebuilds them after the first backward pass, hence a first pass without rows.
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
from stillhouse.training.ranks import Ranks, lost_ranks_explained


class ModelWithLoss(nn.Module):
    """A model and its objective as one module, so that DDP and FSDP see each forward pass."""

    def __init__(self, model: PreTrainedModel, objective: Any) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, batch: AnyBatch, coefficients: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.objective(self.model, batch, coefficients)


def shard(model_with_loss: ModelWithLoss, ranks: Ranks, device: torch.device) -> None:
    """Shard weights, gradients and optimizer state over the ranks.

    Each layer is gathered when it runs; embeddings and head stay gathered through a pass.
    """
    mesh = shard_layers(model_with_loss.model, ranks, device)
    fully_shard(model_with_loss, mesh=mesh)
    for module in model_with_loss.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def shard_layers(model: PreTrainedModel, ranks: Ranks, device: torch.device) -> DeviceMesh:
    """Shard the layers of a model over the ranks: each is gathered while it runs.

    Embeddings, which the head may share, stay whole on every rank.
    """
    mesh = DeviceMesh(device.type, list(range(ranks.size)))
    for layer in family_of(model.config).layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    return mesh


def replicate(
    model_with_loss: ModelWithLoss, blank: AnyBatch, coefficients: Mapping[str, float]
) -> nn.Module:
    """One replica of a data-parallel model; parameters that no term reaches are frozen.

    Args:
        blank: A micro-batch without rows.
    """
    model_with_loss(blank, coefficients)[0].backward()
    for parameter in model_with_loss.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    replica = DistributedDataParallel(
        model_with_loss, forward_sync_buffers=False, gradient_as_bucket_view=True
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
    """Sum gradients over the ranks only in the last backward pass of a step."""
    with lost_ranks_explained():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)
        if isinstance(module, DistributedDataParallel) and not last:
            with module.no_sync():
                yield
        else:
            yield


def reshard(module: nn.Module) -> None:
    """Free the layers that an interrupted pass has gathered."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether each rank holds a shard of the parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Tensor) -> Tensor:
    """A replicated value as a plain tensor."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def gather_model(model: PreTrainedModel, ranks: Ranks) -> PreTrainedModel:
    """The model with all of its weights. A sharded one is gathered into a new model on the first
    rank's CPU; the other ranks get their own model back."""
    if not is_sharded(model):
        return model
    gathered = type(model)(model.config) if ranks.is_first else None
    with torch.no_grad(), lost_ranks_explained():
        for name, parameter in model.named_parameters():
            value = whole(parameter)
            if gathered is not None:
                gathered.get_parameter(name).copy_(value)
    return gathered or model
