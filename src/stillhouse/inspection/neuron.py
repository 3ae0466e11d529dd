"""One neuron: the contexts that activate it most, and its effect on predictions, by ablation and by
its direct path to the vocabulary.

Axes: B contexts, T positions, N rows, V vocabulary.
"""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from stillhouse import terminal
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inspection.collect import Inspection
from stillhouse.inspection.head import direct_path, log_probabilities
from stillhouse.inspection.text import PackedText, batch_of
from stillhouse.inspection.tokens import extremes, shown, token_texts
from stillhouse.inspection.units import (
    Neuron,
    down_projections,
    fixed_unit,
    num_units,
    observed_units,
    written_by,
)
from stillhouse.tokens.batches import Batch

TOKENS_AFTER = 8  # of a context, shown after its token
TOKENS_BEFORE = 24  # shown on the terminal
PADDING = 0  # the segment of padding


@dataclass(frozen=True)
class Context:
    """The part of a document that a model reads around a position.

    Attributes:
        position: In the text.
        ids: From the beginning of the document in its sequence; of a causal model to a few tokens
            after the position, of a masked one to the end.
        at: The place of the position among them.
    """

    position: int
    ids: Int[Tensor, " T"]
    at: int


def context_at(text: PackedText, position: int) -> Context:
    """The context of a position of the text."""
    sequence, place = divmod(position, text.input_ids.shape[1])
    segments = text.segments[sequence]
    own = (segments == segments[place]).nonzero().squeeze(1)
    start, stop = int(own[0]), int(own[-1]) + 1
    if text.causal:
        stop = min(stop, place + 1 + TOKENS_AFTER)
    return Context(position, text.input_ids[sequence, start:stop], place - start)


def _batch_of(contexts: list[Context], *, causal: bool) -> Batch:
    ids = [context.ids for context in contexts]
    segments = [torch.ones_like(own) for own in ids]
    padded = (
        pad_sequence(each, batch_first=True, padding_value=PADDING) for each in (ids, segments)
    )
    return batch_of(*padded, causal=causal)


@torch.inference_mode()
def describe_neuron(loaded: LoadedModel, inspection: Inspection, neuron: Neuron) -> dict[str, Any]:
    """The statistics, contexts and effects of a neuron.

    Raises:
        RecipeError: the model has no such neuron.
    """
    neuron.check(*num_units(loaded))
    place, statistics = (neuron.layer, neuron.number), inspection.statistics
    positions = statistics.positions[place][statistics.is_context[place]].tolist()
    contexts = [context_at(inspection.text, position) for position in positions]
    mean = float(statistics.mean[place])
    written = written_by(down_projections(loaded)[neuron.layer], neuron.number)
    effects, reason = direct_path(loaded, written)
    direct = {"reason": reason} if effects is None else extremes(loaded, effects)
    return {
        "neuron": str(neuron),
        "layer": neuron.layer,
        "number": neuron.number,
        "tokens": statistics.num_rows,
        "mean": mean,
        "standard_deviation": float(statistics.variance[place].sqrt()),
        "positive": float(statistics.positive[place]),
        **_ablation(loaded, contexts, neuron, mean),
        "direct": direct,
    }


def _ablation(
    loaded: LoadedModel, contexts: list[Context], neuron: Neuron, mean: float
) -> dict[str, Any]:
    """The contexts, and the effect of the neuron on the prediction at each: log-probabilities with
    the neuron minus those with its mean at every position, averaged over contexts."""
    if not contexts:
        return {"contexts": [], "ablation": {"raised": [], "lowered": []}}
    batch = _batch_of(contexts, causal=loaded.family.language_modeling == "causal")
    batch = batch.to(loaded.model.device)
    activations: list[Tensor] = []

    def note(layer: int, found: Tensor) -> None:
        if layer == neuron.layer:
            activations.append(found[:, neuron.number].view(batch.input_ids.shape).cpu())

    with observed_units(loaded, note):
        whole = _predictions(loaded, batch, contexts)
    with fixed_unit(loaded, neuron, mean):
        ablated = _predictions(loaded, batch, contexts)
    changes = whole - ablated
    divergences = (whole.exp() * changes).sum(1)
    return {
        "contexts": [
            {
                "position": context.position,
                "at": context.at,
                "tokens": token_texts(loaded, context.ids.tolist()),
                "activations": [round(each, 4) for each in own[: len(context.ids)].tolist()],
                "kl": round(float(divergence), 6),
                **extremes(loaded, change, 3),
            }
            for context, own, divergence, change in zip(
                contexts, activations[0], divergences, changes, strict=True
            )
        ],
        "ablation": extremes(loaded, changes.mean(0)),
    }


def _predictions(
    loaded: LoadedModel, batch: Batch, contexts: list[Context]
) -> Float[Tensor, "N V"]:
    """Log-probabilities at the place of each context."""
    hidden = loaded.family.run_body(loaded.model, batch)
    places = torch.tensor([context.at for context in contexts], device=hidden.device)
    rows = hidden[torch.arange(len(contexts), device=hidden.device), places]
    return log_probabilities(loaded, rows).cpu()


def print_neuron(found: dict[str, Any]) -> None:
    """Print a neuron on stdout."""
    contexts = [
        [f"{each['activations'][each['at']]:.4g}", f"{each['kl']:.4f}", *_parts(each)]
        for each in found["contexts"]
    ]
    title = (
        f"neuron {found['neuron']} on {found['tokens']:,} tokens: mean {found['mean']:.3g}, "
        f"standard deviation {found['standard_deviation']:.3g}, positive at "
        f"{found['positive']:.1%}"
    )
    terminal.show(
        terminal.table(["activation", "KL", "context", "token"], contexts, title=title),
        _effects("by ablation, in nats", found["ablation"]),
    )
    if "reason" in found["direct"]:
        terminal.show(f"no direct path to the vocabulary: {found['direct']['reason']}")
    else:
        terminal.show(_effects("by the direct path, logits of activation 1", found["direct"]))


def _parts(context: dict[str, Any]) -> list[str]:
    """The end of the text before a context's token, and the token."""
    texts, at = [shown(text) for text in context["tokens"]], context["at"]
    return ["".join(texts[max(0, at - TOKENS_BEFORE) : at])[-40:], texts[at]]


def _effects(title: str, effects: dict[str, Any]) -> Any:
    """A table of the tokens that are raised and lowered."""
    sides = [
        [(shown(text), f"{size:+.4g}") for text, size in effects[side]]
        for side in ("raised", "lowered")
    ]
    rows = [[*one, *other] for one, other in zip_longest(*sides, fillvalue=("", ""))]
    return terminal.table(["raised", "by", "lowered", "by"], rows, title=title)
