"""Cutting the width of a model's layers: feed-forward channels, and attention heads.

Where they are in an architecture is found by building it at two sizes on the meta device: an axis
of a parameter that grows with the size belongs to it. What is kept in their place follows from
scores of the channels that a layer's output projections read.

Axes: B sequences, T positions, C channels of one module.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from stillhouse.errors import RecipeError
from stillhouse.families.base import Family, Parameters, attention_widths, with_layers
from stillhouse.families.registry import family_of
from stillhouse.models.load import empty_model
from stillhouse.student.calibration import Calibration
from stillhouse.student.settings import StudentRecipe
from stillhouse.wording import counted

# What architectures call the width of the feed-forward part.
FEED_FORWARD_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")
KV_HEADS = "num_key_value_heads"


@dataclass(frozen=True)
class Axis:
    """An axis of a layer's parameter, `blocks` times as long as the width that it grows with, one
    block after the other, the first at `start`."""

    parameter: str
    dim: int
    blocks: int
    start: int = 0


@dataclass(frozen=True)
class Sizes:
    """The widths of a layer. Heads of keys and values are as many as of queries, or fewer."""

    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int


def sizes_of(config: PretrainedConfig) -> Sizes:
    """The widths of a configuration's layers."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, KV_HEADS, None) or heads
    feed_forward = getattr(config, _feed_forward_key(config)) or 4 * config.hidden_size
    return Sizes(feed_forward, heads, kv_heads, attention_widths(config)[0] // heads)


def _feed_forward_key(config: PretrainedConfig) -> str:
    return next(key for key in FEED_FORWARD_KEYS if key in config.to_dict())


def narrow_config(config: PretrainedConfig, recipe: StudentRecipe) -> PretrainedConfig:
    """The teacher's configuration at the recipe's widths.

    Raises:
        RecipeError: more than the teacher has, or what its architecture cannot have.
    """
    wanted = recipe.feed_forward_size
    if not recipe.is_narrower:
        return config
    sizes, new = sizes_of(config), copy.deepcopy(config)
    if wanted is not None:
        _check_at_most("feed_forward_size", wanted, sizes.feed_forward)
        setattr(new, _feed_forward_key(config), wanted)
    if recipe.num_heads is not None or recipe.num_key_value_heads is not None:
        heads, kv_heads = _wanted_heads(recipe, sizes)
        new = _with_heads(new, heads, kv_heads, sizes.head_size)
        _check_heads_are_apart(new, heads)
    _check_is_valid(new)
    return new


def _check_is_valid(config: PretrainedConfig) -> None:
    """Refuse what the architecture's configuration does: it could not be saved."""
    try:
        config.validate()
    except StrictDataclassClassValidationError as error:
        sizes = sizes_of(config)
        raise RecipeError(
            f"A {config.model_type} student cannot have {counted(sizes.heads, 'head')} "
            f"({error.__cause__ or error}). Change student.num_heads, or leave it out."
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


def _with_heads(
    config: PretrainedConfig, heads: int, kv_heads: int, head_size: int
) -> PretrainedConfig:
    new = copy.deepcopy(config)
    new.num_attention_heads, new.head_dim = heads, head_size
    if hasattr(config, KV_HEADS):
        new.num_key_value_heads = kv_heads
    return new


def _check_heads_are_apart(config: PretrainedConfig, heads: int) -> None:
    """Refuse architectures whose other heads would change with those that are cut."""
    try:
        queries, _ = head_axes(config)
    except (
        ValueError
    ):  # from the model's constructor, where the hidden size is no multiple of heads
        queries = []
    norms = [axis.parameter for axis in queries if "norm" in axis.parameter]
    if queries and not norms:
        return
    why = "are normed together" if norms else "divide its hidden size"
    raise RecipeError(
        f"student.num_heads is {heads}, but the heads of a {config.model_type} model {why}, so "
        "they cannot be cut. Leave num_heads and num_key_value_heads out."
    )


def _axes(config: PretrainedConfig, wider: PretrainedConfig, size: int) -> list[Axis]:
    """The axes of a layer's parameters that are longer in `wider`, where the width is twice
    `size`; other parameters of a layer do not differ."""
    models = [empty_model(with_layers(each, [0])) for each in (config, wider)]
    layers = [family_of(config).layers_of(model)[0] for model in models]
    one, other = (dict(layer.named_parameters()) for layer in layers)
    return [
        Axis(name, dim, (other[name].shape[dim] - length) // size)
        for name, parameter in one.items()
        for dim, length in enumerate(parameter.shape)
        if other[name].shape[dim] != length
    ]


def feed_forward_axes(config: PretrainedConfig) -> list[Axis]:
    """The axes of a layer's parameters along its feed-forward channels."""
    wider, size = copy.deepcopy(config), sizes_of(config).feed_forward
    setattr(wider, _feed_forward_key(config), 2 * size)
    return _axes(config, wider, size)


def head_axes(config: PretrainedConfig) -> tuple[list[Axis], list[Axis]]:
    """The axes of a layer's parameters along its heads of queries, and of keys and values; a block
    is a channel of each head. Where a parameter has both, queries come first."""
    sizes = sizes_of(config)
    heads, kv_heads, size = sizes.heads, sizes.kv_heads, sizes.head_size
    base = _with_heads(config, heads, kv_heads, size)
    queries = _axes(base, _with_heads(config, 2 * heads, kv_heads, size), heads * size)
    if not hasattr(config, KV_HEADS):
        return queries, []
    starts = {(axis.parameter, axis.dim): axis.blocks * heads * size for axis in queries}
    found = _axes(base, _with_heads(config, heads, 2 * kv_heads, size), kv_heads * size)
    return queries, [
        replace(axis, start=starts.get((axis.parameter, axis.dim), 0)) for axis in found
    ]


def read_by(layer: nn.Module, axes: Iterable[Axis]) -> str:
    """The module of a layer whose input lies along these axes: an output projection."""
    for axis in axes:
        name, _, kind = axis.parameter.rpartition(".")
        module = layer.get_submodule(name)
        if kind == "weight" and axis.dim == (0 if isinstance(module, Conv1D) else 1):
            return name
    raise AssertionError(f"no module reads {axes}")


@torch.inference_mode()
def channel_scores(
    family: Family, model: PreTrainedModel, text: Calibration, module: str
) -> list[Float[Tensor, " C"]]:
    """The scores of the channels that a module of each layer reads, in float64.

    With x the module's input (Muralidharan et al. 2024, Minitron, section 2.2):

        root of the sum over sequences of (mean over real positions of |x|)^2
    """
    layers = family.layers_of(model)
    squares: list[Any] = [0.0] * len(layers)
    real = torch.empty(0)

    def note(_: nn.Module, args: tuple[Tensor, ...], *, layer: int) -> None:
        states = args[0].double().abs().view(*real.shape, -1)
        means = (states * real[:, :, None]).sum(1) / real.sum(1).clamp_min(1)[:, None]
        squares[layer] = squares[layer] + means.square().sum(0)

    hooks = [
        layer.get_submodule(module).register_forward_pre_hook(partial(note, layer=number))
        for number, layer in enumerate(layers)
    ]
    try:
        for batch in text.batches():
            real = batch.rows("all").double().to(model.device)
            family.run_body(model, batch.to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [total.sqrt().cpu() for total in squares]


# Of the channels that a module reads, layer by layer.
Scores = list[Float[Tensor, " C"]]
# For an axis of a parameter, given as (name in its layer, dimension): the places that are kept.
Places = dict[tuple[str, int], Int[Tensor, " _"]]


def choose_widths(
    family: Family,
    model: PreTrainedModel,
    narrow: PretrainedConfig,
    text: Calibration,
    known: dict[str, Scores] | None = None,
) -> list[Places]:
    """The channels and heads of each layer that matter most on a text, as many as `narrow` has.

    Args:
        known: Scores by the module that reads the channels; those measured here are added, so that
            several students of a teacher measure them once.
    """
    known = {} if known is None else known

    def scores_of(module: str) -> Scores:
        if module not in known:
            known[module] = channel_scores(family, model, text, module)
        return known[module]

    config, layer = model.config, family.layers_of(model)[0]
    have, wanted = sizes_of(config), sizes_of(narrow)
    places: list[Places] = [{} for _ in range(config.num_hidden_layers)]
    if wanted.feed_forward < have.feed_forward:
        axes = feed_forward_axes(config)
        scores = scores_of(read_by(layer, axes))
        for own, found in zip(places, scores, strict=True):
            _add(own, axes, _largest(found, wanted.feed_forward), have.feed_forward)
    if wanted.heads < have.heads:
        queries, keys_values = head_axes(config)
        scores = scores_of(read_by(layer, queries))
        for own, found in zip(places, scores, strict=True):
            heads, kv_heads = best_heads(found, have, wanted)
            _add(own, queries, heads, have.heads * have.head_size)
            _add(own, keys_values, kv_heads, have.kv_heads * have.head_size)
    return places


def _add(places: Places, axes: Sequence[Axis], kept: Int[Tensor, " _"], size: int) -> None:
    """Add what is kept of each block of `size` places."""
    for axis in axes:
        blocks = [axis.start + block * size + kept for block in range(axis.blocks)]
        own = (axis.parameter, axis.dim)
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


def narrow_parameters(family: Family, teacher: Parameters, places: Sequence[Places]) -> Parameters:
    """The teacher's parameters with these places alone."""
    found = dict(teacher)
    for layer, own in enumerate(places):
        for (parameter, dim), kept in own.items():
            name = f"{family.layers}.{layer}.{parameter}"
            found[name] = found[name].index_select(dim, kept.to(found[name].device))
    return found
