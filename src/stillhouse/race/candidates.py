"""The candidates of a budget: students of one size and of different shapes.

A shape is a number of layers, a feed-forward width, and heads or a hidden size where the family's
can be cut. Sizes are counted on the meta device; no weights are read.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers import PretrainedConfig

from stillhouse import units
from stillhouse.errors import RecipeError
from stillhouse.models.load import count_parameters, empty_model
from stillhouse.objectives.relation import check_relation
from stillhouse.objectives.settings import RelationRecipe
from stillhouse.race.speed import DecodingTimes
from stillhouse.student.axes import Sizes, heads_divide_hidden_size, sizes_of
from stillhouse.student.plan import StudentPlan, plan_student
from stillhouse.student.settings import BudgetRecipe, StudentRecipe
from stillhouse.student.width import narrow_config

TOLERANCE = 0.02  # a candidate has at most the budget's parameters, and at least 98 % of them
SPEED_TOLERANCE = 0.05  # of the seconds of a token; measured ones vary by as much
# Of the teacher's: what is narrower still loses more than what is less deep.
SMALLEST_FEED_FORWARD, SMALLEST_HEADS = 1 / 4, 1 / 2
HIDDEN_SIZES = (7 / 8, 3 / 4)
MOST_MULTIPLE, STEPS = 64, 64  # a feed-forward width is a multiple of at most 1/64 of it

Item = TypeVar("Item")


@dataclass(frozen=True)
class Candidate:
    """A student of a budget, as a recipe without one, and its number of parameters."""

    recipe: StudentRecipe
    plan: StudentPlan
    num_parameters: int

    @property
    def shape(self) -> dict[str, int]:
        """Its layers and widths."""
        sizes = sizes_of(self.plan.narrow)
        return {
            "layers": len(self.plan.layer_map),
            "feed_forward_size": sizes.feed_forward,
            "num_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "hidden_size": sizes.hidden,
        }

    @property
    def name(self) -> str:
        """Such as 24-layers-1024-channels-6-3-heads, which is also the name of its folder; a hidden
        size that was cut follows."""
        layers, channels, heads, kv_heads, _ = self.shape.values()
        shared = "" if heads == kv_heads else f"-{kv_heads}"
        hidden = "" if self.recipe.hidden_size is None else f"-{self.recipe.hidden_size}-hidden"
        return f"{layers}-layers-{channels}-channels-{heads}{shared}-heads{hidden}"


def parameter_limit(budget: BudgetRecipe, teacher: PretrainedConfig) -> int:
    """The most parameters of a student, whose weights have the teacher's precision."""
    if budget.parameters is not None:
        return budget.parameters
    assert budget.memory is not None
    stored: Any = teacher.dtype or torch.float32
    return budget.memory // stored.itemsize


@dataclass(frozen=True)
class Limit:
    """What a budget allows.

    Attributes:
        most: Of what `costs` counts: parameters, or seconds of a decoded token.
        costs: Of some students.
        tolerance: Candidates have at least 1 - tolerance of `most`.
    """

    most: float
    costs: Callable[[Sequence[PretrainedConfig]], Sequence[float]]
    tolerance: float
    times: DecodingTimes | None = None

    @classmethod
    def of(
        cls, budget: BudgetRecipe, teacher: PretrainedConfig, times: DecodingTimes | None
    ) -> "Limit":
        if budget.tokens_per_second is None:
            return cls(float(parameter_limit(budget, teacher)), _parameters_of, TOLERANCE)
        assert times is not None
        return cls(1 / budget.tokens_per_second, times.of, SPEED_TOLERANCE, times)

    def refusal(self, least: float, largest: float) -> str:
        """Why no student of the teacher has this size, of those from `least` to `largest`."""
        if self.times is None:
            than = f"the embeddings and one narrow layer have {units.count(round(least))}"
            if self.most >= largest:
                than = f"all layers of the teacher have {units.count(round(largest))} already"
            return (
                f"student.budget allows {units.count(round(self.most))} parameters, but {than}. "
                f"Give {round(least):,} to {round(largest) - 1:,} parameters, or their memory."
            )
        than = f"one narrow layer decodes {1 / least:,.1f}"
        if self.most >= largest:
            than = f"the teacher decodes {1 / largest:,.1f} already"
        return (
            f"student.budget asks for {1 / self.most:,.1f} tokens/s, but {than} "
            f"{self.measured_as}. Give {_up(1 / largest)} to {_down(1 / least)}."
        )

    def nearest(self, sizes: Sequence[float]) -> str:
        """Why no candidate is near enough, of students that are within the limit."""
        if self.times is None:
            return (
                f"student.budget allows {round(self.most):,} parameters, but no student of this "
                f"teacher has that many or up to {TOLERANCE:.0%} fewer. Give "
                f"{round(max(sizes)):,}."
            )
        return (
            f"student.budget asks for {1 / self.most:,.1f} tokens/s, but no student of this "
            f"teacher is that fast or up to {SPEED_TOLERANCE:.0%} faster {self.measured_as}. Give "
            f"{_down(1 / max(sizes))}."
        )

    @property
    def measured_as(self) -> str:
        assert self.times is not None
        return f"(measured now in {self.times.precision}, one sequence)"


def _parameters_of(configs: Sequence[PretrainedConfig]) -> list[float]:
    return [float(count_parameters(empty_model(config))[0]) for config in configs]


def _up(speed: float) -> str:
    return f"{math.ceil(10 * speed) / 10:,.1f}"


def _down(speed: float) -> str:
    rounded = math.floor(10 * speed) / 10
    return f"{rounded:,.1f}" if rounded else f"{speed:.1g}"


def plan_candidates(
    teacher: PretrainedConfig,
    recipe: StudentRecipe,
    relation: RelationRecipe | None = None,
    times: DecodingTimes | None = None,
) -> list[Candidate]:
    """The candidates of the recipe's budget, evenly spread over all shapes of its size.

    Args:
        relation: The relation term that they are distilled with: shapes that cannot have it are
            left out.
        times: Of decoding, where the budget is a speed; what is not known yet is measured.

    Raises:
        RecipeError: no student of the teacher has this size, or none of them the relation term.
    """
    budget = recipe.budget
    assert budget is not None
    limit = Limit.of(budget, teacher, times)
    plain = recipe.model_copy(update={"budget": None})
    kinds = [_Growth.of(teacher, own, limit) for own in _narrower(teacher, plain)]
    largest = kinds[0].size(teacher.num_hidden_layers, kinds[0].most_channels)
    smallest = min(kind.size(1, kind.fewest_channels) for kind in kinds)
    if not smallest <= limit.most < largest:
        raise RecipeError(limit.refusal(smallest, largest))
    shapes = [shape for kind in kinds for shape in kind.shapes(limit.most)]
    least = (1 - limit.tolerance) * limit.most
    fitting = [own for own, size in shapes if size >= least]
    if fitting:
        fitting = _with_relation(teacher, fitting, relation)
    found = [candidate_of(teacher, own) for own in spread(fitting, budget.race.candidates)]
    if limit.times is None:
        found = [own for own in found if least <= own.num_parameters <= limit.most]
    if not found:
        raise RecipeError(limit.nearest([size for _, size in shapes]))
    return found


def _with_relation(
    teacher: PretrainedConfig, shapes: Sequence[StudentRecipe], relation: RelationRecipe | None
) -> list[StudentRecipe]:
    """The shapes that can have the relation term."""
    found, refusals = [], []
    for own in shapes:
        try:
            check_relation(relation, plan_student(teacher, own).config, teacher)
            found.append(own)
        except RecipeError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def spread(items: Sequence[Item], number: int) -> list[Item]:
    """At most `number` of the items in order, evenly spread, the first and the last among them; of
    one, that in the middle."""
    if number >= len(items):
        return [*items]
    last = len(items) - 1
    if number == 1:
        return [items[last // 2]]
    return [items[round(place * last / (number - 1))] for place in range(number)]


def candidate_of(teacher: PretrainedConfig, recipe: StudentRecipe) -> Candidate:
    """The candidate of a recipe without a budget."""
    plan = plan_student(teacher, recipe)
    return Candidate(recipe, plan, count_parameters(empty_model(plan.config))[0])


def _narrower(teacher: PretrainedConfig, recipe: StudentRecipe) -> list[StudentRecipe]:
    """The recipe with all heads and hidden channels, with fewer heads, and with a smaller hidden
    size, as far as the family allows."""
    sizes, found = sizes_of(teacher), [recipe]
    for widths in (*_fewer_heads(sizes), *_smaller_hidden_sizes(teacher, sizes)):
        own = recipe.model_copy(update=widths)
        with contextlib.suppress(RecipeError):
            narrow_config(teacher, own)
            found.append(own)
    return found


def _fewer_heads(sizes: Sizes) -> Iterator[dict[str, int]]:
    """Fewer groups of heads that share keys and values, and fewer heads in each."""
    for kv_heads in range(sizes.kv_heads, 0, -1):
        for shared_by in range(sizes.heads // sizes.kv_heads, 0, -1):
            heads = kv_heads * shared_by
            if SMALLEST_HEADS * sizes.heads <= heads < sizes.heads:
                yield {"num_heads": heads, "num_key_value_heads": kv_heads}


def _smaller_hidden_sizes(teacher: PretrainedConfig, sizes: Sizes) -> Iterator[dict[str, int]]:
    """Multiples of what heads need, and of 8."""
    divide = heads_divide_hidden_size(teacher)
    multiple = sizes.head_size if divide else math.lcm(sizes.heads, 8)
    for share in HIDDEN_SIZES:
        size = round(share * sizes.hidden / multiple) * multiple
        if 0 < size < sizes.hidden:
            yield {"hidden_size": size}


@dataclass(frozen=True)
class _Growth:
    """The size of students by their layers and feed-forward channels; the heads are the recipe's.

    Each layer after the first costs as much as the next, and each channel of it too. `fewest` and
    `most` are the costs of the first layer with all that surrounds the layers, then of each further
    layer, at the fewest channels and at the teacher's. Narrower layers have `fewest_channels` and a
    number of times `multiple` more.
    """

    recipe: StudentRecipe
    num_layers: int
    multiple: int
    fewest_channels: int
    most_channels: int
    fewest: tuple[float, float]
    most: tuple[float, float]

    @classmethod
    def of(cls, teacher: PretrainedConfig, recipe: StudentRecipe, limit: Limit) -> "_Growth":
        layers, channels = teacher.num_hidden_layers, sizes_of(teacher).feed_forward
        multiple = min(MOST_MULTIPLE, 1 << max(0, (channels // STEPS).bit_length() - 1))
        fewest = round(SMALLEST_FEED_FORWARD * channels)
        fewest = max(1, fewest - fewest % multiple)
        configs = []
        for width in (fewest, channels):
            for depth in (1, layers):
                shape = {"layer_map": depth, "feed_forward_size": width}
                own = recipe.model_copy(update=shape)
                configs.append(plan_student(teacher, own).config)
        costs = limit.costs(configs)
        least, most = (
            (one, (every - one) / max(1, layers - 1)) for one, every in (costs[:2], costs[2:])
        )
        return cls(recipe, layers, multiple, fewest, channels, least, most)

    def size(self, layers: int, channels: int) -> float:
        """The cost of a student."""
        low, high = (first + (layers - 1) * more for first, more in (self.fewest, self.most))
        span = self.most_channels - self.fewest_channels
        return low + (channels - self.fewest_channels) * (high - low) / max(1, span)

    def shapes(self, limit: float) -> Iterator[tuple[StudentRecipe, float]]:
        """For each number of layers the widest student within the limit, and its size."""
        for layers in range(1, self.num_layers + 1):
            low = self.size(layers, self.fewest_channels)
            high = self.size(layers, self.most_channels)
            if limit < low:
                return
            channels = self.most_channels
            if limit < high:
                span = self.most_channels - self.fewest_channels
                more = math.floor((limit - low) * span / (high - low))
                channels = self.fewest_channels + more - more % self.multiple
            shape = {"layer_map": layers, "feed_forward_size": channels}
            yield self.recipe.model_copy(update=shape), self.size(layers, channels)
