"""How much a model needs each of its layers, measured on text, and which of them to keep.

Two measures. Block influence: how far a layer turns its input, from one pass over the text. Greedy:
how far the model's predictions move without the layer (`student.greedy`).

Axes: B sequences, T positions, D hidden size, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.student.calibration import Calibration
from stillhouse.student.greedy import drop_greedily
from stillhouse.student.layers import States, layer_states, replaced_layers, without
from stillhouse.student.settings import LayerChoice
from stillhouse.tokens.batches import Batch
from stillhouse.training.device import Precision, pick_precision

ROWS_PER_CHUNK = 1_024


@dataclass(frozen=True)
class LayerImportance:
    """The score of every layer, and which layers are kept.

    Attributes:
        by: What the scores are: `influence`, or `greedy`, the distance from the whole model without
            the layer alone, in nats.
        kept: Layers to keep, in order.
        dropped: The others, the first to be dropped first.
        distances: Of `greedy`: from the whole model after each drop, in nats.
        precision: Of the model as it was scored.
    """

    by: str
    scores: list[float]
    kept: list[int]
    dropped: list[int]
    distances: list[float]
    precision: Precision = "fp32"


def choose_layers(
    choice: LayerChoice, family: Family, model: PreTrainedModel, text: Calibration
) -> LayerImportance:
    """The `choice.layers` layers that matter most on a text."""
    if choice.by != "greedy":
        return most_influential(family, block_influence(family, model, text), choice.layers)
    precision = pick_precision("auto", model.device)
    found = drop_greedily(family, model, text, choice.layers, precision=precision)
    kept = sorted({*range(len(found.scores))} - {*found.dropped})
    return LayerImportance("greedy", found.scores, kept, found.dropped, found.distances, precision)


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
        for layer, (before, after) in enumerate(layer_states(family, model, batch)):
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
    absent = {} if layers is None else without(family, model, layers)
    total, num_rows = 0.0, 0
    with replaced_layers(family, model, absent):
        for batch in text.batches():
            total += _loss(family, model, batch)
            num_rows += batch.num_rows("predicted")
    return total / num_rows


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
