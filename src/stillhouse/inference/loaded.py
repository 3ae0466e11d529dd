"""A model with its tokenizer, ready for inference: what all kinds of models have in common.

`stillhouse.inference.load.load` returns a `CausalLM`, a `MaskedLM` or a `TaskModel`; each has the
methods that its model supports. Results have the shapes of transformers' pipelines.

Axes: T tokens of the text, D hidden size.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.data.text import check_whole_characters
from stillhouse.errors import DataError, ModelError
from stillhouse.families.registry import family_of
from stillhouse.inference.arguments import checked_arguments, texts_of
from stillhouse.inference.engine.batcher import check_token_ids
from stillhouse.inference.engine.text_stream import REPLACEMENT_CHARACTER
from stillhouse.models.special_ids import end_token_ids
from stillhouse.tokens.tokenizer import find_special_tokens, num_ids, unused_ids


class UnsupportedError(ModelError, AttributeError):
    """The model is of a kind that does not have this method."""


class OtherKind:
    """A method or attribute that only other kinds of models have.

    Raises:
        UnsupportedError: on access; it is an AttributeError, so `hasattr` works.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, model: "LoadedModel", kind: "type[LoadedModel]") -> Any:
        raise UnsupportedError(
            f"This model is for {kind.pipeline_task} ({kind.__name__}); it has no {self._name!r}. "
            "Load a model of the kind that has it."
        )


class LoadedModel:
    """A model and its tokenizer. Abstract; see `CausalLM`, `MaskedLM` and `TaskModel`.

    Attributes:
        pipeline_task: The task in the terms of transformers' pipelines.
        context: The longest sequence the model takes, in tokens.
        num_parameters: Counted before quantization, which hides some of them from PyTorch.
    """

    pipeline_task: str
    generate = OtherKind()
    chat = OtherKind()
    chat_prompt = OtherKind()
    answer_tokens = OtherKind()
    text_prompt = OtherKind()
    continue_all = OtherKind()
    continuations = OtherKind()
    prompt_ids = OtherKind()
    slots = OtherKind()
    batcher = OtherKind()
    fill_mask = OtherKind()
    task = OtherKind()
    predictions = OtherKind()
    predictions_and_cuts = OtherKind()
    classify = OtherKind()
    label_scores = OtherKind()
    answer = OtherKind()
    tag = OtherKind()
    embed = OtherKind()

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self.family = family_of(model.config)
        self.model = model
        self.tokenizer = tokenizer
        self.num_parameters = model.num_parameters()
        self.context = self.family.num_positions(model.config)
        self._token_texts: dict[int, str] = {}

    @cached_property
    def num_ids(self) -> int:
        """One more than the tokenizer's highest id; reading it takes milliseconds."""
        return num_ids(self.tokenizer)

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """The id of each token; reading them takes milliseconds."""
        return self.tokenizer.get_vocab()

    @cached_property
    def unused_ids(self) -> tuple[int, ...]:
        """Rows of the embedding that no token has."""
        return unused_ids(self.tokenizer, self.model.config.vocab_size)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text. If the model's files name only ids outside the vocabulary,
        like transformers' default for a small vocabulary, the tokenizer's own."""
        named, own = end_token_ids(self.model), find_special_tokens(self.tokenizer).end_of_text
        known = named.intersection(range(self.num_ids))
        return known if known or not named or own is None else frozenset({own})

    @checked_arguments
    def features(self, text: Any) -> Any:
        """Last hidden states of a text's tokens, including the special tokens of encoders: a
        float32 tensor (T, D) on the CPU; for a list of texts, a list of them.

        Raises:
            DataError: a text has no tokens, or more than the model's context.
        """
        texts, single = texts_of(text, "text")
        states = [self._features(each) for each in texts]
        return states[0] if single else states

    @torch.inference_mode()
    def _features(self, text: str) -> Float[Tensor, "T D"]:
        if self.family.language_modeling == "masked":
            ids = self.tokenizer(text, add_special_tokens=True)["input_ids"]
        else:
            ids = self.encode(text)
        if not 0 < len(ids) <= self.context:
            raise DataError(f"The text has {len(ids)} tokens; the model takes 1 to {self.context}.")
        body = self.model.base_model
        output = body(input_ids=torch.tensor([ids], device=self.model.device))
        return output.last_hidden_state[0].float().cpu()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens around it.

        Raises:
            DataError: a lone surrogate, as in input that is not valid UTF-8.
        """
        check_whole_characters(text, "The text")
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return cast(str, self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of token ids from outside.

        Raises:
            DataError: unknown ids.
        """
        check_token_ids(ids, self.num_ids)
        return self.decode(ids)

    def token_text(self, token: int) -> str:
        """The text of one token; for a token that is not a whole character, its vocabulary name."""
        if token not in self._token_texts:
            text = cast(str, self.tokenizer.decode([token]))
            name = cast(str, self.tokenizer.convert_ids_to_tokens(token))
            self._token_texts[token] = name if REPLACEMENT_CHARACTER in text else text
        return self._token_texts[token]
