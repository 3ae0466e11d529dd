"""The models of a server, and the way from requests to their output."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np

from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.chat import Message, Prompt
from stillhouse.inference.engine.batcher import (
    Ended,
    Event,
    Failed,
    NewToken,
    PrefillDone,
    Reason,
    Request,
    ScoredToken,
)
from stillhouse.inference.engine.interface import RequestBatcher
from stillhouse.inference.engine.text_stream import TokenHealer
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel
from stillhouse.inference.quantization import AtPrecision
from stillhouse.inference.task_model import TaskModel
from stillhouse.inspection.collect import Inspection
from stillhouse.serving.config import Limits
from stillhouse.serving.schemas import MAX_PROMPTS, APIError

StreamEvent = PrefillDone | NewToken | Ended

# Model names that clients send where their user gave none: huggingface_hub's, and the one of Text
# Generation Inference.
PLACEHOLDER_NAMES = (None, "", "dummy", "tgi")


@dataclass
class GeneratedSequence:
    """One generated text, as far as it is known.

    Attributes:
        index: Numbered through the sequences of all prompts.
        is_answer: Of a conversation: the text starts with its first word.
        new_text: What the last event added to the text.
        text_offsets: Where each token's text begins.
    """

    index: int
    is_answer: bool
    text: str = ""
    new_text: str = ""
    tokens: list[ScoredToken] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)
    reason: Reason | None = None

    def add(self, event: NewToken | Ended) -> None:
        """Append an event's text and token."""
        if isinstance(event, NewToken):
            self.tokens.append(event.token)
            self.text_offsets.append(len(self.text))
        else:
            self.reason = event.reason
        self.new_text = event.text.lstrip() if self.is_answer and not self.text else event.text
        self.text += self.new_text


@dataclass
class RequestOutput:
    """A request, the sequences generated for it, the prompt's tokens where they were requested, and
    when they were in the KV cache (`time.perf_counter_ns`)."""

    request: Request
    sequences: list[GeneratedSequence]
    prompt: tuple[ScoredToken, ...] = ()
    prefilled: int = 0

    def add(self, event: StreamEvent) -> None:
        """Take in what an event says."""
        if isinstance(event, PrefillDone):
            self.prompt, self.prefilled = event.tokens, time.perf_counter_ns()
        else:
            self.sequences[event.sequence].add(event)


class ServedModel:
    """A model, and the thread that all models of the server run in."""

    def __init__(
        self,
        name: str,
        found: AtPrecision,
        limits: Limits,
        worker: Worker,
        *,
        limitations: str = "",
        inspection: Inspection | None = None,
    ) -> None:
        """Args:
        limitations: The section of the model card on limits and bias.
        inspection: Its neurons, where they were collected.
        """
        self.name = name
        self.loaded: LoadedModel = found.model
        self.created = int(time.time())
        self.limits = limits
        self.precision, self.size_bytes = found.precision, found.size_bytes
        self.file_format = "safetensors" if found.file is None else "gguf"
        self.limitations = limitations
        self.inspection = inspection
        self.is_drafting = False
        self._worker = worker
        self.batcher: RequestBatcher | None = None
        if isinstance(self.loaded, CausalLM):
            self.batcher = self.loaded.batcher(limits.num_slots)
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

    @property
    def language_model(self) -> LoadedModel:
        """The model, where it predicts tokens.

        Raises:
            APIError: 400, it does not.
        """
        if isinstance(self.loaded, TaskModel):
            raise APIError(
                400,
                f"{self.name} is a model for {self.loaded.pipeline_task}; it predicts no tokens.",
            )
        return self.loaded

    @cached_property
    def token_healer(self) -> TokenHealer:
        return TokenHealer(self.loaded.tokenizer)

    async def run(self, work: Any, *arguments: Any) -> Any:
        """Run `work` in the model's thread, between two steps of generation."""
        return await asyncio.wrap_future(self._worker.call(partial(work, *arguments)))

    def chat_prompt(self, messages: Sequence[Message]) -> Prompt:
        """A conversation as a prompt. For `run`.

        Raises:
            APIError: 400, the model does not generate text.
            DataError: The model's own template rejects the conversation, or cannot be used.
        """
        return self.causal_lm.chat_prompt(messages)

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

    def prepare(
        self,
        prompts: Sequence[tuple[int, ...]],
        settings: Generation,
        *,
        is_answer: bool = False,
        **options: Any,
    ) -> list[RequestOutput]:
        """One request per prompt, each with its own seed, and no output yet.

        Args:
            is_answer: Prompts are conversations.
            options: Fields of `Request`.
        """
        seed, number = settings.drawn_seed(), settings.num_return_sequences
        options = {"max_seconds": self.limits.request_timeout, **options}
        return [
            RequestOutput(
                Request(ids, settings, (seed + at) % 2**64, **options),
                [GeneratedSequence(at * number + each, is_answer) for each in range(number)],
            )
            for at, ids in enumerate(prompts)
        ]

    def _admit(self, requests: Sequence[Request]) -> RequestBatcher:
        """The batcher, if it can generate these requests and its queue has room for them.

        Raises:
            APIError: 400 or 429.
            DataError: A prompt that does not fit the model.
        """
        batcher = self.batcher
        assert batcher is not None, "routes ask for causal_lm first"
        for request in requests:
            batcher.check(request)
        limit = self.limits.queue + batcher.num_slots
        if len(requests) > limit:
            raise APIError(
                400, f"{len(requests)} prompts exceed the {limit} that this server can hold."
            )
        if batcher.num_waiting + len(requests) > self.limits.queue + batcher.num_free:
            raise APIError(429, f"The queue is full ({batcher.num_waiting} waiting); retry later.")
        return batcher

    async def events(
        self, outputs: Sequence[RequestOutput]
    ) -> AsyncGenerator[tuple[RequestOutput, StreamEvent], None]:
        """Run the requests; the events as they come, each with the output it was added to. Closing
        the generator cancels the requests.

        Raises:
            APIError: 400 or 429.
            StillhouseError: A request that cannot be answered.
        """
        batcher = self._admit([output.request for output in outputs])
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[RequestOutput, Event]] = asyncio.Queue()

        def on_event(output: RequestOutput, event: Event) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (output, event))

        handles = []
        try:
            for each in outputs:  # where one is refused, those before it are canceled
                handle = self._worker.submit(batcher, each.request, partial(on_event, each))
                handles.append(handle)
            num_left = sum(len(output.sequences) for output in outputs)
            while num_left:
                output, event = await queue.get()
                if isinstance(event, Failed):
                    raise event.error
                num_left -= isinstance(event, Ended)
                output.add(event)
                yield output, event
        finally:
            for handle in handles:
                handle.cancel()

    async def generate(self, outputs: Sequence[RequestOutput]) -> None:
        """Run the requests to their end; raises as `events` does."""
        async with aclosing(self.events(outputs)) as events:
            async for _ in events:
                pass


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
