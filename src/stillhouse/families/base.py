"""What differs between architectures, as data: one `Family` for each `model_type`.

Models come from transformers. A family knows where their parts are, how a student's configuration
follows from its teacher's, and which teacher parameter initializes each student parameter.

Axes: B sequences, T positions, N rows that count or tokens, D hidden size (of a head beside H
heads), V vocabulary.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from stillhouse.errors import RecipeError
from stillhouse.families.attention import (
    Scores,
    attention_by,
    explicit_attention_mask,
    softcapped,
    window_by_layer_types,
)
from stillhouse.families.settings import ArchitectureRecipe
from stillhouse.section import LanguageModeling, Rows
from stillhouse.tokens.batches import Batch
from stillhouse.wording import counted

Parameters = Mapping[str, Tensor]
DROPOUTS = (
    "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "dropout",
    "attention_probs_dropout_prob", "hidden_dropout_prob", "embedding_dropout", "mlp_dropout",
)  # fmt: skip
PER_LAYER = ("layer_types",)  # keys of configurations that list something for each layer
LENGTH_DEPENDENT = ("dynamic", "longrope")  # rope_type
# Attention of N tokens of any sequences, each to its own sequence's cached keys and values; from
# the number of the layer, the queries, the keys beside the values, and how scores are computed.
Attend = Callable[
    [int, Float[Tensor, "N Hq D"], Float[Tensor, "N 2 H D"], Scores], Float[Tensor, "N Hq D"]
]
# Last hidden states of N tokens, after the final norm, from their ids and positions.
RunTokens = Callable[[Int[Tensor, " N"], Int[Tensor, " N"], Attend], Float[Tensor, "N D"]]


def rotary_reason(config: PretrainedConfig) -> str | None:
    """Why a configuration's rotary positions cannot be computed; None if they can, or it has none.

    Their frequencies must be the same in every sequence. Layers of several kinds have their own.
    """
    settings = getattr(config, "rope_parameters", None)
    for each in (settings, *settings.values()) if isinstance(settings, dict) else ():
        kind = each.get("rope_type") if isinstance(each, dict) else None
        if kind in LENGTH_DEPENDENT:
            return (
                f"rope_parameters has rope_type {kind}, whose frequencies depend on the length of "
                "the sequence, so packed and batched sequences would differ from single ones. "
                "Models with default, linear, llama3 and yarn are supported."
            )
    return None


@dataclass(frozen=True)
class Head:
    """The language modeling head, taken apart: logits = transform(hidden) @ weight.T + bias, and
    with a softcap c then c * tanh(logits / c)."""

    transform: Callable[[Tensor], Tensor]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None
    softcap: float | None = None

    def logits(self, features: Float[Tensor, "*n D"]) -> Float[Tensor, "*n V"]:
        """The logits of transformed hidden states."""
        logits = nn.functional.linear(features, self.weight, self.bias)
        return softcapped(logits, self.softcap)


@dataclass(frozen=True)
class StudentMapping:
    """How a student's configuration and weights follow from a teacher's, given the layer map."""

    config: Callable[[PretrainedConfig, Sequence[int]], PretrainedConfig]
    weights: Callable[[Parameters, Sequence[int]], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """One architecture. Attribute paths are relative to the transformers model with its head.

    The fields without a default are found by `families.probe`.

    Attributes:
        body, layers: Paths of the model without its head, and its list of layers.
        attention_projections: Modules of a layer, in the order they run, whose outputs side by
            side are its queries, keys and values.
        position_wise: Modules of a layer after its attention that treat each position separately
            and hold matrices.
        embeddings: Parameters that `student.freeze` can name.
        config_from_scratch: Keys of a new model's configuration beside those that all families
            have, from its size and special token ids (end_of_text, pad, cls, sep); None for
            `settings_from_scratch`.
        head_transform: What a model's head does with last hidden states before it projects them.
        students: Other families that a student can be of; the first is the default. Without any, a
            student is of its teacher's family.
        position_offset: Row of the position embeddings for position 0.
        adds_mask: Whether the body takes a mask to add to scores; others take where a position
            attends to another.
        first_layer_differs: Whether the first layer has other parameters than those after it, so
            that it stays the first, and only there.
        layer_outputs: The length of the tuple that a layer gives, its hidden states first; 0 where
            it gives those alone.
        masked_modules: Modules of the body before its layers that can set padding to zero by a
            mask. They compute without: no real position attends to padding.
        published: Keys of the configuration that published models have and transformers' default
            lacks; the probe and new models have them too.
        scales_embeddings: Whether embeddings are multiplied by the root of the hidden size, and
            norms by 1 + their weight.
        ignored_on_load: Patterns of weights in published checkpoints that the model has no use for.
        renamed_on_load: Patterns of names of weights in published checkpoints, with the model's.
        token_runner: A faster way for a causal model to compute tokens of many sequences in one
            batch than its body as a whole; reads the model's current weights.
        window: Tokens that a token attends to at most, itself included, in the layers that limit
            them; None where no layer does.
        relative_macs: MACs of a layer for relative positions that attention scores apart: of each
            token, and of each forward pass.
        supports: Why a configuration of the family cannot be computed; None if it can.
        tiny: Keys of the configuration with which tests run, beside those of its size.
    """

    model_type: str
    language_modeling: LanguageModeling
    model_class: str
    body: str
    layers: str
    attention_projections: tuple[str, ...]
    position_wise: tuple[str, ...]
    embeddings: Mapping[str, str]
    first_layer_differs: bool
    layer_outputs: int
    masked_modules: tuple[str, ...]
    scales_embeddings: bool = False
    published: Mapping[str, Any] = field(default_factory=dict)
    config_from_scratch: (
        Callable[[ArchitectureRecipe, Mapping[str, int]], dict[str, Any]] | None
    ) = None
    head_transform: Callable[[Any, Tensor], Tensor] = lambda model, hidden: hidden
    students: Mapping[str, StudentMapping] = field(default_factory=dict)
    position_offset: Callable[[PretrainedConfig], int] = lambda config: 0
    adds_mask: bool = False
    ignored_on_load: tuple[str, ...] = ()
    renamed_on_load: Mapping[str, str] = field(default_factory=dict)
    token_runner: Callable[[Any], RunTokens] | None = None
    window: Callable[[PretrainedConfig], int | None] = window_by_layer_types
    relative_macs: Callable[[PretrainedConfig], tuple[int, int]] = lambda config: (0, 0)
    supports: Callable[[PretrainedConfig], str | None] = rotary_reason
    tiny: Mapping[str, Any] = field(default_factory=dict)

    @property
    def student_mappings(self) -> dict[str, StudentMapping]:
        """Families that a student can be of, the default first."""
        own = StudentMapping(with_layers, partial(copy_layers, self.layers))
        return {**self.students, self.model_type: own}

    def new_config(
        self,
        size: ArchitectureRecipe,
        vocabulary_size: int,
        sequence_length: int,
        special: Mapping[str, int],
        **settings: Any,
    ) -> PretrainedConfig:
        """The configuration of a new model.

        Args:
            sequence_length: The longest sequence that the model takes, in tokens.
            special: Ids of the special tokens end_of_text, pad, cls and sep.
            settings: Other keys.

        Raises:
            RecipeError: a size that the architecture does not have.
        """
        if size.num_key_value_heads is not None and not self._groups_heads:
            raise RecipeError(
                f"num_key_value_heads is {size.num_key_value_heads}, but in the architecture "
                f"{self.model_type} each head has its own keys and values. Leave it out."
            )
        own = self.config_from_scratch or partial(
            settings_from_scratch, self.model_type, self.language_modeling
        )
        config = AutoConfig.for_model(
            self.model_type,
            vocab_size=vocabulary_size,
            hidden_size=size.hidden_size,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            max_position_embeddings=sequence_length,
            **{**own(size, special), **self.published, **settings},
        )
        config.max_position_embeddings += self.position_offset(config)
        return config

    @property
    def _groups_heads(self) -> bool:
        """Whether several heads of queries may share keys and values."""
        return hasattr(AutoConfig.for_model(self.model_type), "num_key_value_heads")

    def layer_map(
        self, wanted: int | list[int] | None, teacher: PretrainedConfig, *, key: str
    ) -> list[int]:
        """The teacher layer of each student layer, by `layers_from`.

        Raises:
            RecipeError: layers that a student of this family cannot have.
        """
        layers = layers_from(wanted, teacher.num_hidden_layers, key=key)
        if self.first_layer_differs and (layers[0] != 0 or 0 in layers[1:]):
            raise RecipeError(
                f"{key} is {layers}, but the first layer of a {self.model_type} model has other "
                "parameters than those after it. Begin with layer 0, and name it once."
            )
        return layers

    def head(self, model: PreTrainedModel) -> Head:
        """The language modeling head, without the rows that pad its vocabulary."""
        projection, size = model.get_output_embeddings(), num_tokens(model)
        assert isinstance(projection, nn.Linear)
        weight, bias = projection.weight, projection.bias
        if size is not None and size < len(weight):
            weight, bias = weight[:size], None if bias is None else bias[:size]
        return Head(partial(self.head_transform, model), weight, bias, softcap_of(model.config))

    def num_positions(self, config: PretrainedConfig) -> int:
        """The longest sequence the model takes, in tokens."""
        return config.max_position_embeddings - self.position_offset(config)

    def run_body(self, model: PreTrainedModel, batch: Batch) -> Float[Tensor, "B T D"]:
        """Last hidden states, after the final norm and before the head."""
        body = model.get_submodule(self.body)
        positions = batch.position_ids + self.position_offset(model.config)
        arguments: dict[str, Any] = (
            {"use_cache": False} if self.language_modeling == "causal" else {}
        )
        masked = [body.get_submodule(name) for name in self.masked_modules]
        # Without a mask such a body looks for padding, which waits for the device.
        visible = batch.visible()[:, None] if masked else batch.attention_mask()
        with explicit_attention_mask(model.config), unmasked(masked):
            output = body(
                input_ids=batch.input_ids,
                attention_mask=self.mask_of(model, visible),
                position_ids=positions,
                **arguments,
            )
        return output.last_hidden_state

    def mask_of(
        self, model: PreTrainedModel, visible: Bool[Tensor, "B 1 _ T"] | None
    ) -> Tensor | None:
        """The mask as the body takes it: where a position attends to another, or what to add."""
        if visible is None or not self.adds_mask:
            return visible
        # Half of the lowest number: a score added to it stays finite.
        mask = torch.zeros_like(visible, dtype=model.dtype)
        return mask.masked_fill_(~visible, torch.finfo(model.dtype).min / 2)

    def run_rows(self, model: PreTrainedModel, batch: Batch, rows: Rows) -> Float[Tensor, "N D"]:
        """Last hidden states of the rows that count, in order.

        A compiled body computes all rows: their number changes, and each change would recompile it.
        So does a body with activation checkpointing, whose recomputation runs outside of this call.
        """
        numbers, shape = batch.row_numbers(rows), batch.input_ids.shape
        body = model.get_submodule(self.body)
        recomputed = getattr(self.layers_of(model)[0], "gradient_checkpointing", False)
        eager = body._compiled_call_impl is None and not recomputed
        few = eager and 2 * len(numbers) <= shape.numel()
        with compute_only_rows(self.last_position_wise(model) if few else (), numbers, shape):
            return self.run_body(model, batch).flatten(0, 1).index_select(0, numbers)

    def run_tokens(self, model: PreTrainedModel) -> RunTokens:
        """How a causal model computes tokens of many sequences in one batch."""
        if self.token_runner is not None:
            return self.token_runner(model)
        return partial(_run_body_on_tokens, model.get_submodule(self.body))

    def layers_of(self, model: PreTrainedModel) -> nn.ModuleList:
        """The layers of a model with any head, or none."""
        layers = model.base_model.get_submodule(self.layers.removeprefix(f"{self.body}."))
        assert isinstance(layers, nn.ModuleList)
        return layers

    def last_position_wise(self, model: PreTrainedModel) -> list[nn.Module]:
        """The position-wise modules of the last layer."""
        last = self.layers_of(model)[-1]
        return [last.get_submodule(name) for name in self.position_wise]


def attention_widths(config: PretrainedConfig) -> tuple[int, int]:
    """Widths of a layer's queries, and of its keys or values, whose heads may be fewer."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size


def hidden_state_size(config: PretrainedConfig) -> int:
    """The width D of last hidden states: OPT may project them to that of its embeddings."""
    return getattr(config, "word_embed_proj_dim", None) or config.hidden_size


def num_tokens(model: PreTrainedModel) -> int | None:
    """Number of token ids of a loaded model's tokenizer, gaps included; None without one.

    A vocabulary may be padded beyond it (50,257 tokens in 50,304 rows). Padding rows take part in
    no loss, no probability and no cache.
    """
    return getattr(model, "num_tokens", None)


def copy_layers(layers: str, teacher: Parameters, layer_map: Sequence[int]) -> dict[str, Tensor]:
    """Weights of a student of the same family: student layer i is teacher layer layer_map[i].

    Args:
        layers: Path of the list of layers.
    """
    pattern = re.compile(rf"^{re.escape(layers)}\.(\d+)\.")
    student = {}
    for name, tensor in teacher.items():
        match = pattern.match(name)
        if match is None:
            student[name] = tensor
            continue
        for new, old in enumerate(layer_map):
            if int(match.group(1)) == old:
                student[f"{layers}.{new}.{name[match.end() :]}"] = tensor
    return student


def evenly_spread(num_student_layers: int, num_teacher_layers: int) -> list[int]:
    """The teacher layer that initializes each student layer, evenly spread over the teacher's.

    For n student and L teacher layers, student layer i is teacher layer
    round(i * (L - 1) / (n - 1)), halves to even; n = 1 takes layer 0. For 6 of 12 that is
    0, 2, 4, 7, 9, 11, the map of 2019.
    """
    if num_student_layers == 1:
        return [0]
    step = (num_teacher_layers - 1) / (num_student_layers - 1)
    return [round(layer * step) for layer in range(num_student_layers)]


def layers_from(wanted: int | list[int] | None, num_teacher_layers: int, *, key: str) -> list[int]:
    """The layer map of the recipe's `key`; by default half the layers.

    Raises:
        RecipeError: a layer that the teacher does not have, or more layers than it has.
    """
    last, half = num_teacher_layers - 1, max(1, num_teacher_layers // 2)
    if isinstance(wanted, list):
        unknown = [layer for layer in wanted if not 0 <= layer <= last]
        if unknown:
            raise RecipeError(
                f"{key} names teacher layers {unknown}, but the teacher has layers 0 to {last}. "
                f"Choose from those, such as {evenly_spread(half, num_teacher_layers)}."
            )
        return wanted
    num_layers = wanted or half
    if num_layers > num_teacher_layers:
        raise RecipeError(
            f"{key} asks for {counted(num_layers, 'layer')}, but the teacher has "
            f"{num_teacher_layers}. Give a number from 1 to {num_teacher_layers}."
        )
    return evenly_spread(num_layers, num_teacher_layers)


def with_layers(config: PretrainedConfig, layer_map: Sequence[int]) -> PretrainedConfig:
    """A copy of the configuration with these layers alone; what it lists for each layer goes with
    them."""
    new = copy.deepcopy(config)
    for key in PER_LAYER:
        if listed := getattr(config, key, None):
            setattr(new, key, [listed[layer] for layer in layer_map])
    new.num_hidden_layers = len(layer_map)
    return new


def settings_from_scratch(
    model_type: str,
    language_modeling: LanguageModeling,
    size: ArchitectureRecipe,
    special: Mapping[str, int],
) -> dict[str, Any]:
    """Keys of a new model's configuration, as far as its architecture has them."""
    known = AutoConfig.for_model(model_type).to_dict()
    width = size.intermediate_size or 4 * size.hidden_size
    head_size = size.hidden_size // size.num_heads
    causal, end = language_modeling == "causal", special["end_of_text"]
    settings = {
        "intermediate_size": width,
        "ffn_dim": width,
        **dict.fromkeys(DROPOUTS, size.dropout),
        "bos_token_id": end if causal else special["cls"],
        "eos_token_id": end if causal else special["sep"],
        "pad_token_id": None if causal else special["pad"],
        "cls_token_id": special.get("cls"),
        "sep_token_id": special.get("sep"),
        "head_dim": head_size,
        "query_pre_attn_scalar": head_size,  # the scale of attention is its root
        "num_key_value_heads": size.num_key_value_heads or size.num_heads,
        "word_embed_proj_dim": size.hidden_size,
        "embedding_size": size.hidden_size,
        "tie_word_embeddings": True,
    }
    return {name: value for name, value in settings.items() if name in known}


def softcap_of(config: PretrainedConfig) -> float | None:
    """The softcap of a model's logits; None without one."""
    return getattr(config, "final_logit_softcapping", None)


def _run_body_on_tokens(
    body: Any, ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], attend: Attend
) -> Float[Tensor, "N D"]:
    """The body on one row of tokens, with its attention replaced by `attend`."""
    with attention_by(body.config, attend):
        output = body(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    return output.last_hidden_state[0]


@contextmanager
def compute_only_rows(
    modules: Iterable[nn.Module], numbers: Int[Tensor, " N"], shape: torch.Size
) -> Iterator[None]:
    """Within this context the modules compute these of the B * T rows, and zeros for the others.

    After attention a layer treats each position separately. If few rows of the last layer are read,
    as in masked language modeling, only they need its position-wise modules: three quarters of the
    layer's FLOPs.

    Args:
        modules: Position-wise modules from (B, T, *) to (B, T, *).
        shape: (B, T).
    """

    def select(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(each.flatten(0, 1).index_select(0, numbers) for each in arguments)

    def spread(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = output.new_zeros(shape.numel(), output.shape[-1])
        return rows.index_copy(0, numbers, output).unflatten(0, shape)

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(select))
            hooks.enter_context(module.register_forward_hook(spread))
        yield


@contextmanager
def unmasked(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context these modules get no mask."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(_drop_mask, with_kwargs=True))
        yield


def _drop_mask(
    module: nn.Module, arguments: tuple[Any, ...], settings: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return arguments, {**settings, "mask": None}
