"""Mixtures: how often the parts of a text, such as its languages, are drawn in training.

Part i of n_i tokens is drawn in proportion to its weight, or to a power of its size:

    p_i = n_i^exponent / sum over j of n_j^exponent    (Lample and Conneau 2019, section 3.1)

At exponent 1 parts have the shares of the text, at 0 equal ones. No part loses text: an epoch has
the part that is drawn least for its size once, and each part

    r_i = (p_i / n_i) / min over j of (p_j / n_j)

times. Of s_i sequences, round(r_i * s_i) are drawn: all of them equally often, and a random choice
of them once more, which follows from (seed, epoch).
"""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.data.settings import MixtureRecipe
from stillhouse.runs.manifest import facts_of
from stillhouse.tokens.batches import Batch, SequenceSource, sample_key
from stillhouse.tokens.packing import ranges_of


def repeats_of(sizes: Mapping[str, int], mixture: MixtureRecipe | None) -> dict[str, float]:
    """How often an epoch has each part of a text, r_i, at least once.

    Args:
        sizes: Of each part, above 0, such as its tokens.
        mixture: By default each part is drawn as often as it occurs.
    """
    rates = dict.fromkeys(sizes, 1.0)
    if mixture is not None and mixture.weights is not None:
        rates = {name: mixture.weights[name] / size for name, size in sizes.items()}
    elif mixture is not None and mixture.exponent is not None:
        power = mixture.exponent - 1
        rates = {name: float(size) ** power for name, size in sizes.items()}
    lowest = min(rates.values())
    return {name: rate / lowest for name, rate in rates.items()}


def drawn_parts(
    sizes: Mapping[str, int], mixture: MixtureRecipe | None
) -> dict[str, dict[str, Any]]:
    """Of each part its tokens, how often an epoch has it, and its share of what an epoch has."""
    repeats = repeats_of(sizes, mixture)
    total = sum(repeats[name] * size for name, size in sizes.items())
    return {
        name: {"tokens": size, "repeats": repeats[name], "share": repeats[name] * size / total}
        for name, size in sizes.items()
    }


def mean_repeats(parts: Mapping[str, Mapping[str, Any]]) -> float:
    """How often an epoch has a token of the text on average; `parts` as of `drawn_parts`."""
    if not parts:
        return 1.0
    drawn = sum(own["repeats"] * own["tokens"] for own in parts.values())
    return drawn / sum(own["tokens"] for own in parts.values())


class MixedSequences:
    """A source, each of whose epochs has the sequences of a part as often as a mixture says."""

    def __init__(self, source: SequenceSource, repeats: Mapping[str, float]) -> None:
        assert source.parts.keys() == repeats.keys()
        self.source = source
        parts = source.parts
        self._first = np.array([own.start for own in parts.values()])
        self._own = np.array([len(own) for own in parts.values()])
        wanted = np.array([repeats[name] for name in parts]) * self._own
        self._bounds = np.cumsum([0, *np.rint(wanted).astype(np.int64)])
        self._rounds = int((-(-np.diff(self._bounds) // self._own)).max())

    @property
    def num_sequences(self) -> int:
        """The number of sequences that an epoch draws."""
        return int(self._bounds[-1])

    @property
    def sequence_length(self) -> int:
        return self.source.sequence_length

    @property
    def parts(self) -> dict[str, range]:
        return ranges_of(self.source.parts, self._bounds)

    def batch(self, sequences: np.ndarray, epochs: np.ndarray, seed: int) -> Batch:
        """The drawn sequences as a batch; each time that an epoch repeats one, its masks differ."""
        return self.source.batch(*self.drawn(sequences, epochs, seed), seed)

    def drawn(
        self, sequences: np.ndarray, epochs: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The source's own sequences that the numbers of an epoch stand for, and a number that is
        another one for each epoch and each time that it repeats a sequence; both as `sequences`."""
        parts = np.searchsorted(self._bounds, sequences, side="right") - 1
        rounds, places = np.divmod(sequences - self._bounds[parts], self._own[parts])
        whole, more = np.divmod(np.diff(self._bounds), self._own)
        sizes, numbers = tuple(self._own.tolist()), tuple(more.tolist())
        for row in np.flatnonzero(rounds == whole[parts]).tolist():
            chosen = _choices(seed, int(epochs[row]), sizes, numbers)
            places[row] = chosen[parts[row]][places[row]]
        return self._first[parts] + places, epochs * self._rounds + rounds


@lru_cache(maxsize=2)  # a step is of one epoch, or of two
def _choices(
    seed: int, epoch: int, sizes: tuple[int, ...], numbers: tuple[int, ...]
) -> list[np.ndarray]:
    """Of each part the sequences that an epoch repeats once more than the others."""
    chosen = []
    for part, (size, number) in enumerate(zip(sizes, numbers, strict=True)):
        key = sample_key(seed, epoch, 2**64 - 2 - part)  # not that of the epoch's order
        generator = np.random.Generator(np.random.Philox(key=key))
        chosen.append(generator.permutation(size)[:number])
    return chosen


def as_drawn(source: SequenceSource, tokens_folder: Path) -> SequenceSource:
    """The sequences of the training split as the mixture of a run draws them; of a text without
    parts each once."""
    parts = facts_of(tokens_folder).get("parts")
    if parts is None:
        return source
    return MixedSequences(source, {name: own["repeats"] for name, own in parts.items()})
