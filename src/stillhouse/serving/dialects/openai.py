"""OpenAI's dialect: completions, chat completions, embeddings, models."""

import base64
import time
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from stillhouse.inference.engine.batcher import Ended, NewToken, PrefillDone, ScoredToken
from stillhouse.inference.engine.text_stream import REPLACEMENT_CHARACTER, TextStream
from stillhouse.serving.dialects.base import (
    FINISH_REASONS,
    STREAMED,
    ClientDep,
    Dialect,
    GenerationResponse,
    ModelsDep,
    encode_event,
)
from stillhouse.serving.dialects.openai_schemas import (
    ChatRequest,
    CompletionRequest,
    EmbeddingsRequest,
    GenerationRequest,
)
from stillhouse.serving.schemas import APIError
from stillhouse.serving.served_model import (
    GeneratedSequence,
    RequestOutput,
    ServedModel,
    StreamEvent,
)

router = APIRouter(tags=["OpenAI"])

Body = TypeVar("Body", bound=GenerationRequest)
DONE = "[DONE]"  # the last event of a stream
ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def openai_error_body(error: APIError) -> dict[str, Any]:
    """The error body that OpenAI's clients expect."""
    fallback = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.message,
            "type": ERROR_TYPES.get(error.status, fallback),
            "param": error.param,
            "code": error.status,
        }
    }


DIALECT = Dialect(
    router,
    error_body=openai_error_body,
    encode_event=lambda event: b"data: [DONE]\n\n" if event == DONE else encode_event(event),
    path_part="/v1/",
)


@router.get("/v1/models")
async def list_models(models: ModelsDep) -> dict[str, Any]:
    """List the served models."""
    return {"object": "list", "data": [_description(model) for model in models]}


@router.get("/v1/models/{model_id:path}")
async def describe_model(model_id: str, models: ModelsDep) -> dict[str, Any]:
    """Describe one model."""
    return _description(models.named(model_id))


def _description(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "stillhouse",
        "max_model_len": model.loaded.context,
    }


@dataclass
class _Response(GenerationResponse, Generic[Body]):
    """What the responses to completions and chat completions share."""

    body: Body
    id_prefix: ClassVar[str]
    object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __post_init__(self) -> None:
        self._frame = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.model.name,
        }

    @abstractmethod
    def choice(self, output: RequestOutput, sequence: GeneratedSequence) -> dict[str, Any]:
        """The fields of a whole choice."""

    @abstractmethod
    def chunk(self, output: RequestOutput, event: StreamEvent) -> dict[str, Any]:
        """The fields of the chunk for an event; of a token, none is sent where all are empty."""

    def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": sequence.index,
                **self.choice(output, sequence),
                "finish_reason": FINISH_REASONS[sequence.reason or "stop"],
            }
            for output in self.outputs
            for sequence in output.sequences
        ]
        usage = self._usage()
        return {**self._frame, "object": self.object, "choices": choices, "usage": usage}

    def chunks(self, output: RequestOutput, event: StreamEvent) -> Iterator[Any]:
        """One chunk per token, the last of each choice with its finish reason."""
        frame = {**self._frame, "object": self.chunk_object}
        fields, sequences = self.chunk(output, event), output.sequences
        if not isinstance(event, PrefillDone):
            sequences = [sequences[event.sequence]]
        if fields and (any(fields.values()) or not isinstance(event, NewToken)):
            for each in sequences:
                reason = FINISH_REASONS[event.reason] if isinstance(event, Ended) else None
                choice = {"index": each.index, **fields, "finish_reason": reason}
                yield {**frame, "choices": [choice]}
        if all(each.reason for output in self.outputs for each in output.sequences):
            if self.body.stream_options is not None and self.body.stream_options.include_usage:
                yield {**frame, "choices": [], "usage": self._usage()}
            yield DONE

    def _usage(self) -> dict[str, int]:
        num_prompt = sum(len(output.request.prompt_ids) for output in self.outputs)
        num_generated = sum(
            len(sequence.tokens) for output in self.outputs for sequence in output.sequences
        )
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
        }


@router.post("/v1/completions", responses=STREAMED)
async def create_completion(
    body: CompletionRequest, models: ModelsDep, client: ClientDep
) -> Response:
    """Complete prompts, given as text or as token ids."""
    model = models.named(body.model, "text-generation")
    lm = model.causal_lm
    prompts = [
        lm.prompt_ids(prompt) if isinstance(prompt, str) else tuple(prompt)
        for prompt in _as_list(body.prompt)
    ]
    settings = body.generation(body.max_tokens)
    echo_logprobs = body.echo and body.logprobs is not None
    if body.stream and echo_logprobs:
        raise APIError(400, "echo with logprobs cannot be streamed; omit stream.", param="stream")
    outputs = model.prepare(prompts, settings, num_top_logprobs=body.logprobs, echo=echo_logprobs)
    return await client.respond(
        _CompletionResponse(model, outputs, body), DIALECT, stream=body.stream
    )


class _CompletionResponse(_Response[CompletionRequest]):
    id_prefix = "cmpl"
    object = chunk_object = "text_completion"

    def choice(self, output: RequestOutput, sequence: GeneratedSequence) -> dict[str, Any]:
        prompt = self._echoed_prompt(output)
        decoded = TextStream(self.model.loaded.tokenizer, ())
        # An incomplete character has no length yet.
        lengths = [len(decoded.push(token.id)) for token in output.prompt]
        offsets = list(accumulate(lengths, initial=0))[:-1]
        offsets += [len(prompt) + offset for offset in sequence.text_offsets]
        logprobs = self._logprobs([*output.prompt, *sequence.tokens], offsets)
        return {"text": prompt + sequence.text, "logprobs": logprobs}

    def chunk(self, output: RequestOutput, event: StreamEvent) -> dict[str, Any]:
        if isinstance(event, PrefillDone):
            prompt = {"text": self._echoed_prompt(output), "logprobs": None}
            return prompt if self.body.echo else {}
        logprobs = None
        if isinstance(event, NewToken):
            # From 0 on: a prompt is not echoed where log-probabilities are streamed.
            offsets = output.sequences[event.sequence].text_offsets
            logprobs = self._logprobs([event.token], offsets[-1:])
        return {"text": event.text, "logprobs": logprobs}

    def _echoed_prompt(self, output: RequestOutput) -> str:
        ids = output.request.prompt_ids if self.body.echo else ()
        return self.model.loaded.decode(ids)

    def _logprobs(self, tokens: Sequence[ScoredToken], offsets: list[int]) -> dict[str, Any] | None:
        if self.body.logprobs is None:
            return None
        text_of = self.model.loaded.token_text
        return {
            "tokens": [text_of(token.id) for token in tokens],
            "token_logprobs": [token.log_probability for token in tokens],
            "top_logprobs": [_top_logprobs(text_of, token) for token in tokens],
            "text_offset": offsets,
        }


def _top_logprobs(text_of: Any, token: ScoredToken) -> dict[str, float] | None:
    """The log-probabilities of the most likely tokens and the chosen one, by text. Of two tokens
    with the same text (parts of characters) the more likely one counts, but the chosen one first.
    """
    if token.log_probability is None:
        return None
    found: dict[str, float] = {}
    for id, value in token.top_logprobs:
        found.setdefault(text_of(id), value)
    return found | {text_of(token.id): token.log_probability}


@router.post("/v1/chat/completions", responses=STREAMED)
async def create_chat_completion(
    body: ChatRequest, models: ModelsDep, client: ClientDep
) -> Response:
    """Answer a conversation. A model without a chat template gets a plain one: the messages as
    paragraphs, each after its role."""
    return await _chat(models.named(body.model, "text-generation"), body, client)


# Where `huggingface_hub.InferenceClient` finds it, given the address of one of several models.
@router.post("/models/{model_id:path}/v1/chat/completions", responses=STREAMED)
async def create_chat_completion_by_path(
    model_id: str, body: ChatRequest, models: ModelsDep, client: ClientDep
) -> Response:
    """Answer a conversation with the model of the path."""
    return await _chat(models.named(model_id), body, client)


async def _chat(model: ServedModel, body: ChatRequest, client: ClientDep) -> Response:
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs requires logprobs=true.", param="top_logprobs")
    messages = [message.for_template() for message in body.messages]
    prompt = await model.run(model.chat_prompt, messages)
    default = model.causal_lm.answer_tokens(prompt)
    settings = body.generation(body.max_completion_tokens or body.max_tokens or default)
    settings = prompt.with_stops(settings)
    num_top_logprobs = body.top_logprobs if body.logprobs else None
    outputs = model.prepare(
        [prompt.ids], settings, is_answer=True, num_top_logprobs=num_top_logprobs
    )
    return await client.respond(_ChatResponse(model, outputs, body), DIALECT, stream=body.stream)


class _ChatResponse(_Response[ChatRequest]):
    id_prefix = "chatcmpl"
    object, chunk_object = "chat.completion", "chat.completion.chunk"

    def choice(self, output: RequestOutput, sequence: GeneratedSequence) -> dict[str, Any]:
        message = {"role": "assistant", "content": sequence.text.rstrip()}
        return {"message": message, "logprobs": self._logprobs(sequence.tokens)}

    def chunk(self, output: RequestOutput, event: StreamEvent) -> dict[str, Any]:
        if isinstance(event, PrefillDone):
            return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}
        text = output.sequences[event.sequence].new_text
        logprobs = self._logprobs([event.token]) if isinstance(event, NewToken) else None
        return {"delta": {"content": text} if text else {}, "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        return {
            "content": [
                self._token(token.id, token.log_probability)
                | {"top_logprobs": [self._token(*pair) for pair in token.top_logprobs]}
                for token in tokens
            ]
        }

    def _token(self, id: int, log_probability: float | None) -> dict[str, Any]:
        text = self.model.loaded.token_text(id)
        is_partial = REPLACEMENT_CHARACTER in self.model.loaded.decode([id])  # of a character
        octets = None if is_partial else list(text.encode())
        return {"token": text, "logprob": log_probability, "bytes": octets}


@router.post("/v1/embeddings")
async def create_embeddings(
    body: EmbeddingsRequest, models: ModelsDep, client: ClientDep
) -> Response:
    """Embed texts with an embedding model; embeddings have length one."""
    model = models.named(body.model, "feature-extraction")
    work = model.embed(_as_list(body.input))
    embeddings, num_tokens = await client.cancel_on_disconnect(work)
    if body.dimensions is not None:
        if body.dimensions > embeddings.shape[1]:
            raise APIError(
                400,
                f"dimensions is {body.dimensions}; the embeddings have {embeddings.shape[1]}.",
                param="dimensions",
            )
        embeddings = embeddings[:, : body.dimensions]
        embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True).clip(1e-12)
    as_base64 = body.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": base64.b64encode(row.tobytes()).decode() if as_base64 else row.tolist(),
        }
        for number, row in enumerate(embeddings.astype("<f4"))
    ]
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": usage})


def _as_list(given: Any) -> list[Any]:
    """One or several inputs, each a text or a list of token ids, as a list."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else given
