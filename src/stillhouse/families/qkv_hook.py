"""Queries, keys and values of one attention layer, captured in a forward pass.

Axes: B sequences, T positions, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.families.base import Family

NUM_TENSORS = 3  # queries, keys, values


class QKVHook:
    """Captures one layer's queries, keys and values, each (B, T, D), while it is open.

    The hooks stay on the layer: a compiled body traces the hooks of its first run and ignores later
    ones. Create the hook before that run.
    """

    def __init__(self, family: Family, model: PreTrainedModel, layer: int) -> None:
        parent = family.layers_of(model)[layer]
        self._tensors_per_module = NUM_TENSORS // len(family.attention_projections)
        self._captured: list[Tensor] | None = None
        for name in family.attention_projections:
            parent.get_submodule(name).register_forward_hook(self._capture)

    @contextmanager
    def open(self) -> Iterator[list[Tensor]]:
        """A list that a forward pass fills; the hook keeps no reference to it afterwards."""
        self._captured = []
        try:
            yield self._captured
        finally:
            self._captured = None

    def _capture(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._captured is not None:
            self._captured.extend(output.chunk(self._tensors_per_module, dim=-1))
