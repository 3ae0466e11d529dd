"""Queries, keys and values of one attention layer, caught while a model's body runs.

Axes: B sequences, T positions, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.families.base import Family

NUM_KINDS = 3  # queries, keys, values


class QKVHook:
    """Catches one layer's queries, keys and values, each (B, T, D), while it is open.

    The hooks stay on the layer: a compiled body has those of its first run traced in and sees no
    later ones. So a tap is made before that run, and only what is open catches anything.
    """

    def __init__(self, family: Family, model: PreTrainedModel, layer: int) -> None:
        parent = family.layers_of(model)[layer]
        self._kinds_each = NUM_KINDS // len(family.attention_projections)
        self._caught: list[Tensor] | None = None
        for name in family.attention_projections:
            parent.get_submodule(name).register_forward_hook(self._catch)

    @contextmanager
    def open(self) -> Iterator[list[Tensor]]:
        """A list that a run of the body fills; it is the caller's, and nothing else refers to it
        afterwards."""
        self._caught = []
        try:
            yield self._caught
        finally:
            self._caught = None

    def _catch(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self._caught is not None:
            self._caught.extend(output.chunk(self._kinds_each, dim=-1))
