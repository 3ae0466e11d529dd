"""A causal language model: generates text, by sampling, greedily or with beam search."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stillhouse.errors import DataError
from stillhouse.inference.arguments import generation_of, messages_of, texts_of
from stillhouse.inference.chat import ANSWER_TOKENS, Message, Prompt, conversation_text
from stillhouse.inference.engine.batcher import Batcher, Ended, Event, Failed, NewToken, Request
from stillhouse.inference.engine.interface import RequestBatcher
from stillhouse.inference.engine.kv_cache import SlottedModel
from stillhouse.inference.engine.text_stream import TextStream
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel
from stillhouse.models.special_ids import without_generation_defaults
from stillhouse.tokens.tokenizer import find_special_tokens

MAX_LENGTH = 4_096  # default limit of prompt and new tokens together
PROMPTS_AT_ONCE = 8  # prompts of a list whose keys and values are in memory together
MIN_SHARED = 32  # tokens that all prompts of a list begin with, to be prefilled once


class CausalLM(LoadedModel):
    """A model that continues text."""

    pipeline_task = "text-generation"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int = MAX_LENGTH,
    ) -> None:
        """Args: max_length: Limits `context`, and with it the memory of keys and values."""
        super().__init__(model, tokenizer)
        self.context = min(self.context, max_length)

    def generate(self, prompt: Any, **settings: Any) -> Any:
        """Texts that start with the prompt: a list of `num_return_sequences`; for a list of
        prompts, one such list per prompt. See `Generation` for the settings, such as
        `max_new_tokens=50`, `top_p=0.9`, `greedy=True`, `stop="\\n"` or `seed=1`.

        Raises:
            RecipeError: an unknown setting, with the closest known name, or an invalid value.
            DataError: the prompt and the new tokens do not fit the model's context.
        """
        prompts, single = texts_of(prompt, "prompt")
        ids = [self.prompt_ids(each) for each in prompts]
        continuations = self.continue_all(ids, generation_of(settings))
        texts = [
            [each + text for text in own] for each, own in zip(prompts, continuations, strict=True)
        ]
        return texts[0] if single else texts

    def chat(self, messages: Any, **settings: Any) -> list[str]:
        """Answers to a conversation in the model's chat template, or in a plain form if it has
        none: a list of `num_return_sequences`.

        Args:
            messages: A text, which is the user's, or a list of `{"role": ..., "content": ...}`.
            settings: As of `generate`; `max_new_tokens` is 256, or what the context leaves.

        Raises:
            RecipeError: messages of another form, or see `generate`.
            DataError: a chat template that cannot be used, or a conversation that is too long.
        """
        prompt = self.chat_prompt(messages_of(messages))
        settings = {"max_new_tokens": self.answer_tokens(prompt), **settings}
        return [text.strip() for text in self.continuations(prompt, generation_of(settings))]

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """The prompt of a conversation; raises DataError as `conversation_text` does."""
        text, stops = conversation_text(self.tokenizer, messages)
        if self.tokenizer.chat_template is None:
            return Prompt(self.prompt_ids(text), stops)
        return Prompt(tuple(self.encode(text)), stops)  # a template starts the document itself

    def answer_tokens(self, prompt: Prompt) -> int:
        """The number of tokens of an answer, where none is given."""
        return max(1, min(ANSWER_TOKENS, self.context - len(prompt.ids)))

    def text_prompt(self, text: str) -> Prompt:
        """A text as a prompt; see `prompt_ids`."""
        return Prompt(self.prompt_ids(text), ())

    def continuations(self, prompt: str | Prompt, settings: Generation) -> list[str]:
        """The generated texts without the prompt. An empty prompt starts a new document; what
        answers a conversation ends at its stops."""
        prompt = self.text_prompt(prompt) if isinstance(prompt, str) else prompt
        return self.continue_all([prompt.ids], prompt.with_stops(settings))[0]

    def continue_all(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: Generation,
        seeds: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """The continuations of each prompt, given as token ids, independent of other prompts.

        Args:
            seeds: One for each prompt; by default that of the settings for all.

        Raises:
            DataError: see `generate`.
            NotFiniteError: the model's logits are not finite.
        """
        number = settings.num_return_sequences
        shared = _common_start(prompts)
        slots = number * max(1, min(len(prompts), PROMPTS_AT_ONCE))
        batcher = self.batcher(slots + bool(shared))
        seeds = seeds or [settings.drawn_seed() for _ in prompts]
        requests = [
            Request(prompt, settings, seed) for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for request in requests:
            batcher.check(request)
        if settings.num_beams > 1:
            return [self._search_beams(request.prompt_ids, settings) for request in requests]
        if shared:
            batcher.share(shared)
        continuations = [[""] * number for _ in prompts]
        for texts, request in zip(continuations, requests, strict=True):
            batcher.submit(request, functools.partial(_collect, texts))
        batcher.run()
        return continuations

    def batcher(self, num_slots: int) -> RequestBatcher:
        """A batcher for this model that generates up to `num_slots` sequences at once."""
        return Batcher(self.slots(num_slots), self.tokenizer, self.end_ids)

    def slots(self, num_slots: int) -> SlottedModel:
        """The model with a KV cache of `num_slots` sequences; see `batcher`."""
        return SlottedModel(
            self.family, self.model, num_slots, self.unused_ids, max_length=self.context
        )

    def prompt_ids(self, prompt: str) -> tuple[int, ...]:
        """The tokens of a prompt, after the start token if the tokenizer adds one. An empty prompt
        becomes the model's start token, or else an end-of-text token: a new document.

        Raises:
            DataError: an empty prompt, and no token that starts or ends a text.
        """
        special, ids = find_special_tokens(self.tokenizer), self.encode(prompt)
        if special.document_start not in (special.end_of_text, None):
            return (special.document_start, *ids)
        if not ids:
            starts = (self.model.config.bos_token_id, special.document_start, *sorted(self.end_ids))
            known = range(self.num_ids)
            ids = [token for token in starts if token is not None and token in known][:1]
        if not ids:
            raise DataError(
                "The prompt is empty, and this model has no token that starts or ends a text; give "
                "a prompt."
            )
        return tuple(ids)

    @torch.inference_mode()
    def _search_beams(self, ids: Sequence[int], settings: Generation) -> list[str]:
        """Beam search by transformers."""
        inputs = torch.tensor([ids], device=self.model.device)
        with without_generation_defaults(self.model):
            output = self.model.generate(  # pyright: ignore[reportCallIssue]
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=settings.max_new_tokens,
                num_beams=settings.num_beams,
                num_return_sequences=settings.num_return_sequences,
                repetition_penalty=settings.repetition_penalty,
                do_sample=False,
                suppress_tokens=list(self.unused_ids) or None,
                renormalize_logits=bool(self.unused_ids),
            )
        return [self._text_of_new(ids, row[len(ids) :].tolist(), settings) for row in output]

    def _text_of_new(
        self, prompt_ids: Sequence[int], new_ids: Sequence[int], settings: Generation
    ) -> str:
        """The text of new tokens, up to a stop string."""
        stream = TextStream(self.tokenizer, prompt_ids, settings.stop)
        text = ""
        for token in new_ids:
            if stream.stopped or token in self.end_ids:
                break
            text += stream.push(token)
        return text + stream.finish()


def _common_start(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that several prompts begin with, without the last of any; none where few."""
    if len(prompts) < 2:
        return ()
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    shared = itertools.takewhile(lambda column: len(set(column)) == 1, columns)
    found = tuple(column[0] for column in shared)
    return found if len(found) >= MIN_SHARED else ()


def _collect(texts: list[str], event: Event) -> None:
    if isinstance(event, Failed):
        raise event.error
    if isinstance(event, NewToken | Ended):
        texts[event.sequence] += event.text
