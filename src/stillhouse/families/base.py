"""What differs between architectures, as data: one `Family` for each kind of model.

Models come from transformers; a family only knows where their parts are, how a student's
configuration follows from its teacher's, and which teacher parameter each student parameter starts
from. Adding an architecture is one file here.

Axes: B sequences, T positions, N rows that count or tokens, D hidden size (of a head beside H
heads), V vocabulary.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from stillhouse.families.attention import explicit_attention_mask
from stillhouse.families.position_wise import compute_only_rows
from stillhouse.families.settings import ArchitectureRecipe
from stillhouse.section import LanguageModeling, Rows
from stillhouse.tokens.batches import Batch

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Head:
    """The language modeling head, taken apart: logits = transform(hidden) @ weight.T + bias."""

    transform: Callable[[Tensor], Tensor]
    weight: Float[Tensor, "V D"]
    bias: Float[Tensor, " V"] | None


@runtime_checkable
class Attend(Protocol):
    """Attention of N tokens that need not belong together, each to those before it in its own
    sequence, whose keys and values are kept."""

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "N Hq D"],
        key_and_value: Float[Tensor, "N 2 H D"],
        scale: float,
    ) -> Float[Tensor, "N Hq D"]: ...


@runtime_checkable
class RunTokens(Protocol):
    """Hidden states of N tokens before the final norm; `ids` and `positions` say which they are."""

    def __call__(
        self, ids: Int[Tensor, " N"], positions: Int[Tensor, " N"], attend: Attend
    ) -> Float[Tensor, "N D"]: ...


@dataclass(frozen=True)
class StudentMapping:
    """How a student of one family follows from a teacher of another, or of the same."""

    config: Callable[[PretrainedConfig, int], PretrainedConfig]
    weights: Callable[[Parameters, Sequence[int]], dict[str, Tensor]]


@dataclass(frozen=True)
class Family:
    """One architecture. Attribute paths are relative to the transformers model with its head.

    `attention_projections` are relative to a layer: the modules, in the order they run, whose
    outputs side by side are its queries, keys and values. `position_wise` are those after its
    attention that treat each position by itself and hold matrices. `token_runner` gives how a
    causal model, as it is now, reads tokens of many sequences at once, each of which attends as it
    is told to.
    """

    model_type: str
    language_modeling: LanguageModeling
    model_class: str
    body: str
    layers: str
    attention_projections: tuple[str, ...]
    position_wise: tuple[str, ...]
    final_norm: str | None
    embeddings: Mapping[str, str]
    whole_head: Callable[[Any], Head]
    students: Mapping[str, StudentMapping]
    config_from_scratch: (
        Callable[[ArchitectureRecipe, int, int, Mapping[str, int]], PretrainedConfig] | None
    )
    position_offset: Callable[[PretrainedConfig], int] = lambda config: 0
    ignored_on_load: tuple[str, ...] = ()
    token_runner: Callable[[Any], RunTokens] | None = None

    def head(self, model: PreTrainedModel) -> Head:
        """The language modeling head, without the rows that pad its vocabulary."""
        head, size = self.whole_head(model), num_tokens(model)
        if size is None or size >= len(head.weight):
            return head
        bias = None if head.bias is None else head.bias[:size]
        return Head(head.transform, head.weight[:size], bias)

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
        with explicit_attention_mask(model.config):
            output = body(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask(),
                position_ids=positions,
                **arguments,
            )
        return output.last_hidden_state

    def run_rows(self, model: PreTrainedModel, batch: Batch, rows: Rows) -> Float[Tensor, "N D"]:
        """The last hidden states of the rows that count, in order.

        (A compiled body computes all of them: the number of rows changes, and it would be compiled
        anew each time. So does one that computes its activations a second time, out of sight.)
        """
        numbers, shape = batch.row_numbers(rows), batch.input_ids.shape
        body = model.get_submodule(self.body)
        recomputed = getattr(self.layers_of(model)[0], "gradient_checkpointing", False)
        seen = body._compiled_call_impl is None and not recomputed
        few = seen and 2 * len(numbers) <= shape.numel()
        with compute_only_rows(self.last_position_wise(model) if few else (), numbers, shape):
            return self.run_body(model, batch).flatten(0, 1).index_select(0, numbers)

    def layers_of(self, model: PreTrainedModel) -> nn.ModuleList:
        """The layers of a model, whatever its head."""
        place = self.layers.removeprefix(f"{self.body}.")
        layers = model.base_model.get_submodule(place)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def last_position_wise(self, model: PreTrainedModel) -> list[nn.Module]:
        """The row-wise modules of the last layer."""
        last = self.layers_of(model)[-1]
        return [last.get_submodule(name) for name in self.position_wise]

    def hidden_size(self, config: PretrainedConfig) -> int:
        return config.hidden_size


def num_tokens(model: PreTrainedModel) -> int | None:
    """How many token ids the tokenizer of a loaded model has, the gaps between them counted; None
    where nothing is known of one.

    A vocabulary may be padded beyond it (50,257 tokens in 50,304 rows). Those rows stand for no
    text: they take part in no loss, no probability and no cache.
    """
    return getattr(model, "num_tokens", None)


def renumber_layers(layers: str) -> Callable[[Parameters, Sequence[int]], dict[str, Tensor]]:
    """Weights of a student of the same family: student layer i is teacher layer layer_map[i]."""
    pattern = re.compile(rf"^{re.escape(layers)}\.(\d+)\.")

    def copy_layers(teacher: Parameters, layer_map: Sequence[int]) -> dict[str, Tensor]:
        student = {name: tensor for name, tensor in teacher.items() if not pattern.match(name)}
        for name, tensor in teacher.items():
            match = pattern.match(name)
            if match is None:
                continue
            for new, old in enumerate(layer_map):
                if int(match.group(1)) == old:
                    student[f"{layers}.{new}.{name[match.end() :]}"] = tensor
        return student

    return copy_layers


def with_num_layers(key: str) -> Callable[[PretrainedConfig, int], PretrainedConfig]:
    """Configuration of a student that differs from its teacher in depth alone."""

    def config_for(teacher: PretrainedConfig, num_layers: int) -> PretrainedConfig:
        config = copy.deepcopy(teacher)
        setattr(config, key, num_layers)
        return config

    return config_for


def projection(module: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the layer that projects onto the vocabulary."""
    assert isinstance(module, nn.Linear)
    return module.weight, module.bias
