"""Comparisons of our step with another implementation, and the one with the step of 2019."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from benchmarks import measure, reference_2019, sentences
from benchmarks.equality import Equality, Outcome, equality
from benchmarks.ours import (
    Losses,
    Models,
    Pair,
    build_batch,
    build_models,
    classic_losses,
    our_outcome,
)
from stillhouse.section import Rows
from stillhouse.tokens.batches import Batch
from stillhouse.training.device import Precision


class Comparison(Protocol):
    """Two implementations of a step on the same weights and tokens; picklable for fresh processes.

    `references` are the other's steps and their precision; ratios refer to each of them.
    """

    @property
    def title(self) -> str: ...

    @property
    def pair(self) -> Pair: ...

    @property
    def rows(self) -> Rows: ...

    @property
    def seed(self) -> int: ...

    @property
    def references(self) -> Mapping[str, Precision]: ...

    @property
    def losses(self) -> Losses:
        """The losses that our step minimizes: the same as the other's."""
        ...

    def batch(self) -> Batch:
        """The batch of our step."""
        ...

    def reference_outcomes(self, models: Models) -> dict[str, Outcome]:
        """Outcomes of the other's float32 steps, in our terms."""
        ...

    def reference_step(self, name: str, models: Models) -> measure.Step:
        """One complete training step of the other implementation."""
        ...


def compare(comparison: Comparison) -> dict[str, Equality]:
    """Our outcome and each of the reference's, in float32 and without dropout."""
    models = build_models(comparison.pair, comparison.seed)
    ours = our_outcome(models, comparison.batch(), comparison.losses)
    references = comparison.reference_outcomes(models)
    return {name: equality(ours, outcome) for name, outcome in references.items()}


@dataclass(frozen=True)
class Against2019:
    """Sequences grouped by length as in 2019, with almost no padding."""

    pair: Pair
    rows: Rows
    seed: int

    @property
    def title(self) -> str:
        return f"{self.pair.name} against 2019"

    @property
    def references(self) -> Mapping[str, Precision]:
        return {"2019": "fp32"}

    @property
    def losses(self) -> Losses:
        return classic_losses(self.rows)

    def batch(self) -> Batch:
        return build_batch(self.pair, self.seed)

    def reference_outcomes(self, models: Models) -> dict[str, Outcome]:
        batches = [reference_2019.PaddedBatch.of(self.batch())]
        return {"2019": _outcome_of_2019(models, batches, self.rows)}

    def reference_step(self, name: str, models: Models) -> measure.Step:
        batches = [reference_2019.PaddedBatch.of(self.batch())]
        return _step_of_2019(models, batches, self.rows)


@dataclass(frozen=True)
class Against2019OnSentences:
    """Real sentences of mixed length: ours packs them, 2019 pads micro-batches of them.

    `2019` uses its default: micro-batches of five sentences of about the same length.
    `2019-ungrouped` takes eight at a time in order, and pads them to the longest.
    """

    pair: Pair
    rows: Rows
    seed: int
    source: sentences.Source

    @functools.cached_property
    def drawn(self) -> sentences.Drawn:
        return sentences.draw(self.source, self.seed)

    @property
    def title(self) -> str:
        """The title states the share of padding."""
        masks = {"ours": [self.batch().rows("all")]} | {
            name: [batch.rows("all") for batch in batches]
            for name, batches in self._micro_batches().items()
        }
        shares = ", ".join(f"{name} {_padding(found):.0%}" for name, found in masks.items())
        return f"{self.pair.name} against 2019, {len(self.drawn.all)} sentences (padding: {shares})"

    @property
    def references(self) -> Mapping[str, Precision]:
        return {"2019": "fp32", "2019-ungrouped": "fp32"}

    @property
    def losses(self) -> Losses:
        return classic_losses(self.rows)

    def batch(self) -> Batch:
        return sentences.packed(self.drawn.all, self.pair.length)

    def _micro_batches(self) -> dict[str, list[reference_2019.PaddedBatch]]:
        groups = {"2019": self.drawn.grouped, "2019-ungrouped": self.drawn.ungrouped}
        return {
            name: [sentences.padded(group) for group in batches] for name, batches in groups.items()
        }

    def reference_outcomes(self, models: Models) -> dict[str, Outcome]:
        return {
            name: _outcome_of_2019(models, batches, self.rows)
            for name, batches in self._micro_batches().items()
        }

    def reference_step(self, name: str, models: Models) -> measure.Step:
        return _step_of_2019(models, self._micro_batches()[name], self.rows)


def _padding(masks: Sequence[Tensor]) -> float:
    """The share of positions that are padding."""
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def _outcome_of_2019(
    models: Models, batches: Sequence[reference_2019.PaddedBatch], rows: Rows
) -> Outcome:
    return reference_2019.reference_outcome(models.student, models.teacher, batches, rows)


def _step_of_2019(
    models: Models, batches: Sequence[reference_2019.PaddedBatch], rows: Rows
) -> measure.Step:
    models.student.train()
    optimizer = reference_2019.reference_optimizer(models.student)
    return functools.partial(
        reference_2019.reference_step, models.student, models.teacher, batches, rows, optimizer
    )
