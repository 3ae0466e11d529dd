"""Statistics of all neurons of a model over a text, from one pass in bounded memory.

Of each neuron: mean, variance, how often it is positive, and the contexts of its strongest
activations, those of the largest absolute value (a gated neuron fires in both directions). A
context is the number of a position in the text.

The strongest activations are kept as 64-bit keys whose order is that of strength, and at equal
strength that of the text, so that what is kept does not depend on how the text is cut into batches:

    bits of |activation| as float32 (31) | 2^31 - 1 - position (31) | 1 if it is negative (1)

Axes: L layers, C neurons of a layer, K contexts of a neuron, R rows (positions).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.errors import ModelError

NUM_CONTEXTS = 10
EMPTY = -1  # the key of no context; those of contexts are positive
LAST_POSITION = 2**31 - 1
ROWS_PER_CHUNK = 128  # on a CPU, to stay within its caches


class UnitStatistics:
    """The statistics so far.

    Attributes:
        num_rows: Positions that were added.
    """

    def __init__(self, num_layers: int, num_units: int, device: torch.device) -> None:
        shape = (num_layers, num_units)
        self.num_rows = 0
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros_like(self.sums)
        self.positives = torch.zeros(shape, dtype=torch.int64, device=device)
        self.keys = torch.full((*shape, NUM_CONTEXTS), EMPTY, dtype=torch.int64, device=device)

    def add(
        self, layer: int, activations: Float[Tensor, "R C"], positions: Int[Tensor, " R"]
    ) -> None:
        """Add the activations of one layer at some positions; `num_rows` is the caller's to add.

        Raises:
            ModelError: an activation is NaN or infinite.
        """
        activations = activations.float()
        strongest = activations.abs().amax(0)
        if not strongest.isfinite().all():
            raise ModelError(
                f"Layer {layer} of the model has activations that are NaN or infinite."
            )
        for part in activations.split(ROWS_PER_CHUNK if activations.is_cpu else len(activations)):
            wide = part.double()
            ones = wide.new_ones(len(wide))  # sums as products: a tenth of the time
            self.sums[layer] += ones @ wide
            self.positives[layer] += (ones @ (part > 0).double()).long()
            self.squares[layer] += ones @ wide.square_()
        # Later positions replace those of a smaller value only: few neurons after some batches.
        (chosen,) = (_bits(strongest) > self.keys[layer, :, -1] >> 32).nonzero(as_tuple=True)
        if len(chosen):
            new = _keys(activations.index_select(1, chosen).T.contiguous(), positions)
            best = new.topk(min(NUM_CONTEXTS, new.shape[1]), dim=1).values
            merged = torch.cat([self.keys[layer, chosen], best], 1)
            self.keys[layer, chosen] = merged.topk(NUM_CONTEXTS, dim=1).values

    @property
    def mean(self) -> Float[Tensor, "L C"]:
        return self.sums / self.num_rows

    @property
    def variance(self) -> Float[Tensor, "L C"]:
        """Of the positions themselves: divided by their number."""
        return (self.squares / self.num_rows - self.mean.square()).clamp_min(0)

    @property
    def positive(self) -> Float[Tensor, "L C"]:
        """The share of positions where a neuron is above 0."""
        return self.positives.double() / self.num_rows

    @property
    def values(self) -> Float[Tensor, "L C K"]:
        """The strongest activations, in order; 0 where there are fewer."""
        size = (self.keys.clamp_min(0) >> 32).int().view(torch.float32)
        return torch.where((self.keys & 1).bool(), -size, size)

    @property
    def positions(self) -> Int[Tensor, "L C K"]:
        """Their positions; see `is_context`."""
        return LAST_POSITION - (self.keys >> 1 & LAST_POSITION)

    @property
    def is_context(self) -> Bool[Tensor, "L C K"]:
        """Whether there is a context, at which the neuron is not 0."""
        return self.keys >> 32 > 0

    def tensors(self) -> dict[str, Tensor]:
        """The state, on the CPU, as it is saved."""
        names = ("sums", "squares", "positives", "keys")
        found = {name: getattr(self, name).cpu() for name in names}
        return found | {"num_rows": torch.tensor(self.num_rows)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], device: torch.device) -> "UnitStatistics":
        """The state that was saved."""
        num_layers, num_units = tensors["sums"].shape
        found = cls(num_layers, num_units, device)
        for name in ("sums", "squares", "positives", "keys"):
            setattr(found, name, tensors[name].to(device))
        found.num_rows = int(tensors["num_rows"])
        return found


def _bits(size: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    """The bits of numbers from 0 on, whose order is that of the numbers (IEEE 754)."""
    return size.view(torch.int32).long()


def _keys(activations: Float[Tensor, "C R"], positions: Int[Tensor, " R"]) -> Int[Tensor, "C R"]:
    keys = _bits(activations.abs()) << 32
    keys += (LAST_POSITION - positions) << 1
    return keys.add_(activations < 0)
