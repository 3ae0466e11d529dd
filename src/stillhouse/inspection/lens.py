"""What the layers of a model make of a text: the predictions of each by the logit lens, and its
attention; a model beside another.

Axes: T positions, L layers, H heads, V vocabulary, D hidden size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse import terminal
from stillhouse.errors import DataError
from stillhouse.families.attention import attention_named
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inspection.head import log_probabilities, modules_after_layers
from stillhouse.inspection.text import batch_of
from stillhouse.inspection.tokens import shown, token_texts
from stillhouse.student.layers import layer_states

MOST_TOKENS = 128  # of a text; attention has a number for every pair of them, in every head
NUM_TOP = 5
Attention = Float[Tensor, "L H T T"]


@dataclass(frozen=True)
class ReadText:
    """A text as a model reads it.

    Attributes:
        ids: With the start of a document before it, or of a masked model with its special tokens.
        targets: The token that each position predicts: the next one, none after the last; of a
            masked model its own.
    """

    ids: Int[Tensor, " T"]
    targets: list[int | None]


def read(loaded: LoadedModel, text: str) -> ReadText:
    """A text's tokens.

    Raises:
        DataError: an empty text, or one that is too long.
    """
    causal = loaded.family.language_modeling == "causal"
    own = loaded.encode(text)
    most = min(MOST_TOKENS, loaded.family.num_positions(loaded.model.config)) - 2
    if not 0 < len(own) <= most:
        raise DataError(
            f"The text has {len(own):,} tokens; give 1 to {most}, since attention has a number for "
            "every pair of tokens in every head."
        )
    if causal:
        ids = [*loaded.prompt_ids(""), *own]
        return ReadText(torch.tensor(ids), [*ids[1:], None])
    ids = loaded.tokenizer(text, add_special_tokens=True)["input_ids"]
    return ReadText(torch.tensor(ids), [*ids])


@torch.inference_mode()
def logit_lens(loaded: LoadedModel, text: ReadText) -> list[Float[Tensor, "T V"]]:
    """The log-probabilities of every layer at every position: its hidden states, through the
    modules after the last layer and the head (nostalgebraist 2020)."""
    ids = text.ids[None].int()
    batch = batch_of(ids, torch.ones_like(ids), causal=_is_causal(loaded))
    after = modules_after_layers(loaded)
    states = layer_states(loaded.family, loaded.model, batch)
    return [log_probabilities(loaded, state[0], after).cpu() for _, state in states]


def _is_causal(loaded: LoadedModel) -> bool:
    return loaded.family.language_modeling == "causal"


@torch.inference_mode()
def attention_of(loaded: LoadedModel, text: ReadText) -> Attention:
    """The weights of every head, from each position (second to last axis) to each (last axis)."""
    body = loaded.model.base_model
    ids = text.ids[None].to(loaded.model.device)
    with attention_named(loaded.model.config, "eager"):
        found = body(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    return torch.stack([each[0].float().cpu() for each in found.attentions])


def head_distances(
    one: Attention, other: Float[Tensor, "K G T T"], *, causal: bool
) -> Float[Tensor, "_ _"]:
    """How differently the heads of two models attend: the Jensen-Shannon divergence of their
    weights, in bits, averaged over positions (Clark et al. 2019, section 6). 0 for equal heads, at
    most 1.

    Args:
        causal: The first position, which sees itself alone, is left out.
    """
    first = 1 if causal else 0
    ours, theirs = (each[:, :, first:].flatten(0, 1).double() for each in (one, other))
    rows = []
    for head in ours:
        middle = (head + theirs) / 2
        divergences = (_relative(head.expand_as(middle), middle) + _relative(theirs, middle)) / 2
        rows.append(divergences.mean(1))
    return torch.stack(rows)


def _relative(p: Tensor, q: Tensor) -> Tensor:
    """sum of p * log2(p / q) over the last axis, 0 where p is 0."""
    return torch.xlogy(p, p / q.clamp_min(torch.finfo(q.dtype).tiny)).sum(-1) / torch.log(
        torch.tensor(2.0, dtype=p.dtype)
    )


def inspect_text(loaded: LoadedModel, text: str) -> dict[str, Any]:
    """The logit lens of a text, layer by layer, as plain values.

    Each layer has `loss`, the mean of -log p of the targets, `kl`, that of the last layer's
    distribution from its own, both in nats, `agreement`, the share of positions with the last
    layer's most likely token, and at each position the most likely tokens as [text, probability].
    """
    own = read(loaded, text)
    lens = logit_lens(loaded, own)
    known = torch.tensor([target is not None for target in own.targets])
    targets = torch.tensor([target for target in own.targets if target is not None])
    layers = []
    for number, found in enumerate(lens):
        best = found.topk(NUM_TOP, dim=1)
        losses = -found[known].gather(1, targets[:, None])
        divergence = (lens[-1].exp() * (lens[-1] - found)).sum(1)
        layers.append(
            {
                "layer": number,
                "loss": float(losses.mean()),
                "kl": float(divergence.mean()),
                "agreement": float((best.indices[:, 0] == lens[-1].argmax(1)).double().mean()),
                "top": [
                    [
                        [word, round(probability, 4)]
                        for word, probability in zip(
                            token_texts(loaded, ids), logs.exp().tolist(), strict=True
                        )
                    ]
                    for ids, logs in zip(best.indices.tolist(), best.values, strict=True)
                ],
            }
        )
    return {"tokens": token_texts(loaded, own.ids.tolist()), "layers": layers}


def compare_attention(loaded: LoadedModel, other: LoadedModel, text: str) -> list[dict[str, Any]]:
    """For each layer of `other`, how near the heads of the model come to its own: of each head the
    nearest of all layers, as [layer, head, distance]."""
    one, theirs = (attention_of(each, read(each, text)) for each in (loaded, other))
    heads, own_heads = theirs.shape[1], one.shape[1]
    nearest = head_distances(theirs, one, causal=_is_causal(loaded)).min(1)
    found = [
        [place // own_heads, place % own_heads, round(distance, 4)]
        for place, distance in zip(nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    ]
    return [
        {
            "layer": layer,
            "distance": sum(each[2] for each in own) / heads,
            "nearest": own,
        }
        for layer in range(len(theirs))
        for own in [found[layer * heads : (layer + 1) * heads]]
    ]


def inspect_pair(loaded: LoadedModel, other: LoadedModel | None, text: str) -> dict[str, Any]:
    """The logit lens and the attention of a model, and of another beside it.

    Raises:
        DataError: a text of no tokens or too many, or models that split it into other tokens.
    """
    found: dict[str, Any] = {"text": text, "model": inspect_text(loaded, text)}
    found["model"]["attention"] = _rounded(attention_of(loaded, read(loaded, text)))
    if other is None:
        return found
    if not torch.equal(read(loaded, text).ids, read(other, text).ids):
        raise DataError(
            "The two models split the text into other tokens, so their attention cannot be "
            "compared. Inspect one at a time."
        )
    found["beside"] = inspect_text(other, text)
    found["beside"]["attention"] = _rounded(attention_of(other, read(other, text)))
    found["heads"] = compare_attention(loaded, other, text)
    return found


def _rounded(weights: Attention) -> list[Any]:
    """Weights as nested lists [layer][head][from][to], of four decimals."""
    return [
        [[[round(each, 4) for each in row] for row in head] for head in layer]
        for layer in weights.tolist()
    ]


def print_text(found: dict[str, Any], names: list[str]) -> None:
    """Print the layers of one model, or of two, on stdout."""
    for name, key in zip(names, ("model", "beside"), strict=False):
        own = found[key]
        rows = [
            [
                str(row["layer"]),
                f"{row['loss']:.3f}",
                f"{row['kl']:.3f}",
                f"{row['agreement']:.0%}",
                " ".join(shown(word) for word, _ in row["top"][-1][:NUM_TOP]),
            ]
            for row in own["layers"]
        ]
        columns = ["layer", "loss", "KL", "agreement", "most likely after the text"]
        title = f"{name}: logit lens of {len(own['tokens'])} tokens"
        terminal.show(terminal.table(columns, rows, title=title))
    if "heads" in found:
        rows = [
            [
                str(row["layer"]),
                f"{row['distance']:.3f}",
                " ".join(f"{layer}.{head}" for layer, head, _ in row["nearest"]),
            ]
            for row in found["heads"]
        ]
        title = f"heads of {names[1]}, and the nearest of {names[0]}, in bits"
        terminal.show(
            terminal.table(["layer", "distance", "nearest"], rows, title=title, wrap=True)
        )
