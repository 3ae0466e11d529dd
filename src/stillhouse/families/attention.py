"""Attention that uses the batch's explicit mask, or none; matrix products on a CPU.

Given no mask, a causal body of transformers searches the position ids for packed sequences. That
waits for the device, and a compiled body builds a dense mask instead, which the fastest attention
kernels reject. Our batches know whether they are packed. transformers builds no mask for an
attention function that is registered without a mask function, hence our own registration.

On a CPU two batched products and a softmax take a third to two thirds of the time of PyTorch's own
attention, forward and backward, for short sequences (docs/results/experiments.md, "Attention on a
CPU").

Axes: B sequences, H heads, T positions, D size of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from stillhouse.families.base import Attend

NAME, NAME_OF_TOKENS = "stillhouse", "stillhouse_tokens"
MAX_LENGTH = 256  # positions; at 512 the products gain nothing


class Scores(NamedTuple):
    """How attention computes its scores: scale * query @ key, `softcapped`, over the last `window`
    tokens or all."""

    scale: float
    window: int | None = None
    softcap: float | None = None


def softcapped(scores: Float[Tensor, "*n"], cap: float | None) -> Float[Tensor, "*n"]:
    """cap * tanh(scores / cap), so that none is beyond the cap; without a cap the scores."""
    return scores if cap is None else cap * (scores / cap).tanh()


_sdpa = AttentionInterface()["sdpa"]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer.

    A layer with a sliding window passes its size, which the caller's mask does not include.
    """
    if kwargs.get("s_aux") is not None:
        raise ModelError("The model's attention has sinks, which Stillhouse does not support.")
    # Under autocast rotary positions raise queries and keys to float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = kwargs.pop("sliding_window", None)
    if window is not None and window < key.shape[2]:
        seen = within_window(query.shape[2], key.shape[2], window, causal=causal)
        attention_mask = _both(attention_mask, seen.to(query.device))
    softcap = kwargs.pop("softcap", None)
    for_products = softcap or _is_for_products(query, key, attention_mask)
    if kwargs.get("position_bias") is not None or not for_products:
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, **kwargs}
        return _sdpa(module, query, key, value, attention_mask, **given)
    visible = attention_mask
    if visible is None and causal:
        visible = query.new_ones(1, 1, *[query.shape[2]] * 2, dtype=torch.bool).tril()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if (queries_per_key := query.shape[1] // key.shape[1]) > 1:  # grouped-query attention
        key, value = (each.repeat_interleave(queries_per_key, 1) for each in (key, value))
    found = plain_attention(
        query, key, value, visible, scale=scale, dropout=dropout, softcap=softcap
    )
    return found.transpose(1, 2).contiguous(), None


def window_in_every_layer(config: PretrainedConfig) -> int | None:
    """The window of attention where all layers have the configuration's."""
    return config.sliding_window


def window_by_layer_types(config: PretrainedConfig) -> int | None:
    """The window of attention where only layers that the configuration lists as sliding have it."""
    kinds = getattr(config, "layer_types", None) or ()
    return config.sliding_window if "sliding_attention" in kinds else None


def within_window(
    num_queries: int, num_keys: int, window: int, *, causal: bool
) -> Bool[Tensor, "1 1 Q K"]:
    """True where a key is less than `window` positions from a query, and, if causal, not after it.

    The queries are the last of the keys' positions. In transformers' convention a model with w
    positions on each side passes w + 1.
    """
    queries = torch.arange(num_keys - num_queries, num_keys)[:, None]
    distance = queries - torch.arange(num_keys)[None]
    near = distance.abs() < window
    return (near & (distance >= 0) if causal else near)[None, None]


def _both(mask: Tensor | None, seen: Bool[Tensor, "1 1 Q K"]) -> Tensor:
    """The intersection of a mask (boolean or additive) and a window."""
    if mask is None:
        return seen
    if mask.dtype == torch.bool:
        return mask & seen
    return mask.masked_fill(~seen, torch.finfo(mask.dtype).min)


def _is_for_products(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether the products are faster: short whole sequences on a CPU, not compiled.

    (Compiled bodies keep PyTorch's kernel: the gain there is not measured.)
    """
    here = query.device.type == "cpu" and not torch.compiler.is_compiling()
    whole = query.shape[2:] == key.shape[2:] and (mask is None or mask.dtype == torch.bool)
    return here and whole and query.shape[2] <= MAX_LENGTH


def plain_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B H T D"],
    value: Float[Tensor, "B H T D"],
    visible: Bool[Tensor, "#B 1 _ T"] | None,
    *,
    scale: float,
    dropout: float = 0.0,
    softcap: float | None = None,
) -> Float[Tensor, "B H T D"]:
    """softmax(scale * query @ key^T over visible keys) @ value, in the precision of the query.

    Args:
        visible: True where a query (second to last axis) attends to a key (last axis); None for
            all.
        dropout: Probability of dropping a weight.
        softcap: Of the scores, before keys are hidden; see `softcapped`.
    """
    num_sequences, num_heads, length, _ = query.shape
    square = (num_sequences * num_heads, length, length)
    bias = query.new_zeros(())
    if visible is not None:
        # Half of the lowest number: a score added to it stays finite.
        hidden = query.new_zeros(visible.shape).masked_fill_(
            ~visible, torch.finfo(query.dtype).min / 2
        )
        bias = hidden.expand(num_sequences, num_heads, -1, -1).flatten(0, 1)
    with torch.autocast(query.device.type, enabled=False):
        queries, keys, values = (each.flatten(0, 1) for each in (query, key, value))
        if softcap is None:
            scores = torch.baddbmm(bias.expand(square), queries, keys.transpose(1, 2), alpha=scale)
        else:
            scores = softcapped(scale * queries @ keys.transpose(1, 2), softcap) + bias
        weights = scores.softmax(-1)
        if dropout > 0:
            weights = weights * dropout_factors(weights, dropout)
        return (weights @ values).unflatten(0, (num_sequences, num_heads))


def dropout_factors(like: Tensor, chance: float) -> Tensor:
    """Zero with probability `chance` (to 1 part in 65,536), else 1 / (1 - chance); like `like`.

    One random 64-bit word gives four factors. (PyTorch's dropout draws each separately: 8 ns, a
    twentieth of a step of BERT-base.)
    """
    values = 2**16
    num_dropped = min(round(chance * values), values - 1)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    drawn = words.random_(-(2**63), None).view(torch.int16)[: like.numel()].view(like.shape)
    return (drawn >= num_dropped - values // 2).to(like.dtype).mul_(values / (values - num_dropped))


AttentionInterface.register(NAME, _attention)
_attend: ContextVar["Attend"] = ContextVar("attend")


def _attention_of_tokens(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each layer within `attention_by`."""
    key_and_value = torch.stack([key[0], value[0]], 1).permute(2, 1, 0, 3)  # N 2 H D
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = Scores(scale, sliding_window, softcap)
    found = _attend.get()(module.layer_idx, query[0].transpose(0, 1), key_and_value, scores)
    return found[None], None


AttentionInterface.register(NAME_OF_TOKENS, _attention_of_tokens)


@contextmanager
def attention_named(config: PretrainedConfig, name: str) -> Iterator[None]:
    """Within this context a model uses the attention function registered under this name."""
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def attention_by(config: PretrainedConfig, attend: "Attend") -> Iterator[None]:
    """Within this context a body computes attention by `attend`; it takes one row of tokens."""
    token = _attend.set(attend)
    try:
        with attention_named(config, NAME_OF_TOKENS):
            yield
    finally:
        _attend.reset(token)


@contextmanager
def explicit_attention_mask(config: PretrainedConfig) -> Iterator[None]:
    """Within this context the model uses the caller's mask as it is; do not generate in it.

    Raises:
        ModelError: the model's attention cannot use an explicit mask.
    """
    before = config._attn_implementation
    chunked = "chunked_attention" in (getattr(config, "layer_types", None) or ())
    if before not in ("sdpa", "eager", NAME) or chunked:
        raise ModelError(
            f"A {config.model_type} model with "
            f"{'chunked' if chunked else before} attention cannot take an explicit attention mask; "
            "only eager and sdpa attention can. Load it with attn_implementation sdpa."
        )
    with attention_named(config, NAME):
        yield
