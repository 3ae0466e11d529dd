"""How much a model needs each of its layers, measured on text, and which of them to keep.

Two measures, both in float32. Block influence: how far a layer turns its input, from one pass over
the text. Greedy: the loss without the layer, from about half a pass for each layer and drop.

Axes: B sequences, T positions, D hidden size, R rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.student.calibration import Calibration
from stillhouse.student.settings import LayerChoice
from stillhouse.tokens.batches import Batch

ROWS_PER_CHUNK = 1_024

States = Float[Tensor, "B T D"]


@dataclass(frozen=True)
class LayerImportance:
    """The score of every layer, and which layers are kept.

    Attributes:
        by: What the scores are: `influence`, or `greedy`, the rise of the loss without the layer
            alone, in nats per token.
        kept: Layers to keep, in order.
        dropped: The others, the first to be dropped first.
        losses: Of `greedy`, in nats per token: the whole model's, then the loss after each drop.
    """

    by: str
    scores: list[float]
    kept: list[int]
    dropped: list[int]
    losses: list[float]


def choose_layers(
    choice: LayerChoice, family: Family, model: PreTrainedModel, text: Calibration
) -> LayerImportance:
    """The `choice.layers` layers that matter most on a text."""
    if choice.by == "greedy":
        return _choose_greedily(family, model, text, choice.layers)
    return most_influential(family, block_influence(family, model, text), choice.layers)


def most_influential(family: Family, scores: Sequence[float], num_layers: int) -> LayerImportance:
    """The `num_layers` layers of the highest block influence."""
    fixed = 1 if family.first_layer_differs else 0  # layers that cannot be dropped
    order = sorted(range(len(scores)), key=lambda layer: (layer < fixed, scores[layer]))
    dropped = order[: len(scores) - num_layers]
    kept = sorted(set(order) - set(dropped))
    return LayerImportance("influence", [*scores], kept, dropped, [])


@torch.inference_mode()
def block_influence(family: Family, model: PreTrainedModel, text: Calibration) -> list[float]:
    """How far each layer turns the hidden states (Men et al. 2024, ShortGPT, section 3.1).

    With h_l the hidden states before layer l, over all positions that are not padding:

        1 - mean of cosine(h_l, h_(l+1))

    which is 0 for a layer that only scales its input.
    """
    layers = family.layers_of(model)
    sums, num_rows = [0.0] * len(layers), 0
    for batch in text.batches():
        rows = batch.row_numbers("all").to(model.device)
        num_rows += len(rows)
        for layer, (before, after) in enumerate(_layer_states(family, model, batch)):
            one, other = (_rows_of(states, rows) for states in (before, after))
            cosine = F.cosine_similarity(one, other, dim=-1)
            sums[layer] += float((1 - cosine).sum())
    return [total / num_rows for total in sums]


def _rows_of(states: States, rows: Tensor) -> Float[Tensor, "R D"]:
    return states.flatten(0, 1).index_select(0, rows).double()


@torch.inference_mode()
def loss_on(
    family: Family,
    model: PreTrainedModel,
    text: Calibration,
    *,
    layers: Sequence[int] | None = None,
) -> float:
    """The mean loss over the predicted tokens, in nats, with these layers alone if given."""
    absent = _all_but(family, model, layers)
    with replaced_layers(family, model, dict.fromkeys(absent, _unchanged)):
        return _mean_loss(family, model, text, lambda batch: [_loss(family, model, batch)])[0]


@torch.inference_mode()
def _choose_greedily(
    family: Family, model: PreTrainedModel, text: Calibration, num_layers: int
) -> LayerImportance:
    """Drop the layer whose absence raises the loss least, until `num_layers` are left."""
    kept = list(range(len(family.layers_of(model))))
    losses, dropped = [loss_on(family, model, text)], []
    without = _losses_without_each(family, model, text, kept)
    scores = [loss - losses[0] for loss in without]
    while len(kept) > num_layers:
        if dropped:
            without = _losses_without_each(family, model, text, kept)
        first = 1 if family.first_layer_differs else 0  # the first that can be dropped
        least = min(range(first, len(kept)), key=lambda place: without[place])
        losses.append(without[least])
        dropped.append(kept.pop(least))
    return LayerImportance("greedy", scores, kept, dropped, losses)


def _losses_without_each(
    family: Family, model: PreTrainedModel, text: Calibration, kept: Sequence[int]
) -> list[float]:
    """The loss of a model of the kept layers without each of these, in their order.

    Layers before the missing one compute what they always do, so only those after it run.
    """
    absent = dict.fromkeys(_all_but(family, model, kept), _unchanged)

    def losses(batch: Batch) -> list[float]:
        found = []
        with replaced_layers(family, model, absent):
            states = [before for before, _ in _layer_states(family, model, batch)]
        for missing in kept:
            known = dict.fromkeys(range(missing + 1), partial(_always, states[missing]))
            with replaced_layers(family, model, {**absent, **known}):
                found.append(_loss(family, model, batch))
        return found

    return _mean_loss(family, model, text, losses)


def _all_but(family: Family, model: PreTrainedModel, kept: Sequence[int] | None) -> list[int]:
    every = range(len(family.layers_of(model)))
    return [] if kept is None else sorted(set(every) - set(kept))


def _mean_loss(
    family: Family,
    model: PreTrainedModel,
    text: Calibration,
    sums: Callable[[Batch], Sequence[float]],
) -> list[float]:
    """Sums of each batch over all of them, divided by the number of predicted tokens."""
    totals: list[float] = []
    num_rows = 0
    for batch in text.batches():
        found = sums(batch)
        totals = [a + b for a, b in zip(totals or [0.0] * len(found), found, strict=True)]
        num_rows += batch.num_rows("predicted")
    return [total / num_rows for total in totals]


def _loss(family: Family, model: PreTrainedModel, batch: Batch) -> float:
    """The sum of -log p over the predicted tokens of a batch, in nats."""
    rows = batch.row_numbers("predicted")
    hidden = family.run_body(model, batch.to(model.device)).flatten(0, 1)
    head, total = family.head(model), 0.0
    labels = batch.labels.flatten()
    for own in rows.split(ROWS_PER_CHUNK):
        logits = head.logits(head.transform(hidden[own.to(hidden.device)])).float()
        total += float(F.cross_entropy(logits, labels[own].to(logits.device), reduction="sum"))
    return total


def _layer_states(
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


def _unchanged(hidden_states: States, *_: Any, **__: Any) -> States:
    return hidden_states


def _always(states: States, *_: Any, **__: Any) -> States:
    return states


def _in_tuple(
    length: int, function: Callable[..., Tensor], *args: Any, **named: Any
) -> tuple[Tensor | None, ...]:
    return (function(*args, **named), *[None] * (length - 1))


@contextmanager
def replaced_layers(
    family: Family, model: PreTrainedModel, by: Mapping[int, Callable[..., Tensor]]
) -> Iterator[None]:
    """Within this context some layers compute functions of their input instead."""
    layers = family.layers_of(model)
    with ExitStack() as stack:
        for layer, function in by.items():
            length = family.layer_outputs
            layers[layer].forward = partial(_in_tuple, length, function) if length else function
            stack.callback(delattr, layers[layer], "forward")
        yield
