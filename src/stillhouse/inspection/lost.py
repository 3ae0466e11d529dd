"""Which layers and units of a teacher a student lost.

Of a layer: how much of its hidden states is a linear function of a student layer's. Of a unit: its
correlation with the most similar unit of the student. Both are fitted on the first half of a text
and measured on the second.

Axes: R rows (positions), S and T layers of student and teacher, D and E their hidden sizes, C
neurons of a layer, U all neurons of the student.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.inference.loaded import LoadedModel
from stillhouse.inspection.text import PackedText
from stillhouse.inspection.units import num_units, observed_units
from stillhouse.student.layers import layer_states

RIDGE = 1e-3  # of the variance of a channel
BYTES = 2**30  # of sums of products; of a larger pair of models the text is read several times
UNIT_ROWS = 1_024  # of each half on which units are compared, spread evenly: all are in memory

Tick = Callable[[int], None]  # after each batch, with its tokens


@dataclass(frozen=True)
class Comparison:
    """How much of a teacher is in a student.

    Attributes:
        r2: Held-out R^2 of the map from each student layer to each teacher layer.
        correlations: Of each teacher neuron the held-out correlation with the student's neuron of
            the highest one on the first half, with its sign there; 0 where one is constant.
        nearest: The number of that neuron among all of the student.
        spread: Standard deviations of the teacher's neurons.
    """

    r2: Float[Tensor, "S T"]
    correlations: Float[Tensor, "T C"]
    nearest: Int[Tensor, "T C"]
    spread: Float[Tensor, "T C"]


@torch.inference_mode()
def compare(
    student: LoadedModel, teacher: LoadedModel, text: PackedText, tick: Tick = lambda _: None
) -> Comparison:
    """Compare a student with its teacher on a text that both read in the same tokens."""
    halves = text.halves()
    samples = [[UnitSample(model, half) for half in halves] for model in (student, teacher)]
    r2 = [
        _r2_of(_Readings(student, teacher, halves, layers, [] if number else samples, tick))
        for number, layers in enumerate(_chunks(student, teacher))
    ]
    found = [[sample.activations() for sample in each] for each in samples]
    return Comparison(torch.cat(r2, 1), *_match(*found))


def num_passes(student: LoadedModel, teacher: LoadedModel) -> int:
    """How often both models read the text."""
    return len([*_chunks(student, teacher)])


def _chunks(student: LoadedModel, teacher: LoadedModel) -> Iterator[range]:
    """The teacher's layers, as many at a time as sums of products have room."""
    ours, theirs = student.model.config, teacher.model.config
    size = 8 * ours.num_hidden_layers * ours.hidden_size * theirs.hidden_size
    step = max(1, BYTES // size)
    total = theirs.num_hidden_layers
    return (range(first, min(first + step, total)) for first in range(0, total, step))


class UnitSample:
    """The activations of all neurons at up to `UNIT_ROWS` counted positions, spread evenly."""

    def __init__(self, loaded: LoadedModel, text: PackedText) -> None:
        self._loaded = loaded
        self._step = -(-text.num_counted // UNIT_ROWS)
        self._found: list[list[Tensor]] = [[] for _ in range(num_units(loaded)[0])]
        self._seen = 0

    def observed(self, rows: Int[Tensor, " R"]) -> AbstractContextManager[None]:
        """Within this context the model runs on the next batch, which has these counted rows."""
        own = rows[(-self._seen) % self._step :: self._step].to(self._loaded.model.device)
        self._seen += len(rows)

        def note(layer: int, activations: Float[Tensor, "_ C"]) -> None:
            self._found[layer].append(activations.index_select(0, own).cpu())

        return observed_units(self._loaded, note)

    def activations(self) -> Float[Tensor, "R L C"]:
        return torch.stack([torch.cat(each) for each in self._found], 1)


@dataclass(frozen=True)
class _Readings:
    """What student and teacher make of the halves of a text.

    Attributes:
        layers: Of the teacher.
        samples: Of the units of both, a half each; none where they are known.
    """

    student: LoadedModel
    teacher: LoadedModel
    halves: tuple[PackedText, PackedText]
    layers: range
    samples: list[list[UnitSample]]
    tick: Tick

    def of(self, half: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Of each batch the hidden states after each student layer, and side by side those after
        the teacher layers, at the counted positions."""
        for batch, rows in self.halves[half].batches():
            states = []
            for number, model in enumerate((self.student, self.teacher)):
                with ExitStack() as stack:
                    if self.samples:
                        stack.enter_context(self.samples[number][half].observed(rows))
                    found = layer_states(model.family, model.model, batch)
                own = rows.to(model.model.device)
                states.append([after.flatten(0, 1).index_select(0, own) for _, after in found])
            self.tick(2 * batch.input_ids.numel())
            yield states[0], torch.cat([states[1][layer] for layer in self.layers], 1)


def _r2_of(readings: _Readings) -> Float[Tensor, "S _"]:
    """The held-out R^2 of each pair of layers: the mean over the teacher's channels, so that a few
    channels of huge values do not decide."""
    fits: list[LinearFit] = []
    for ours, theirs in readings.of(0):
        fits = fits or [LinearFit.at(own, theirs) for own in ours]
        for fit, own in zip(fits, ours, strict=True):
            fit.add(own, theirs)
    maps = [fit.solve() for fit in fits]
    scores = [Residuals() for _ in maps]
    for ours, theirs in readings.of(1):
        for each, score, own in zip(maps, scores, ours, strict=True):
            score.add(theirs, each(own))
    num_layers = len(readings.layers)
    return torch.stack([score.r2().view(num_layers, -1).nanmean(1) for score in scores]).cpu()


@dataclass
class LinearFit:
    """Sums of products of which linear ridge regression of Y on X follows, in float64.

    Values are taken from the first batch's mean, so that its size costs no digits; products with Y
    are float32 within a batch.
    """

    x_shift: Float[Tensor, " D"]
    y_shift: Float[Tensor, " E"]
    num_rows: int = 0
    sums: list[Any] = field(default_factory=lambda: [0.0, 0.0, 0.0, 0.0])

    @classmethod
    def at(cls, x: Float[Tensor, "R D"], y: Float[Tensor, "R E"]) -> "LinearFit":
        return cls(x.mean(0), y.mean(0))

    def add(self, x: Float[Tensor, "R D"], y: Float[Tensor, "R E"]) -> None:
        """Add rows."""
        x, y = x - self.x_shift, y - self.y_shift
        wide = x.double()
        new = (wide.sum(0), y.sum(0, dtype=torch.float64), wide.T @ wide, (x.T @ y).double())
        self.num_rows += len(x)
        self.sums = [old + each for old, each in zip(self.sums, new, strict=True)]

    def solve(self) -> Callable[[Float[Tensor, "R D"]], Float[Tensor, "R E"]]:
        """The map that minimizes, with every channel of X divided by its standard deviation,

        mean |y - x W - b|^2 + RIDGE * |W|^2
        """
        x_sum, y_sum, xx, xy = self.sums
        x_mean, y_mean = x_sum / self.num_rows, y_sum / self.num_rows
        covariance = xx / self.num_rows - x_mean[:, None] * x_mean
        with_y = xy / self.num_rows - x_mean[:, None] * y_mean
        scale = covariance.diagonal().clamp_min(0).sqrt()
        inverse = torch.where(scale > 0, 1 / scale, 0.0)  # a constant channel predicts nothing
        covariance = covariance * inverse[:, None] * inverse
        covariance.diagonal().add_(RIDGE)
        weight = inverse[:, None] * torch.linalg.solve(covariance, with_y * inverse[:, None])
        bias = self.y_shift + y_mean - (self.x_shift + x_mean) @ weight
        self.sums = []  # room for the weights of the next layer
        weight, bias = weight.float(), bias.float()
        return lambda x: torch.addmm(bias, x, weight)


@dataclass
class Residuals:
    """Squared errors of predictions, and squared differences from the mean, for each channel."""

    num_rows: int = 0
    shift: Any = None
    sums: list[Any] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def add(self, y: Float[Tensor, "R E"], predicted: Float[Tensor, "R E"]) -> None:
        """Add rows."""
        self.shift = y.mean(0) if self.shift is None else self.shift
        own = y - self.shift
        new = [
            each.sum(0, dtype=torch.float64)
            for each in ((y - predicted).square(), own.square(), own)
        ]
        self.num_rows += len(y)
        self.sums = [old + each for old, each in zip(self.sums, new, strict=True)]

    def r2(self) -> Float[Tensor, " E"]:
        """1 - squared errors / squared differences from the mean; NaN for a constant channel."""
        errors, squares, total = self.sums
        spread = squares - total.square() / self.num_rows
        return torch.where(spread > 0, 1 - errors / spread, torch.nan)


def _match(
    student: list[Float[Tensor, "_ S _"]], teacher: list[Float[Tensor, "_ T C"]]
) -> tuple[Float[Tensor, "T C"], Int[Tensor, "T C"], Float[Tensor, "T C"]]:
    """Correlations, nearest neurons and spreads; see `Comparison`. One pair of layers at a time."""
    (ours, held_ours), (theirs, held_theirs) = (
        [_standardized(half) for half in halves] for halves in (student, teacher)
    )
    num_layers, size = ours.shape[1:]
    correlations, nearest = [], []
    for layer in range(theirs.shape[1]):
        best, sign = (torch.zeros(theirs.shape[2]) for _ in range(2))
        place = torch.zeros_like(best, dtype=torch.long)
        for other in range(num_layers):
            products = theirs[:, layer].T @ ours[:, other] / len(ours)
            value, number = products.abs().max(1)
            better = value > best
            signs = products.gather(1, number[:, None])[:, 0].sign()
            best = torch.where(better, value, best)
            sign = torch.where(better, signs, sign)
            place = torch.where(better, number + other * size, place)
        chosen = held_ours.flatten(1)[:, place]
        correlations.append(sign * (held_theirs[:, layer] * chosen).mean(0))
        nearest.append(place)
    return torch.stack(correlations), torch.stack(nearest), teacher[0].std(0, correction=0)


def _standardized(activations: Float[Tensor, "R L C"]) -> Float[Tensor, "R L C"]:
    """Each neuron with mean 0 and variance 1; zeros for a constant one."""
    centered = activations - activations.mean(0)
    spread = centered.square().mean(0).sqrt()
    # Rounding leaves a constant neuron a tiny spread.
    is_constant = spread <= 1e-6 * activations.abs().amax(0)
    return torch.where(is_constant, 0.0, centered / spread)
