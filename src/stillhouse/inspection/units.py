"""The units of a model: the neurons of its feed-forward parts, which are what the last projection
of such a part reads. In a gated feed-forward part a neuron is the product of gate and value.

Axes: B sequences, T positions, R rows, C neurons of a layer, D hidden size.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.errors import ModelError, RecipeError
from stillhouse.inference.load import load
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.task_model import TaskModel
from stillhouse.student.axes import feed_forward_axes, input_dim, readers, sizes_of
from stillhouse.training.device import pick_device

OnLayer = Callable[[int, Float[Tensor, "R C"]], None]  # the number of the layer, its activations


@dataclass(frozen=True)
class Neuron:
    """One neuron, both numbers from 0."""

    layer: int
    number: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.number}"

    @classmethod
    def parse(cls, text: str) -> "Neuron":
        """A neuron from LAYER.NUMBER.

        Raises:
            RecipeError: other text.
        """
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", text)
        if found is None:
            raise RecipeError(
                f"--neuron is {text!r:.80}; give the layer and the neuron, both counted from 0, "
                "such as 12.345."
            )
        return cls(int(found[1]), int(found[2]))

    def check(self, num_layers: int, num_neurons: int) -> None:
        """Refuse a neuron that a model does not have.

        Raises:
            RecipeError: it does not.
        """
        if self.layer >= num_layers or self.number >= num_neurons:
            raise RecipeError(
                f"There is no neuron {self}: the model has layers 0 to {num_layers - 1}, each with "
                f"neurons 0 to {num_neurons - 1:,}."
            )


def load_language_model(name: str, *, offline: bool) -> LoadedModel:
    """A language model in float32 on the chosen device.

    Raises:
        ModelError: no such model, or the model of a task, which predicts no tokens.
    """
    loaded = load(name, offline=offline, device=pick_device())
    if isinstance(loaded, TaskModel):
        raise ModelError(
            f"{name} is a model for {loaded.pipeline_task}; it predicts no tokens. Give a language "
            "model."
        )
    return loaded


def num_units(loaded: LoadedModel) -> tuple[int, int]:
    """Layers, and neurons of a layer."""
    config = loaded.model.config
    return config.num_hidden_layers, sizes_of(config).feed_forward


def down_projections(loaded: LoadedModel) -> list[nn.Module]:
    """Of each layer, the projection that reads its neurons."""
    layers = loaded.family.layers_of(loaded.model)
    (name,) = readers(layers[0], feed_forward_axes(loaded.model.config))
    return [layer.get_submodule(name) for layer in layers]


def written_by(projection: Any, number: int) -> Float[Tensor, " D"]:
    """What a neuron of activation 1 adds to the hidden states: its row or column of the
    projection."""
    return projection.weight.select(input_dim(projection), number)


def norms_written_by(projection: Any) -> Float[Tensor, " C"]:
    """The norm of what each neuron of activation 1 adds."""
    return projection.weight.norm(dim=1 - input_dim(projection))


@contextmanager
def observed_units(loaded: LoadedModel, on_layer: OnLayer) -> Iterator[None]:
    """Within this context every layer that runs gives its activations, one row per position."""

    def note(_: nn.Module, args: tuple[Tensor, ...], *, layer: int) -> None:
        on_layer(layer, args[0].flatten(0, -2))

    with ExitStack() as hooks:
        for layer, projection in enumerate(down_projections(loaded)):
            hooks.enter_context(projection.register_forward_pre_hook(partial(note, layer=layer)))
        yield


@contextmanager
def fixed_unit(loaded: LoadedModel, neuron: Neuron, value: float) -> Iterator[None]:
    """Within this context a neuron has this activation at every position."""

    def fix(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = args[0].clone()
        states[..., neuron.number] = value
        return (states, *args[1:])

    with down_projections(loaded)[neuron.layer].register_forward_pre_hook(fix):
        yield
