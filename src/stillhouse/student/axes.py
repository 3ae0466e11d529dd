"""Where the widths of an architecture are: axes of parameters, found by building it at two sizes.

A parameter's axis that grows with a width belongs to it. Where heads divide the hidden size the two
grow together: there the axes of heads are those of the modules around attention.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from stillhouse.families.base import attention_widths, with_layers
from stillhouse.families.registry import family_of
from stillhouse.models.load import empty_model

# What architectures call the width of the feed-forward part.
FEED_FORWARD_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "hidden_dim")
# Widths of embeddings and of a pooler; where they are the hidden size, they follow it.
HIDDEN_KEYS = ("word_embed_proj_dim", "embedding_size", "pooler_hidden_size")
KV_HEADS = "num_key_value_heads"


@dataclass(frozen=True)
class Axis:
    """An axis of a parameter, `blocks` times as long as the width that it grows with, one block
    after the other, the first at `start`."""

    parameter: str
    dim: int
    blocks: int
    start: int = 0


@dataclass(frozen=True)
class Sizes:
    """The widths of a model. Heads of keys and values are as many as of queries, or fewer."""

    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int


def sizes_of(config: PretrainedConfig) -> Sizes:
    """The widths of a configuration."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, KV_HEADS, None) or heads
    feed_forward = getattr(config, feed_forward_key(config)) or 4 * config.hidden_size
    head_size = attention_widths(config)[0] // heads
    return Sizes(feed_forward, heads, kv_heads, head_size, config.hidden_size)


def feed_forward_key(config: PretrainedConfig) -> str:
    return next(key for key in FEED_FORWARD_KEYS if key in config.to_dict())


def with_heads(config: PretrainedConfig, heads: int, kv_heads: int) -> PretrainedConfig:
    """The configuration with another number of heads, each as large as before."""
    new = _with_head_size(config)
    new.num_attention_heads = heads
    if hasattr(config, KV_HEADS):
        new.num_key_value_heads = kv_heads
    return new


def with_hidden_size(config: PretrainedConfig, size: int) -> PretrainedConfig:
    """The configuration with another hidden size. Other widths stay as they are; but where heads
    divide the hidden size, their number follows."""
    sizes, divide = sizes_of(config), heads_divide_hidden_size(config)
    new = copy.deepcopy(config) if divide else _with_head_size(config)
    setattr(new, feed_forward_key(config), sizes.feed_forward)
    for key in HIDDEN_KEYS:
        if getattr(config, key, None) == sizes.hidden:
            setattr(new, key, size)
    new.hidden_size = size
    if divide:
        new.num_attention_heads = size // sizes.head_size
    return new


def _with_head_size(config: PretrainedConfig) -> PretrainedConfig:
    """A copy of the configuration with an explicit size of heads."""
    new = copy.deepcopy(config)
    new.head_dim = sizes_of(config).head_size
    return new


def heads_divide_hidden_size(config: PretrainedConfig) -> bool:
    """Whether heads are as large as the hidden size over their number, as in GPT-2 and BERT."""
    return not _own_head_axes(config)[0]


def feed_forward_axes(config: PretrainedConfig) -> list[Axis]:
    """The axes of a layer's parameters along its feed-forward channels."""
    wider, size = copy.deepcopy(config), sizes_of(config).feed_forward
    setattr(wider, feed_forward_key(config), 2 * size)
    return _layer_axes(config, wider, size)


def head_axes(config: PretrainedConfig) -> tuple[list[Axis], list[Axis]]:
    """The axes of a layer's parameters along its heads of queries, and of keys and values; a block
    is a channel of each head. Where a parameter has both, queries come first."""
    queries, keys_values = _own_head_axes(config)
    return (queries, keys_values) if queries else (_axes_around_attention(config), [])


def _own_head_axes(config: PretrainedConfig) -> tuple[list[Axis], list[Axis]]:
    """The same of an architecture whose heads have a size of their own; nothing of others."""
    sizes = sizes_of(config)
    heads, kv_heads, size = sizes.heads, sizes.kv_heads, sizes.head_size
    base, wider = with_heads(config, heads, kv_heads), with_heads(config, 2 * heads, kv_heads)
    try:
        queries = _layer_axes(base, wider, heads * size)
    except ValueError:  # from a model's constructor, where heads must divide the hidden size
        return [], []
    if not hasattr(config, KV_HEADS):
        return queries, []
    starts = {(axis.parameter, axis.dim): axis.blocks * heads * size for axis in queries}
    found = _layer_axes(base, with_heads(config, heads, 2 * kv_heads), kv_heads * size)
    return queries, [
        replace(axis, start=starts.get((axis.parameter, axis.dim), 0)) for axis in found
    ]


def _axes_around_attention(config: PretrainedConfig) -> list[Axis]:
    """What the modules before attention write, side by side, and the one after it reads."""
    family, sizes = family_of(config), sizes_of(config)
    layer = family.layers_of(empty_model(with_layers(config, [0])))[0]
    axes = []
    for name in family.attention_projections:
        module = layer.get_submodule(name)
        axes.append(Axis(f"{name}.weight", 1 - input_dim(module), 1))
        if getattr(module, "bias", None) is not None:
            axes.append(Axis(f"{name}.bias", 0, 1))
    after = family.position_wise[0]
    name = next(
        f"{after}.{name}".rstrip(".")
        for name, module in layer.get_submodule(after).named_modules()
        if _has_matrix(module)
    )
    axes.append(Axis(f"{name}.weight", input_dim(layer.get_submodule(name)), 1))
    width = sizes.heads * sizes.head_size
    return [
        replace(axis, blocks=layer.get_parameter(axis.parameter).shape[axis.dim] // width)
        for axis in axes
    ]


def hidden_axes(config: PretrainedConfig) -> list[Axis]:
    """The axes of a model's parameters along its hidden channels: all that reads or writes the
    residual stream. An axis of no block is along something else that grows with it."""
    family, size = family_of(config), config.hidden_size
    one, other = (empty_model(with_hidden_size(config, each)) for each in (size, 2 * size))
    found = _differing(one, other, size)
    if not heads_divide_hidden_size(config):
        return found
    inner = {(axis.parameter, axis.dim) for axis in _axes_around_attention(config)}
    prefix = re.compile(rf"^{re.escape(family.layers)}\.\d+\.")
    return [axis for axis in found if (prefix.sub("", axis.parameter), axis.dim) not in inner]


def _layer_axes(config: PretrainedConfig, wider: PretrainedConfig, size: int) -> list[Axis]:
    """The axes of a layer's parameters that are longer in `wider`, where the width is twice
    `size`; other parameters of a layer do not differ."""
    models = [empty_model(with_layers(each, [0])) for each in (config, wider)]
    one, other = (family_of(config).layers_of(model)[0] for model in models)
    return _differing(one, other, size)


def _differing(one: nn.Module, other: nn.Module, size: int) -> list[Axis]:
    """The axes that are longer in `other`, by a multiple of `size`."""
    theirs = dict(other.named_parameters())
    return [
        Axis(name, dim, (theirs[name].shape[dim] - length) // size)
        for name, parameter in one.named_parameters()
        for dim, length in enumerate(parameter.shape)
        if theirs[name].shape[dim] != length
    ]


def readers(layer: nn.Module, axes: Iterable[Axis], prefix: str = "") -> list[str]:
    """The modules of a layer whose input lies along these axes, the last of those side by side
    (DeBERTa's queries and keys are projected from its table of positions too).

    Args:
        prefix: Of the layer's parameters, where the axes are those of a whole model.
    """
    found: dict[str, str] = {}
    known = {name for name, module in layer.named_modules() if _has_matrix(module)}
    for axis in axes:
        name, _, kind = axis.parameter.removeprefix(prefix).rpartition(".")
        if name in known and kind == "weight" and axis.dim == input_dim(layer.get_submodule(name)):
            found[name.rpartition(".")[0]] = name
    return [*found.values()]


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() == 2


def input_dim(module: nn.Module) -> int:
    """The dimension of a projection's weight that reads its input."""
    return 0 if isinstance(module, Conv1D) else 1
