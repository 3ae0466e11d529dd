"""The models of a server, and the way from requests to their output."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from jinja2 import TemplateError

from stillhouse.errors import DataError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import (
    Batcher,
    Ended,
    Event,
    Failed,
    NewToken,
    PrefillDone,
    Reason,
    Request,
    ScoredToken,
)
from stillhouse.inference.engine.text_stream import TokenHealer
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.quantization import Precision
from stillhouse.serving.config import Limits
from stillhouse.serving.schemas import MAX_PROMPTS, APIError

StreamEvent = PrefillDone | NewToken | Ended

# Model names that clients send where their user gave none: huggingface_hub's, and the one of Text
# Generation Inference.
PLACEHOLDER_NAMES = (None, "", "dummy", "tgi")


@dataclass
class GeneratedSequence:
    """One generated text, as far as it is known."""

    text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)  # where each token's text begins
    reason: Reason | None = None

    def add(self, event: NewToken | Ended) -> None:
        """Append an event's text and token."""
        if isinstance(event, NewToken):
            self.tokens.append(event.token)
            self.text_offsets.append(len(self.text))
        else:
            self.reason = event.reason
        self.text += event.text


@dataclass
class RequestOutput:
    """The sequences generated for one prompt, and the prompt's tokens where they were requested."""

    sequences: list[GeneratedSequence]
    prompt: tuple[ScoredToken, ...] = ()


class ServedModel:
    """A model, and the thread that all models of the server run in."""

    def __init__(
        self,
        name: str,
        loaded: LoadedModel,
        limits: Limits,
        worker: Worker,
        *,
        precision: Precision = "fp32",
        limitations: str = "",
    ) -> None:
        """Args: limitations: The section of the model card on limits and bias."""
        self.name = name
        self.loaded = loaded
        self.created = int(time.time())
        self.limits = limits
        self.precision: Precision = precision
        self.limitations = limitations
        self.is_drafting = False
        self._worker = worker
        self.batcher: Batcher | None = None
        if isinstance(loaded, CausalLM):
            self.batcher = loaded.batcher(limits.num_slots)
            worker.add(self.batcher)

    @property
    def causal_lm(self) -> CausalLM:
        """The model, where it generates text.

        Raises:
            APIError: 400, it does not.
        """
        if not isinstance(self.loaded, CausalLM):
            raise APIError(400, f"{self.name} does not generate text.")
        return self.loaded

    @cached_property
    def token_healer(self) -> TokenHealer:
        return TokenHealer(self.loaded.tokenizer)

    async def run(self, work: Any, *arguments: Any) -> Any:
        """Run `work` in the model's thread, between two steps of generation."""
        return await asyncio.wrap_future(self._worker.call(partial(work, *arguments)))

    async def chat_prompt(
        self, messages: list[dict[str, str]]
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The token ids of a conversation, up to where its answer starts, and the stop strings of
        that answer.

        Raises:
            APIError: 400, the model does not generate text.
            DataError: The model's own template rejects the conversation, or cannot be used.
        """
        return await self.run(_apply_chat_template, self.causal_lm, messages)

    async def embed(self, inputs: Sequence[str | list[int]]) -> tuple[np.ndarray, int]:
        """Embeddings (N, D) of N texts, each given as text or token ids, and their number of
        tokens. One batch at a time, so that steps of generation run in between."""
        loaded = self.loaded

        def embed_batch(batch: Sequence[str | list[int]]) -> tuple[np.ndarray, int]:
            texts = [each if isinstance(each, str) else loaded.text_of(each) for each in batch]
            return loaded.embed(texts), sum(len(loaded.encode(text)) for text in texts)

        batches = [
            await self.run(embed_batch, inputs[start : start + MAX_PROMPTS])
            for start in range(0, len(inputs), MAX_PROMPTS)
        ]
        return np.concatenate([rows for rows, _ in batches]), sum(count for _, count in batches)

    def requests(
        self, prompts: Sequence[tuple[int, ...]], settings: Generation, **options: Any
    ) -> list[Request]:
        """One request per prompt, each with its own seed; `options` are fields of `Request`."""
        seed = settings.drawn_seed()
        options = {"max_seconds": self.limits.request_timeout, **options}
        return [
            Request(ids, settings, (seed + number) % 2**64, **options)
            for number, ids in enumerate(prompts)
        ]

    def _admit(self, requests: Sequence[Request]) -> Batcher:
        """The batcher, if it can generate these requests and its queue has room for them.

        Raises:
            APIError: 400 or 429.
            DataError: A prompt that does not fit the model.
        """
        batcher = self.batcher
        assert batcher is not None, "routes ask for causal_lm first"
        for request in requests:
            batcher.check(request)
        limit = self.limits.queue + self.limits.num_slots
        if len(requests) > limit:
            raise APIError(
                400, f"{len(requests)} prompts exceed the {limit} that this server can hold."
            )
        if batcher.num_waiting + len(requests) > self.limits.queue + batcher.model.num_free:
            raise APIError(429, f"The queue is full ({batcher.num_waiting} waiting); retry later.")
        return batcher

    async def events(
        self, requests: Sequence[Request]
    ) -> AsyncGenerator[tuple[int, StreamEvent], None]:
        """The events of these requests as they come, each with the number of its request. Closing
        the generator cancels the requests.

        Raises:
            APIError: 400 or 429.
            StillhouseError: A request that cannot be answered.
        """
        batcher = self._admit(requests)
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def on_event(number: int, event: Event) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (number, event))

        handles = []
        try:
            for number, request in enumerate(requests):
                handles.append(self._worker.submit(batcher, request, partial(on_event, number)))
            num_left = sum(request.settings.num_return_sequences for request in requests)
            while num_left:
                number, event = await queue.get()
                if isinstance(event, Failed):
                    raise event.error
                num_left -= isinstance(event, Ended)
                yield number, event
        finally:
            for handle in handles:
                handle.cancel()

    async def generate(self, requests: Sequence[Request]) -> list[RequestOutput]:
        """The whole output of each request; raises as `events` does."""
        outputs = [
            RequestOutput([GeneratedSequence() for _ in range(each.settings.num_return_sequences)])
            for each in requests
        ]
        async with aclosing(self.events(requests)) as events:
            async for number, event in events:
                if isinstance(event, PrefillDone):
                    outputs[number].prompt = event.tokens
                else:
                    outputs[number].sequences[event.sequence].add(event)
        return outputs


def _apply_chat_template(
    lm: LoadedModel, messages: list[dict[str, str]]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The token ids of a conversation, up to where its answer starts, and the stop strings of that
    answer.

    Raises:
        DataError: The model's own template rejects the conversation, or cannot be used.
    """
    if lm.tokenizer.chat_template is None:
        turns = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        text = "\n\n".join([*turns, "Assistant:"])
        return tuple(lm.encode(text)), ("\n\nUser:", "\n\nSystem:")
    try:
        text = lm.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise DataError(f"The model's chat template rejects the messages: {error}.") from error
    except Exception as error:  # the template is a program of the model's folder
        raise DataError(
            f"The model's chat template fails ({type(error).__name__}: {error}). Request "
            "completions instead, or correct chat_template in the model's folder."
        ) from error
    assert isinstance(text, str)
    return tuple(lm.encode(text)), ()


class ServedModels(tuple[ServedModel, ...]):
    """The models of a server, in the order that they were given."""

    __slots__ = ()

    def named(self, name: str | None, task: str | None = None) -> ServedModel:
        """The model of this name. A placeholder (see `PLACEHOLDER_NAMES`) selects the first model
        for the pipeline task, or else the first of all.

        Raises:
            APIError: 404, with the available names.
        """
        for model in self:
            if model.name == name:
                return model
        if name in PLACEHOLDER_NAMES:
            return next((each for each in self if each.loaded.pipeline_task == task), self[0])
        names = ", ".join(model.name for model in self)
        raise APIError(404, f"Model {name!r} not found; available: {names}.", param="model")
