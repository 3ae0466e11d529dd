"""Sampling: from a row of logits to the next token.

The candidates and their probabilities are a pure function of the logits, the settings and the
tokens so far; the choice also depends on the seed, the sequence and the position. So a text does
not depend on the other sequences of a batch, nor on the order of events.

The settings apply in the order of transformers, and keep the same tokens (tests compare them).

Axes: V vocabulary, C candidates, K candidates that remain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.inference.generation import Generation


@dataclass(frozen=True)
class Candidates:
    """Candidates for the next token, by ascending id, and their probabilities, which sum to one."""

    ids: Int[Tensor, " C"]
    probabilities: Float[Tensor, " C"]

    def draw(self, uniform: float) -> int:
        """The token at a quantile, from 0 to 1, of the cumulative distribution."""
        cumulative = self.probabilities.cumsum(0)
        place = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
        return int(self.ids[place.clamp(max=len(self.ids) - 1)])


def candidates(
    logits: Float[Tensor, " V"], settings: Generation, so_far: Sequence[int]
) -> Candidates:
    """The candidates after these tokens; probabilities are float64."""
    if settings.greedy:
        best = penalized(logits, settings, so_far).numpy().argmax()  # 20 times faster than torch
        return Candidates(torch.tensor([best]), torch.ones(1, dtype=torch.float64))
    scores = penalized(logits, settings, so_far)
    # Relative to the maximum, so that a tiny temperature leaves one candidate, not none.
    scores = (scores - scores.max()) / max(settings.temperature, torch.finfo(torch.float32).tiny)
    ids = None
    if 0 < settings.top_k < len(scores):
        scores, ids = scores.topk(settings.top_k)
    probabilities = scores.double().softmax(0)
    kept = _kept(probabilities, settings)
    if kept is not None:
        probabilities = probabilities[kept] / probabilities[kept].sum()
        ids = kept if ids is None else ids[kept]
    if ids is None:
        return Candidates(torch.arange(len(scores)), probabilities)
    ids, order = ids.sort()
    return Candidates(ids, probabilities[order])


def _kept(probabilities: Float[Tensor, " C"], settings: Generation) -> Int[Tensor, " K"] | None:
    """The candidates that top_p, min_p and typical_p keep; None for all of them."""
    kept = None
    if settings.top_p < 1:
        # Tokens below this threshold have less than 1 - top_p together, so need no sorting.
        threshold = (1 - settings.top_p) / len(probabilities)
        kept = (probabilities >= threshold).nonzero().flatten()
        order = probabilities[kept].argsort(descending=True, stable=True)
        kept = _until(kept[order], probabilities, settings.top_p)
    if settings.min_p > 0:
        left = probabilities if kept is None else probabilities[kept]
        likely = left >= settings.min_p * left.max()
        kept = likely.nonzero().flatten() if kept is None else kept[likely]
    if settings.typical_p < 1:
        left = probabilities if kept is None else probabilities[kept]
        left = left / left.sum()
        surprise = -left.log()
        expected = torch.special.entr(left).sum()
        order = (surprise - expected).abs().argsort(stable=True)
        chosen = _until(order, left, settings.typical_p)
        kept = chosen if kept is None else kept[chosen]
    return kept


def _until(
    order: Int[Tensor, " K"], probabilities: Float[Tensor, " C"], mass: float
) -> Int[Tensor, " L"]:
    """The first of these that together have this probability, at least one."""
    ordered = probabilities[order]
    before = ordered.cumsum(0) - ordered
    return order[before < mass]


def penalized(
    logits: Float[Tensor, " V"], settings: Generation, so_far: Sequence[int]
) -> Float[Tensor, " V"]:
    """The logits in float32, with the repetition penalty for tokens in the text."""
    scores = logits.float()
    if settings.repetition_penalty == 1 or not so_far:
        return scores
    seen = torch.tensor(sorted(set(so_far)), device=scores.device)
    old = scores[seen]
    penalty = settings.repetition_penalty
    return scores.index_copy(0, seen, torch.where(old > 0, old / penalty, old * penalty))


def uniform_at(seed: int, sequence: int, place: int, purpose: int = 0) -> float:
    """A random number in [0, 1) that depends only on these four values (Philox, a counter-based
    generator; Salmon et al. 2011)."""
    key, counter = (
        np.array(each, np.uint64) for each in ((seed, sequence), (0, place, purpose, 0))
    )
    bits = np.random.Philox(key=key, counter=counter)
    return float(np.random.Generator(bits).random())


def next_token(
    logits: Float[Tensor, " V"],
    settings: Generation,
    so_far: Sequence[int],
    at: tuple[int, int, int],
) -> int:
    """The next token.

    Args:
        at: The seed, the number of the sequence among those of its prompt, and the number of the
            new token; they determine the random number.
    """
    found = candidates(logits, settings, so_far)
    return int(found.ids[0]) if len(found.ids) == 1 else found.draw(uniform_at(*at))
