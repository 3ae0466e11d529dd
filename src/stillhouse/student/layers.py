"""A model without some of its layers, or with other functions in their place.

Axes: B sequences, T positions, D hidden size.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.tokens.batches import Batch

States = Float[Tensor, "B T D"]
Replacements = Mapping[int, Callable[..., Tensor]]  # by the number of the layer


def layer_states(
    family: Family, model: PreTrainedModel, batch: Batch
) -> list[tuple[States, States]]:
    """The hidden states before and after each layer."""
    found: list[tuple[States, States]] = []

    def note(layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        after = output[0] if family.layer_outputs else output
        found.append((args[0] if args else named["hidden_states"], after))

    with ExitStack() as hooks:
        for layer in family.layers_of(model):
            hooks.enter_context(layer.register_forward_hook(note, with_kwargs=True))
        family.run_body(model, batch.to(model.device))
    return found


def unchanged(hidden_states: States, *_: Any, **__: Any) -> States:
    return hidden_states


def always(states: States, *_: Any, **__: Any) -> States:
    return states


def _in_tuple(
    length: int, function: Callable[..., Tensor], *args: Any, **named: Any
) -> tuple[Tensor | None, ...]:
    return (function(*args, **named), *[None] * (length - 1))


@contextmanager
def replaced_layers(family: Family, model: PreTrainedModel, by: Replacements) -> Iterator[None]:
    """Within this context some layers compute functions of their input instead."""
    layers = family.layers_of(model)
    with ExitStack() as stack:
        for layer, function in by.items():
            length = family.layer_outputs
            layers[layer].forward = partial(_in_tuple, length, function) if length else function
            stack.callback(delattr, layers[layer], "forward")
        yield


def without(family: Family, model: PreTrainedModel, kept: Collection[int]) -> Replacements:
    """Replacements that leave these layers alone."""
    absent = set(range(len(family.layers_of(model)))) - set(kept)
    return dict.fromkeys(absent, unchanged)
