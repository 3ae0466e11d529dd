"""A cut student fitted to its teacher's hidden states, layer by layer, by least squares.

After a cut a layer reads other hidden states than those it was trained on, and what dropped layers
and channels added is missing. So the last projection of each layer is changed until the hidden
states after it are as near as they can be to the teacher's before the next layer that the student
keeps (reconstruction: He, Zhang and Sun 2017, section 3.1, there of one pruned layer's output).

Axes: B sequences, T positions, R rows that are not padding, C channels that the projection reads, D
hidden channels.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import ModelError, RecipeError
from stillhouse.families.attention import explicit_attention_mask
from stillhouse.families.base import Family, with_layers
from stillhouse.families.probe import last_module
from stillhouse.families.registry import family_of
from stillhouse.models.load import empty_model
from stillhouse.student.axes import input_dim
from stillhouse.student.calibration import Calibration
from stillhouse.student.layers import States, replaced_layers, unchanged
from stillhouse.tokens.batches import Batch

RIDGE = 0.3  # of the mean of the Gram matrix's diagonal


@dataclass(frozen=True)
class Reconstruction:
    """The projections that were fitted, by the names of their weights, and for each layer the error
    before and after: the root mean square of the difference to the teacher's hidden states, over
    that of these."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    errors: list[tuple[float, float]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """The errors, as plain values."""
        before, after = zip(*self.errors, strict=True)
        return {"error_before": [*before], "error_after": [*after]}


def output_projection(config: PretrainedConfig) -> str | None:
    """The module of a layer whose output is added to the hidden states last; None where a norm
    comes after it."""
    model = empty_model(with_layers(config, [0]))
    (layer,) = family_of(config).layers_of(model)
    name = last_module(model, layer)
    return name if layer.get_parameter(f"{name}.weight").dim() == 2 else None


def check_reconstruction(config: PretrainedConfig, layer_map: Sequence[int]) -> None:
    """Refuse a student whose layers cannot be fitted one after the other.

    Raises:
        RecipeError: its layers end in a norm, or its teacher's layers are not in order.
    """
    if output_projection(config) is None:
        raise RecipeError(
            f"student.reconstruct is true, but the layers of a {config.model_type} model end in a "
            "norm, so what they add cannot be fitted by least squares. Leave reconstruct out."
        )
    if any(one >= other for one, other in itertools.pairwise(layer_map)):
        raise RecipeError(
            f"student.reconstruct is true, but student.layer_map {[*layer_map]} is not in the "
            "teacher's order. Name each layer once, in order, or leave reconstruct out."
        )


@torch.inference_mode()
def reconstruct(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layer_map: Sequence[int],
    text: Calibration,
    *,
    hidden: Sequence[int] = (),
) -> Reconstruction:
    """Fit the layers of a student, in order, and change their weights.

    With X what a layer's last projection W reads, H the hidden states after the layer, and A the
    teacher's at that place, each row weighted by 1 / root mean square of A's:

        W + the D that minimizes |(A - H) - X D|^2 + RIDGE * mean(diag(X^T X)) * |D|^2

    A layer whose hidden states are the teacher's already is left as it is.

    Args:
        layer_map: The teacher layer of each student layer, rising.
        hidden: The hidden channels of the teacher that the student has; none for all.

    Raises:
        ModelError: hidden states that are not finite.
    """
    config = student.config
    name = output_projection(config)
    assert name is not None
    family, result = family_of(config), Reconstruction()
    kept = torch.tensor(hidden, device=teacher.device) if hidden else None
    batches = [batch.to(teacher.device) for batch in text.batches()]
    rows = [batch.row_numbers("all") for batch in batches]
    theirs, ours = (
        [_Layers.of(family, model, batch) for batch in batches] for model in (teacher, student)
    )
    targets, states = ([own.first for own in each] for each in (theirs, ours))
    ends = [0, *layer_map[1:], len(family.layers_of(teacher))]
    for number, layer in enumerate(family.layers_of(student)):
        targets = [
            own.run(target, range(ends[number], ends[number + 1]))
            for own, target in zip(theirs, targets, strict=True)
        ]
        fit, before = _Fit(layer.get_submodule(name)), [*states]
        with fit.recording():
            for place, (own, target, real) in enumerate(zip(ours, targets, rows, strict=True)):
                states[place] = own.run(before[place], [number])
                fit.add(_rows_of(target, real, kept), _rows_of(states[place], real), real)
        result.errors.append(fit.solve())
        path = f"{family.layers}.{number}.{name}.weight"
        result.weights[path] = student.get_parameter(path).detach().cpu().clone()
        if result.errors[-1][0]:  # the weights have changed
            states = [own.run(each, [number]) for own, each in zip(ours, before, strict=True)]
    return result


def _rows_of(
    states: States, rows: Int[Tensor, " R"], channels: Int[Tensor, " _"] | None = None
) -> Float[Tensor, "R _"]:
    found = states.flatten(0, 1).index_select(0, rows)
    return found if channels is None else found.index_select(1, channels)


@dataclass(frozen=True)
class _Layers:
    """The layers of a model on one batch, to be run one by one: the hidden states before the first,
    and what each is given beside its hidden states."""

    config: PretrainedConfig
    layers: nn.ModuleList
    in_tuple: bool
    first: States
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    @classmethod
    def of(cls, family: Family, model: PreTrainedModel, batch: Batch) -> "_Layers":
        layers, given = family.layers_of(model), []

        def note(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            states = args[0] if args else named.pop("hidden_states")
            given.append((states, args[1:], named))

        with ExitStack() as stack:
            for layer in layers:
                hook = layer.register_forward_pre_hook(note, with_kwargs=True)
                stack.enter_context(hook)
            absent = dict.fromkeys(range(len(layers)), unchanged)
            stack.enter_context(replaced_layers(family, model, absent))
            family.run_body(model, batch)
        arguments = [(args, named) for _, args, named in given]
        return cls(model.config, layers, bool(family.layer_outputs), given[0][0], arguments)

    def run(self, states: States, numbers: Iterable[int]) -> States:
        """The hidden states after these layers."""
        with explicit_attention_mask(self.config):
            for number in numbers:
                args, named = self.arguments[number]
                output = self.layers[number](states, *args, **named)
                states = output[0] if self.in_tuple else output
        return states


class _Fit:
    """The least-squares problem of one projection, summed over batches in float64."""

    def __init__(self, projection: nn.Module) -> None:
        self.projection = projection
        self._inputs = torch.empty(0)
        self._gram: Any = 0.0  # X^T X
        self._cross: Any = 0.0  # X^T (A - H)
        self._squares, self._values = 0.0, 0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within this context the projection's inputs are recorded."""

        def record(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._inputs = args[0]

        with self.projection.register_forward_pre_hook(record):
            yield

    def add(
        self,
        targets: Float[Tensor, "R D"],
        states: Float[Tensor, "R D"],
        rows: Int[Tensor, " R"],
    ) -> None:
        """Add the rows of a batch, whose inputs were recorded."""
        inputs = self._inputs.flatten(0, -2).index_select(0, rows)
        weights = targets.square().mean(1, keepdim=True).rsqrt()
        inputs, residual = inputs * weights, (targets - states) * weights
        self._gram = self._gram + (inputs.T @ inputs).double()
        self._cross = self._cross + (inputs.T @ residual).double()
        self._squares += float(residual.double().square().sum())
        self._values += residual.numel()

    def solve(self) -> tuple[float, float]:
        """Change the projection; the relative errors before and after.

        Raises:
            ModelError: something is not finite.
        """
        if not math.isfinite(self._squares + float(self._gram.sum())):
            raise ModelError(
                "The teacher's hidden states, or those of the student cut from it, are not finite "
                "on the text of student.importance, so it cannot be reconstructed. Leave "
                "student.reconstruct out, and check the teacher."
            )
        if not self._squares:
            return 0.0, 0.0
        gram, cross = self._gram, self._cross
        ridge = RIDGE * gram.diagonal().mean()
        change = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), cross)
        explained = float(2 * (change * cross).sum() - (change * (gram @ change)).sum())
        weight = cast(Tensor, self.projection.weight)
        weight += change.to(weight) if input_dim(self.projection) == 0 else change.T.to(weight)
        left = max(0.0, self._squares - explained)  # rounding may take it below zero
        return math.sqrt(self._squares / self._values), math.sqrt(left / self._values)
