"""A layer's position-wise modules, computed for selected rows only.

After attention a layer treats each position separately. If few rows of the last layer are read, as
in masked language modeling, only they need these modules: three quarters of the layer's FLOPs.

Axes: B sequences, T positions, N rows that are read.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor, nn


@contextmanager
def compute_only_rows(
    modules: Iterable[nn.Module], numbers: Int[Tensor, " N"], shape: torch.Size
) -> Iterator[None]:
    """Within this context the modules compute these of the B * T rows, and zeros for the others.

    Args:
        modules: Position-wise modules from (B, T, *) to (B, T, *).
        shape: (B, T).
    """

    def select(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.flatten(0, 1).index_select(0, numbers) for each in arguments)

    def spread(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = output.new_zeros(shape.numel(), output.shape[-1])
        return rows.index_copy(0, numbers, output).unflatten(0, shape)

    hooks = []
    for module in modules:
        hooks += [module.register_forward_pre_hook(select), module.register_forward_hook(spread)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
