"""Layers that a model can do without, dropped one by one: each time the one whose absence moves the
model's predictions least.

The distance of a model without some layers from the whole one is, with p the predictions of the
whole one and q the others, in nats:

    mean KL(p || q) over text
    + mean KL(p || q) over tokens that need a long context
    + mean KL(p || q) over random tokens that are repeated

The second are the key tokens of LongPPL (Fang et al. 2024, section 3), here with shorter contexts:
tokens that the whole model finds likely, and far more likely than with the last few tokens alone.
The third can only be known by copying (induction, Olsson et al. 2022). In a mean over all text both
hardly count, but a model that has lost the layers which copy from its context fails at them.

Axes: B sequences, T positions, K kinds of rows, R rows that are scored, D features.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from stillhouse.families.base import Family
from stillhouse.student.calibration import Calibration
from stillhouse.student.layers import always, layer_states, replaced_layers, without
from stillhouse.tokens.batches import IGNORED, Batch
from stillhouse.training.device import Precision, autocast

SHORT_CONTEXT = 32  # tokens, itself included; at least half of them
GAIN, LIKELY = 1.0, -2.0  # in nats: log p with all context less that with a short one; and log p
EVERY = 8  # of all rows one in eight is scored
REPEATED = (16, 64)  # sequences, and random tokens of each that are repeated once
TRIED = 8  # layers that are tried for each drop after the first
ROWS_PER_CHUNK = 512


@dataclass(frozen=True)
class GreedyDrops:
    """The layers that were dropped.

    Attributes:
        scores: Of every layer: the distance of the model without it alone, in nats.
        dropped: In order.
        distances: After each drop.
    """

    scores: list[float]
    dropped: list[int]
    distances: list[float]


@dataclass(frozen=True)
class _Scored:
    """The rows of a batch that are scored, with what the whole model's head reads there; `kinds`
    says of each whether it is of text, needs a long context, is a repeated token."""

    batch: Batch
    rows: Int[Tensor, " R"]
    kinds: Bool[Tensor, "K R"]
    features: Float[Tensor, "R D"]


@torch.inference_mode()
def drop_greedily(
    family: Family,
    model: PreTrainedModel,
    text: Calibration,
    num_layers: int,
    *,
    precision: Precision = "fp32",
) -> GreedyDrops:
    """Drop layers until `num_layers` are left.

    For the first drop every layer is tried, for each further one those that were among the best
    `TRIED` when they were last tried.
    """
    with autocast(model.device, precision):
        return _drop(family, model, text, num_layers)


def _drop(
    family: Family, model: PreTrainedModel, text: Calibration, num_layers: int
) -> GreedyDrops:
    """The same, in the precision of this context."""
    scored = [_scored_text(family, model, batch) for batch in text.batches()]
    if scored[0].batch.causal:
        tokens = torch.cat([own.batch.input_ids[own.batch.rows("all")] for own in scored])
        repeated = repeated_tokens(tokens, family.num_positions(model.config))
        rows = repeated.row_numbers("predicted")
        kinds = torch.tensor([[False], [False], [True]]).expand(3, len(rows))
        hidden = family.run_body(model, repeated)
        scored.append(_with_features(family, model, repeated, kinds, rows, hidden))
    kept = [*range(len(family.layers_of(model)))]
    scores = _distances(family, model, scored, kept, kept)
    known = dict(enumerate(scores))
    if family.first_layer_differs:
        del known[0]
    tried, dropped, distances = [*known], [], []
    while len(kept) > num_layers:
        least = min(tried, key=known.__getitem__)
        dropped.append(least)
        distances.append(known.pop(least))
        kept.remove(least)
        if len(kept) > num_layers:
            tried = sorted(sorted(known, key=known.__getitem__)[:TRIED])
            known |= zip(tried, _distances(family, model, scored, kept, tried), strict=True)
    return GreedyDrops(scores, dropped, distances)


def num_passes(num_layers: int, num_kept: int) -> tuple[float, float]:
    """How many times the layers, and the head, of the whole model run over the text: layers from
    the missing one on, half of them on average, and the head for the rows that are scored, of both
    models. Once, for the rows, the layers run twice and the head for half of each."""
    tried = [num_layers, *(min(TRIED, left) for left in range(num_layers - 1, num_kept, -1))]
    return 2 + len(tried) + sum(tried) / 2, 1 + 2 * sum(tried) / EVERY


def _distances(
    family: Family,
    model: PreTrainedModel,
    scored: Sequence[_Scored],
    kept: Collection[int],
    tried: Sequence[int],
) -> list[float]:
    """The distance of a model of the kept layers without each of those that are tried, in their
    order.

    Layers before the missing one compute what they always do, so only those after it run.
    """
    absent = without(family, model, kept)
    sums = torch.zeros(len(tried), 3, dtype=torch.float64)
    for own in scored:
        with replaced_layers(family, model, absent):
            states = [before for before, _ in layer_states(family, model, own.batch)]
        for place, missing in enumerate(tried):
            known = dict.fromkeys(range(missing + 1), partial(always, states[missing]))
            with replaced_layers(family, model, {**absent, **known}):
                sums[place] += _divergences(family, model, own)
    counts = torch.stack([own.kinds.sum(1) for own in scored]).sum(0)
    return (sums / counts.clamp_min(1)).sum(1).tolist()


def _divergences(family: Family, model: PreTrainedModel, own: _Scored) -> Float[Tensor, " K"]:
    """The sum of KL(whole || model as it is) over each kind of rows."""
    head, total = family.head(model), torch.zeros(len(own.kinds), dtype=torch.float64)
    hidden = family.run_body(model, own.batch).flatten(0, 1).index_select(0, own.rows)
    for part in torch.arange(len(hidden)).split(ROWS_PER_CHUNK):
        p, q = (
            head.logits(features).float().log_softmax(-1)
            for features in (own.features[part], head.transform(hidden[part]))
        )
        kl = F.kl_div(q, p, log_target=True, reduction="none").sum(-1).double().cpu()
        total += own.kinds[:, part].double() @ kl
    return total


def _scored_text(family: Family, model: PreTrainedModel, batch: Batch) -> _Scored:
    """The rows of a batch of text that are scored."""
    here = batch.to(model.device)
    hidden, every = family.run_body(model, here), batch.row_numbers("predicted")
    kinds = torch.zeros(3, batch.labels.numel(), dtype=torch.bool)
    kinds[0, every[:: EVERY if batch.causal else 1]] = True
    kinds[1] = long_context_rows(family, model, here, hidden.flatten(0, 1)).flatten().cpu()
    rows = kinds.any(0).nonzero().squeeze(1)
    return _with_features(family, model, here, kinds[:, rows], rows, hidden)


def _with_features(
    family: Family,
    model: PreTrainedModel,
    batch: Batch,
    kinds: Bool[Tensor, "K R"],
    rows: Int[Tensor, " R"],
    hidden: Float[Tensor, "B T _"],
) -> _Scored:
    rows = rows.to(hidden.device)
    features = family.head(model).transform(hidden.flatten(0, 1)[rows])
    return _Scored(batch, rows, kinds, features)


def repeated_tokens(tokens: Int[Tensor, " N"], num_positions: int) -> Batch:
    """Sequences of random tokens of a text, each repeated once; those of the second time are
    predicted, but for the first.

    Args:
        num_positions: The longest sequence of the model.
    """
    number, length = REPEATED[0], min(REPEATED[1], num_positions // 2)
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(tokens), (number, length), generator=generator)
    ids = tokens[places.to(tokens.device)].repeat(1, 2)
    labels = torch.full_like(ids, IGNORED)
    labels[:, length:-1] = ids[:, length + 1 :]
    positions = torch.arange(2 * length, device=ids.device).expand_as(ids)
    return Batch(ids, labels, torch.ones_like(ids), positions, causal=True, uniform=True)


def long_context_rows(
    family: Family, model: PreTrainedModel, batch: Batch, hidden: Float[Tensor, "N D"]
) -> Bool[Tensor, "B T"]:
    """Where the next token needs a long context; nowhere for a masked model.

    With p the model's probability of the token with all its context, and s that with the last
    `SHORT_CONTEXT` / 2 to `SHORT_CONTEXT` tokens alone: log p - log s > `GAIN`, and log p >
    `LIKELY`. One pass gives s for half of the positions; the others are not looked at.

    Args:
        hidden: Last hidden states of the batch.
    """
    places = batch.position_ids % SHORT_CONTEXT
    has_more = (batch.position_ids >= SHORT_CONTEXT) & (places >= SHORT_CONTEXT // 2)
    found = has_more & batch.rows("predicted") & batch.causal
    rows = found.flatten().nonzero().squeeze(1)
    if not len(rows):
        return found
    real = batch.segment_ids > 0
    pieces = (real & (places == 0)).cumsum(1) * real
    short = replace(batch, segment_ids=pieces, position_ids=places, uniform=False)
    cut_off = family.run_body(model, short).flatten(0, 1)
    labels = batch.labels.flatten()[rows]
    log_p, log_s = (
        _log_likelihoods(family, model, each[rows], labels) for each in (hidden, cut_off)
    )
    found.view(-1)[rows] = (log_p - log_s > GAIN) & (log_p > LIKELY)
    return found


def _log_likelihoods(
    family: Family,
    model: PreTrainedModel,
    hidden: Float[Tensor, "R D"],
    labels: Int[Tensor, " R"],
) -> Float[Tensor, " R"]:
    """The log-probability of each label, in nats."""
    head, parts = (
        family.head(model),
        zip(hidden.split(ROWS_PER_CHUNK), labels.split(ROWS_PER_CHUNK), strict=True),
    )
    losses = [
        F.cross_entropy(head.logits(head.transform(own)).float(), these, reduction="none")
        for own, these in parts
    ]
    return -torch.cat(losses)
