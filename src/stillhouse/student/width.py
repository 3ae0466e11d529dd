"""Cutting the width of a model: hidden size, feed-forward channels, and attention heads.

What is kept follows from scores of the channels that a layer's projections read: for hidden
channels those before attention and feed-forward part, for the others those after them.

Axes: B sequences, T positions, C channels of one module.
"""

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.base import Family, Parameters
from stillhouse.families.registry import family_of
from stillhouse.student.axes import (
    Axis,
    Sizes,
    feed_forward_axes,
    feed_forward_key,
    head_axes,
    heads_divide_hidden_size,
    hidden_axes,
    readers,
    sizes_of,
    with_heads,
    with_hidden_size,
)
from stillhouse.student.calibration import Calibration
from stillhouse.student.settings import StudentRecipe
from stillhouse.wording import counted


def narrow_config(config: PretrainedConfig, recipe: StudentRecipe) -> PretrainedConfig:
    """The teacher's configuration at the recipe's widths.

    Raises:
        RecipeError: more than the teacher has, or what its architecture cannot have.
    """
    if not recipe.is_narrower:
        return config
    sizes, new = sizes_of(config), copy.deepcopy(config)
    hidden, divide = recipe.hidden_size, False
    if hidden is not None and hidden != sizes.hidden:
        _check_at_most("hidden_size", hidden, sizes.hidden)
        divide = heads_divide_hidden_size(config)
        if divide:
            _check_heads_follow(config, recipe, hidden)
        new = with_hidden_size(config, hidden)
    if recipe.feed_forward_size is not None:
        _check_at_most("feed_forward_size", recipe.feed_forward_size, sizes.feed_forward)
        setattr(new, feed_forward_key(config), recipe.feed_forward_size)
    if not divide and (recipe.num_heads is not None or recipe.num_key_value_heads is not None):
        heads, kv_heads = _wanted_heads(recipe, sizes)
        _check_heads_are_apart(config, heads)
        new = with_heads(new, heads, kv_heads)
    _check_is_valid(new)
    return new


def _check_is_valid(config: PretrainedConfig) -> None:
    """Refuse what the architecture's configuration does: it could not be saved."""
    try:
        config.validate()
    except StrictDataclassClassValidationError as error:
        heads = counted(sizes_of(config).heads, "head")
        raise RecipeError(
            f"A {config.model_type} student cannot have hidden size {config.hidden_size} and "
            f"{heads} ({error.__cause__ or error}). Change student.num_heads or "
            "student.hidden_size."
        ) from error


def _wanted_heads(recipe: StudentRecipe, sizes: Sizes) -> tuple[int, int]:
    """Heads of the student, and heads of its keys and values."""
    per_group, kv_heads = sizes.heads // sizes.kv_heads, recipe.num_key_value_heads
    if kv_heads is None:
        kv_heads = (recipe.num_heads or 1) if per_group == 1 else sizes.kv_heads
    heads = recipe.num_heads or kv_heads * per_group
    _check_at_most("num_heads", heads, sizes.heads)
    _check_at_most("num_key_value_heads", kv_heads, sizes.kv_heads)
    if heads % kv_heads or heads // kv_heads > per_group:
        raise RecipeError(
            f"student.num_heads {heads} and student.num_key_value_heads {kv_heads} do not fit the "
            f"teacher's {sizes.heads} and {sizes.kv_heads}: each key and value head is shared by "
            f"equally many heads, at most {per_group}. Give num_heads as a multiple of "
            "num_key_value_heads."
        )
    return heads, kv_heads


def _check_at_most(key: str, wanted: int, size: int) -> None:
    if wanted > size:
        raise RecipeError(
            f"student.{key} is {wanted:,}, but the teacher has {size:,}. Give at most {size:,}."
        )


def _check_heads_are_apart(config: PretrainedConfig, heads: int) -> None:
    """Refuse architectures whose other heads would change with those that are cut."""
    size = sizes_of(config).head_size
    if heads_divide_hidden_size(config):
        why = "divide its hidden size"
        advice = f"Give student.hidden_size {heads * size} instead: heads follow from it."
    elif any("norm" in axis.parameter for axis in head_axes(config)[0]):
        why, advice = "are normed together", "Leave num_heads and num_key_value_heads out."
    else:
        return
    raise RecipeError(
        f"student.num_heads is {heads}, but the heads of a {config.model_type} model {why}, so "
        f"they cannot be cut. {advice}"
    )


def _check_heads_follow(config: PretrainedConfig, recipe: StudentRecipe, hidden: int) -> None:
    """Refuse a hidden size that heads which divide it cannot follow."""
    size, what = sizes_of(config).head_size, f"student.hidden_size is {hidden}, but"
    if hidden % size:
        fitting = max(size, hidden // size * size)
        raise RecipeError(
            f"{what} in a {config.model_type} model it is a multiple of the size of its heads, "
            f"{size}. Give {fitting}, or another multiple."
        )
    heads = hidden // size
    if {recipe.num_heads, recipe.num_key_value_heads} - {None, heads}:
        raise RecipeError(
            f"{what} heads of {size} in a {config.model_type} model divide it, so there are "
            f"{heads}. Leave num_heads and num_key_value_heads out."
        )
    for problem, why in (
        (not family_of(config).attention_projections, "lie side by side with their keys"),
        (any(not axis.blocks for axis in hidden_axes(config)), "share biases of positions"),
    ):
        if problem:
            raise RecipeError(
                f"{what} the heads of a {config.model_type} model divide it and {why}, so they "
                "cannot be cut. Leave hidden_size out, and cut layers or feed_forward_size."
            )


@torch.inference_mode()
def channel_scores(
    family: Family, model: PreTrainedModel, text: Calibration, modules: Iterable[str]
) -> dict[str, list[Float[Tensor, " C"]]]:
    """The scores of the channels that each of these modules of a layer reads, in float64, for each
    layer.

    With x the module's input (Muralidharan et al. 2024, Minitron, section 2.2):

        root of the sum over sequences of (mean over real positions of |x|)^2
    """
    layers = family.layers_of(model)
    squares: dict[str, list[Any]] = {module: [0.0] * len(layers) for module in modules}
    real = torch.empty(0)

    def note(_: nn.Module, args: tuple[Tensor, ...], *, module: str, layer: int) -> None:
        states = args[0].double().abs().view(*real.shape, -1)
        means = (states * real[:, :, None]).sum(1) / real.sum(1).clamp_min(1)[:, None]
        squares[module][layer] = squares[module][layer] + means.square().sum(0)

    with ExitStack() as hooks:
        for module, (number, layer) in itertools.product(squares, enumerate(layers)):
            read = partial(note, module=module, layer=number)
            hooks.enter_context(layer.get_submodule(module).register_forward_pre_hook(read))
        for batch in text.batches():
            real = batch.rows("all").double().to(model.device)
            family.run_body(model, batch.to(model.device))
    return {module: [total.sqrt().cpu() for total in each] for module, each in squares.items()}


# Of the channels that a module reads, layer by layer.
Scores = list[Float[Tensor, " C"]]
# For an axis of a parameter, given as (name, dimension): the places that are kept.
Places = dict[tuple[str, int], Int[Tensor, " _"]]


@dataclass(frozen=True)
class KeptWidths:
    """What is kept of a teacher's widths; a list is empty where all is.

    Attributes:
        places: The same, for each parameter.
        hidden: Hidden channels, in order.
        feed_forward, heads: Channels and heads of each layer.
    """

    places: Places = field(default_factory=dict)
    hidden: list[int] = field(default_factory=list)
    feed_forward: list[list[int]] = field(default_factory=list)
    heads: list[list[int]] = field(default_factory=list)

    def facts(self) -> dict[str, Any]:
        """What is kept, as plain values; feed-forward channels as ranges, such as `0-3 7`."""
        found = {
            "hidden": self.hidden,
            "feed_forward": [as_ranges(channels) for channels in self.feed_forward],
            "heads": self.heads,
        }
        return {name: kept for name, kept in found.items() if kept}


def as_ranges(numbers: Sequence[int]) -> str:
    """Rising numbers as ranges: `0-3 7 9-10`."""
    known = {*numbers}
    starts = [number for number in numbers if number - 1 not in known]
    ends = [number for number in numbers if number + 1 not in known]
    pairs = zip(starts, ends, strict=True)
    return " ".join(f"{start}-{end}" if end > start else f"{start}" for start, end in pairs)


def choose_widths(
    family: Family,
    model: PreTrainedModel,
    narrow: PretrainedConfig,
    text: Calibration,
    known: dict[str, Scores] | None = None,
) -> KeptWidths:
    """The channels and heads that matter most on a text, as many as `narrow` has: hidden channels
    of the whole model, the others of each layer.

    Args:
        known: Scores by the module that reads the channels; those measured here are added, so that
            several students of a teacher measure them once.
    """
    scores = {} if known is None else known
    config, layer = model.config, family.layers_of(model)[0]
    have, wanted = sizes_of(config), sizes_of(narrow)
    axes, keys_values = {}, []
    if wanted.hidden < have.hidden:
        axes["hidden"] = hidden_axes(config)
    if wanted.feed_forward < have.feed_forward:
        axes["feed_forward"] = feed_forward_axes(config)
    if wanted.heads < have.heads:
        axes["heads"], keys_values = head_axes(config)
    modules = {name: readers(layer, each, f"{family.layers}.0.") for name, each in axes.items()}
    if unknown := {module for each in modules.values() for module in each} - scores.keys():
        scores |= channel_scores(family, model, text, unknown)
    found = KeptWidths()
    if "hidden" in axes:
        total = torch.stack([score for name in modules["hidden"] for score in scores[name]]).sum(0)
        kept = _largest(total, wanted.hidden)
        _add(found.places, "", axes["hidden"], kept, have.hidden)
        found.hidden.extend(kept.tolist())
    for number in range(config.num_hidden_layers):
        prefix = f"{family.layers}.{number}."
        if "feed_forward" in axes:
            (name,) = modules["feed_forward"]
            kept = _largest(scores[name][number], wanted.feed_forward)
            _add(found.places, prefix, axes["feed_forward"], kept, have.feed_forward)
            found.feed_forward.append(kept.tolist())
        if "heads" in axes:
            (name,) = modules["heads"]
            heads, kv_heads = best_heads(scores[name][number], have, wanted)
            _add(found.places, prefix, axes["heads"], heads, have.heads * have.head_size)
            _add(found.places, prefix, keys_values, kv_heads, have.kv_heads * have.head_size)
            found.heads.append((heads[:: have.head_size] // have.head_size).tolist())
    return found


def _add(
    places: Places, prefix: str, axes: Sequence[Axis], kept: Int[Tensor, " _"], size: int
) -> None:
    """Add what is kept of each block of `size` places."""
    for axis in axes:
        blocks = [axis.start + block * size + kept for block in range(axis.blocks)]
        own = (f"{prefix}{axis.parameter}", axis.dim)
        places[own] = torch.cat([places[own], *blocks] if own in places else blocks)


def _largest(scores: Float[Tensor, " C"], number: int) -> Int[Tensor, " _"]:
    """The places of the largest scores, in order."""
    return scores.topk(number).indices.sort().values


def best_heads(
    scores: Float[Tensor, " C"], have: Sizes, wanted: Sizes
) -> tuple[Int[Tensor, " _"], Int[Tensor, " _"]]:
    """Channels of the best heads, and of their keys and values.

    The score of a head is the norm of its channels', that of a group of heads which share keys and
    values the norm of its heads'. The best groups are kept, and of each equally many heads.
    """
    groups = scores.view(have.kv_heads, -1, have.head_size).norm(dim=2)
    kept = _largest(groups.norm(dim=1), wanted.kv_heads)
    size, old_size = wanted.heads // wanted.kv_heads, groups.shape[1]
    heads = torch.cat([_largest(groups[group], size) + group * old_size for group in kept])
    return _channels_of(heads, have.head_size), _channels_of(kept, have.head_size)


def _channels_of(heads: Int[Tensor, " _"], head_size: int) -> Int[Tensor, " _"]:
    return (heads[:, None] * head_size + torch.arange(head_size)).flatten()


def narrow_parameters(
    family: Family, teacher: PreTrainedModel, narrow: PretrainedConfig, kept: KeptWidths
) -> Parameters:
    """The teacher's parameters with what is kept alone.

    Of N of H hidden channels the root mean square is sqrt(H / N) times that of H with zeros in
    place of the others, so the weights of norms are multiplied by this. It is exact for RMSNorm,
    but for its epsilon, and for LayerNorm where the mean is zero; a better start than weights as
    they are (docs/results/experiments.md, "Hidden size"). Where embeddings are multiplied by the
    root of the hidden size, their weights make up for what that factor loses, and the final norm's
    for a head that is tied to them.
    """
    found: dict[str, Tensor] = dict(teacher.named_parameters())
    for (name, dim), places in kept.places.items():
        found[name] = found[name].index_select(dim, places.to(found[name].device))
    growth = math.sqrt(teacher.config.hidden_size / narrow.hidden_size)
    if growth == 1:
        return found
    norms = [name for name, _ in kept.places if name.endswith(".weight") and found[name].dim() == 1]
    factors = dict.fromkeys(norms, growth)
    if family.scales_embeddings:
        words = family.embeddings["word_embeddings"]
        found[words] = found[words] * growth
        if teacher.config.tie_word_embeddings:
            del factors[f"{family.body}.norm.weight"]
    added = 1 if family.scales_embeddings else 0  # to a norm's weight
    return found | {name: (added + found[name]) * each - added for name, each in factors.items()}
