"""Equality of two steps: their losses, their terms, every gradient.

Both run in float32 on the same weights and inputs, without dropout.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks import measure

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
# A key's bias moves no attention weight: its true gradient is zero, and what is found is noise.
SMALLEST_GRADIENT = 1e-2  # of the largest of all parameters


@dataclass(frozen=True)
class Outcome:
    """A weighted loss, each term's mean over its rows, and the gradient of every parameter."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]

    def __add__(self, other: "Outcome") -> "Outcome":
        """The outcome of two micro-batches of one step."""
        return Outcome(
            self.loss + other.loss,
            {name: value + other.terms[name] for name, value in self.terms.items()},
            {name: value + other.gradients[name] for name, value in self.gradients.items()},
        )


@dataclass(frozen=True)
class Equality:
    """Relative errors of our losses and of every gradient against the other's."""

    losses: dict[str, float]
    gradients: dict[str, float]

    def holds(self) -> bool:
        return (
            max(self.losses.values()) <= LOSS_TOLERANCE
            and max(self.gradients.values()) <= GRADIENT_TOLERANCE
        )

    def __str__(self) -> str:
        worst = max(self.gradients, key=self.gradients.__getitem__)
        return (
            f"losses within {max(self.losses.values()):.1e}; {len(self.gradients)} gradients "
            f"within {self.gradients[worst]:.1e} (worst: {worst})"
        )


def equality(found: Outcome, expected: Outcome) -> Equality:
    """Relative errors of an outcome for every entry of the expected one."""
    losses = {"loss": measure.relative_error(found.loss, expected.loss)}
    for name, value in expected.terms.items():
        losses[name] = measure.relative_error(found.terms[name], value)
    largest = max(float(gradient.abs().max()) for gradient in expected.gradients.values())
    floor = SMALLEST_GRADIENT * largest
    gradients = {
        name: measure.relative_error(found.gradients[name], gradient, floor=floor)
        for name, gradient in expected.gradients.items()
    }
    return Equality(losses, gradients)


def outcome_of(model: PreTrainedModel, loss: Tensor, terms: Mapping[str, Tensor]) -> Outcome:
    """The outcome of a loss just computed from the model's parameters."""
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    return Outcome(
        loss.detach(),
        {name: value.detach() for name, value in terms.items()},
        dict(zip(named, gradients, strict=True)),
    )
