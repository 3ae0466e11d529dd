"""OpenAI's dialect: completions, chat completions, embeddings, models."""

import base64
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter
from jinja2 import TemplateError
from starlette.responses import JSONResponse, Response

from stillhouse.errors import DataError
from stillhouse.inference.engine.batcher import Ended, PrefillDone, Request, ScoredToken
from stillhouse.inference.engine.text_stream import REPLACEMENT_CHARACTER, TextStream
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel
from stillhouse.serving.depends import Catalog, Client, Served
from stillhouse.serving.hosted import Answer, Continuation, Hosted
from stillhouse.serving.limits import PROMPTS
from stillhouse.serving.openai_schemas import ChatBody, CompletionBody, EmbeddingsBody
from stillhouse.serving.problems import Problem
from stillhouse.serving.streaming import ANSWERS, event_stream

router = APIRouter(prefix="/v1", tags=["OpenAI"])
hub_router = APIRouter(tags=["Hugging Face"])

Finish = {"stop": "stop", "length": "length", "time": "length"}


@router.get("/models")
async def list_models(catalog: Catalog) -> dict[str, Any]:
    """The models that are served."""
    return {"object": "list", "data": [_described(hosted) for hosted in catalog.models]}


@router.get("/models/{model_id:path}")
async def describe_model(model_id: str, catalog: Catalog) -> dict[str, Any]:
    """One model."""
    return _described(catalog.named(model_id))


def _described(hosted: Hosted) -> dict[str, Any]:
    return {
        "id": hosted.name,
        "object": "model",
        "created": hosted.created,
        "owned_by": "stillhouse",
        "max_model_len": hosted.loaded.context,
    }


@router.post("/completions", responses=ANSWERS)
async def complete(body: CompletionBody, catalog: Catalog, served: Served) -> Response:
    """Continue prompts, as text or as token ids."""
    hosted = catalog.named(body.model, "text-generation")
    hosted.must_continue_text()
    prompts = [_ids(hosted.loaded, prompt) for prompt in _prompts(body.prompt)]
    settings = body.generation(body.max_tokens)
    if body.stream and body.echo and body.logprobs is not None:
        raise Problem(400, "echo with logprobs cannot be streamed; drop stream.", param="stream")
    seed = settings.drawn_seed()
    requests = [
        Request(
            ids,
            settings,
            (seed + number) % 2**64,
            body.logprobs,
            echo=body.echo and body.logprobs is not None,
            max_seconds=hosted.limits.seconds,
        )
        for number, ids in enumerate(prompts)
    ]
    form = _CompletionForm(hosted, body, prompts)
    served.count(hosted, requests)
    if body.stream:
        return await event_stream(form.streamed(requests), served)
    answers = await served.unless_gone(hosted.answers(requests))
    return JSONResponse(form.whole(answers))


class _CompletionForm:
    """The shape of a completion."""

    def __init__(
        self, hosted: Hosted, body: CompletionBody, prompts: Sequence[tuple[int, ...]]
    ) -> None:
        self._hosted, self._body, self._prompts = hosted, body, prompts
        self._frame = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": hosted.name,
        }

    def whole(self, answers: Sequence[Answer]) -> dict[str, Any]:
        choices, num_new = [], 0
        for number, answer in enumerate(answers):
            before = self._hosted.loaded.decode(self._prompts[number]) if self._body.echo else ""
            for sequence, each in enumerate(answer.continuations):
                num_new += len(each.tokens)
                choices.append(
                    {
                        "index": number * self._body.n + sequence,
                        "text": before + each.text,
                        "logprobs": self._log_probabilities(answer, each, before),
                        "finish_reason": Finish[each.reason or "stop"],
                    }
                )
        return {**self._frame, "choices": choices, "usage": self._usage(num_new)}

    async def streamed(self, requests: Sequence[Request]) -> AsyncGenerator[str, None]:
        """One event a token, the last of each sequence with why it ended."""
        num_new, offsets = 0, [0] * (len(requests) * self._body.n)
        async with aclosing(self._hosted.events(requests)) as events:
            async for number, event in events:
                if isinstance(event, PrefillDone):
                    if self._body.echo:
                        text = self._hosted.loaded.decode(self._prompts[number])
                        for sequence in range(self._body.n):
                            index = number * self._body.n + sequence
                            offsets[index] += len(text)
                            yield self._chunk(index, text, None, None)
                    continue
                index = number * self._body.n + event.sequence
                reason, likely = None, None
                if isinstance(event, Ended):
                    reason = Finish[event.reason]
                else:
                    num_new += 1
                    if self._body.logprobs is not None:
                        likely = self._as_lists([event.token], [offsets[index]])
                offsets[index] += len(event.text)
                if event.text or reason or likely:
                    yield self._chunk(index, event.text, likely, reason)
        options = self._body.stream_options
        if options is not None and options.include_usage:
            yield json.dumps({**self._frame, "choices": [], "usage": self._usage(num_new)})
        yield "[DONE]"

    def _chunk(self, index: int, text: str, likely: Any, reason: str | None) -> str:
        choice = {"index": index, "text": text, "logprobs": likely, "finish_reason": reason}
        return json.dumps({**self._frame, "choices": [choice]}, ensure_ascii=False)

    def _usage(self, num_new: int) -> dict[str, int]:
        num_prompt = sum(map(len, self._prompts))
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_new,
            "total_tokens": num_prompt + num_new,
        }

    def _log_probabilities(
        self, answer: Answer, continuation: Continuation, before: str
    ) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        decoded = TextStream(self._hosted.loaded.tokenizer, ())
        offsets, place = [], 0
        for token in answer.prompt:
            offsets.append(place)
            place += len(decoded.push(token.id))  # a part of a character has no length of its own
        place = len(before)
        for text in continuation.texts:
            offsets.append(place)
            place += len(text)
        return self._as_lists([*answer.prompt, *continuation.tokens], offsets)

    def _as_lists(self, tokens: Sequence[ScoredToken], offsets: Sequence[int]) -> dict[str, Any]:
        name = self._hosted.loaded.token_text
        return {
            "tokens": [name(token.id) for token in tokens],
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [_likeliest(name, token) for token in tokens],
            "text_offset": list(offsets),
        }


def _likeliest(name: Any, token: ScoredToken) -> dict[str, float] | None:
    """The likeliest tokens and the chosen one, by their texts: where two tokens have the same text
    (parts of characters), the likelier counts, but the chosen one always does."""
    if token.log_probability is None:
        return None
    found: dict[str, float] = {}
    for id, value in token.top_logprobs:
        found.setdefault(name(id), value)
    return found | {name(token.id): token.log_probability}


@router.post("/chat/completions", responses=ANSWERS)
async def chat(body: ChatBody, catalog: Catalog, served: Served) -> Response:
    """Answer a conversation. A model without a chat template of its own gets a plain one: the
    messages as paragraphs, each after its speaker's name."""
    return await _answer(catalog.named(body.model, "text-generation"), body, served)


# Where `huggingface_hub.InferenceClient` finds it, given the address of one of several models.
@hub_router.post("/models/{model_id:path}/v1/chat/completions", responses=ANSWERS)
async def chat_by(model_id: str, body: ChatBody, catalog: Catalog, served: Served) -> Response:
    """The same, by the model of the path."""
    return await _answer(catalog.named(model_id), body, served)


async def _answer(hosted: Hosted, body: ChatBody, served: Client) -> Response:
    if hosted.batcher is None:
        raise Problem(400, f"{hosted.name} does not continue text, so it cannot chat.")
    if body.top_logprobs and not body.logprobs:
        raise Problem(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
    messages = [message.for_template() for message in body.messages]
    ids, ends = await hosted.do(_conversation, hosted.loaded, messages)
    room = hosted.loaded.context - len(ids)
    wanted = body.max_completion_tokens or body.max_tokens or min(room, 256)
    settings = body.generation(max(wanted, 1))
    settings = Generation(**{**vars(settings), "stop": (*settings.stop, *ends)})
    top_logprobs = body.top_logprobs if body.logprobs else None
    request = Request(
        ids, settings, settings.drawn_seed(), top_logprobs, max_seconds=hosted.limits.seconds
    )
    form = _ChatForm(hosted, body, len(ids))
    served.count(hosted, [request])
    if body.stream:
        return await event_stream(form.streamed(request), served)
    (answer,) = await served.unless_gone(hosted.answers([request]))
    return JSONResponse(form.whole(answer))


def _conversation(
    loaded: LoadedModel, messages: list[dict[str, str]]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The tokens of a conversation, ready for its answer, and the texts that end that answer."""
    if loaded.tokenizer.chat_template is not None:
        try:
            text = loaded.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise DataError(f"The model's own chat template refuses this: {error}.") from error
        except Exception as error:  # it is a program of the model's folder
            raise DataError(
                f"The model's own chat template cannot be used ({type(error).__name__}: {error}). "
                "Ask for completions instead, or correct chat_template in its folder."
            ) from error
        assert isinstance(text, str)
        return tuple(loaded.encode(text)), ()
    said = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
    return tuple(loaded.encode("\n\n".join([*said, "Assistant:"]))), ("\n\nUser:", "\n\nSystem:")


class _ChatForm:
    """The shape of a chat completion."""

    def __init__(self, hosted: Hosted, body: ChatBody, num_prompt: int) -> None:
        self._hosted, self._body, self._num_prompt = hosted, body, num_prompt
        self._frame = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": hosted.name,
        }

    def whole(self, answer: Answer) -> dict[str, Any]:
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": each.text.strip()},
                "logprobs": self._log_probabilities(each.tokens),
                "finish_reason": Finish[each.reason or "stop"],
            }
            for number, each in enumerate(answer.continuations)
        ]
        usage = self._usage(sum(len(each.tokens) for each in answer.continuations))
        return {**self._frame, "object": "chat.completion", "choices": choices, "usage": usage}

    async def streamed(self, request: Request) -> AsyncGenerator[str, None]:
        num_new, begun = 0, [False] * self._body.n
        async with aclosing(self._hosted.events([request])) as events:
            async for _, event in events:
                if isinstance(event, PrefillDone):
                    for number in range(self._body.n):
                        yield self._chunk(number, {"role": "assistant", "content": ""}, None, None)
                    continue
                text = event.text if begun[event.sequence] else event.text.lstrip()
                begun[event.sequence] |= bool(text)
                reason, likely = None, None
                if isinstance(event, Ended):
                    reason = Finish[event.reason]
                else:
                    num_new += 1
                    likely = self._log_probabilities([event.token])
                if text or reason or likely:
                    delta = {"content": text} if text else {}
                    yield self._chunk(event.sequence, delta, likely, reason)
        options = self._body.stream_options
        if options is not None and options.include_usage:
            frame = {**self._frame, "object": "chat.completion.chunk"}
            yield json.dumps({**frame, "choices": [], "usage": self._usage(num_new)})
        yield "[DONE]"

    def _chunk(self, index: int, delta: dict[str, Any], likely: Any, reason: str | None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": likely, "finish_reason": reason}
        frame = {**self._frame, "object": "chat.completion.chunk"}
        return json.dumps({**frame, "choices": [choice]}, ensure_ascii=False)

    def _usage(self, num_new: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": num_new,
            "total_tokens": self._num_prompt + num_new,
        }

    def _log_probabilities(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return {
            "content": [
                self._described(token.id, token.log_probability)
                | {"top_logprobs": [self._described(*pair) for pair in token.top_logprobs]}
                for token in tokens
            ]
        }

    def _described(self, id: int, log_probability: float | None) -> dict[str, Any]:
        loaded = self._hosted.loaded
        text = loaded.token_text(id)
        is_part = REPLACEMENT_CHARACTER in loaded.decode([id])  # of a character
        octets = None if is_part else list(text.encode())
        return {"token": text, "logprob": log_probability, "bytes": octets}


@router.post("/embeddings")
async def embed(body: EmbeddingsBody, catalog: Catalog, served: Served) -> Response:
    """Vectors of length one, by a model that was made to give them."""
    hosted = catalog.named(body.model, "feature-extraction")
    given = _prompts(body.input)
    vectors, num_tokens = await served.unless_gone(_embedded(hosted, given))
    if body.dimensions is not None:
        if body.dimensions > vectors.shape[1]:
            raise Problem(
                400,
                f"dimensions is {body.dimensions}; the vectors have {vectors.shape[1]}.",
                param="dimensions",
            )
        vectors = vectors[:, : body.dimensions]
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    data = [
        {"object": "embedding", "index": number, "embedding": _vector(row, body.encoding_format)}
        for number, row in enumerate(vectors.astype("<f4"))
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return JSONResponse({"object": "list", "data": data, "model": hosted.name, "usage": usage})


async def _embedded(hosted: Hosted, given: Sequence[str | list[int]]) -> tuple[np.ndarray, int]:
    """The vectors, and how many tokens the texts have; some texts at a time, so that others' steps
    come in between."""
    parts = [
        await hosted.do(_embedded_at_once, hosted.loaded, given[first : first + PROMPTS])
        for first in range(0, len(given), PROMPTS)
    ]
    return np.concatenate([vectors for vectors, _ in parts]), sum(count for _, count in parts)


def _embedded_at_once(
    loaded: LoadedModel, given: Sequence[str | list[int]]
) -> tuple[np.ndarray, int]:
    texts = [each if isinstance(each, str) else loaded.text_of(each) for each in given]
    return loaded.embed(texts), sum(len(loaded.encode(text)) for text in texts)


def _vector(row: np.ndarray, encoding: str) -> Any:
    if encoding == "float":
        return row.tolist()
    return base64.b64encode(row.tobytes()).decode()


def _prompts(given: Any) -> list[Any]:
    """One or several prompts, each a text or a list of ids."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return given


def _ids(loaded: LoadedModel, prompt: str | list[int]) -> tuple[int, ...]:
    return loaded.prompt_ids(prompt) if isinstance(prompt, str) else tuple(prompt)
