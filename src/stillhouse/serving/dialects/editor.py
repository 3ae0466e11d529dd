"""The routes of the writing page: the page itself, its models, suggestions at the caret, the
surprisal of a text, and speculative decoding of a teacher by its student."""

import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import accumulate, islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import Field

from stillhouse.inference.chat import ANSWER_TOKENS, Prompt, chat_template
from stillhouse.inference.engine.batcher import Ended, PrefillDone, ScoredToken
from stillhouse.inference.engine.speculative import DraftedText
from stillhouse.inference.generation import Generation
from stillhouse.serving.dialects import inspector
from stillhouse.serving.dialects.base import (
    STREAMED,
    ClientDep,
    Dialect,
    ModelsDep,
    StreamedResponse,
)
from stillhouse.serving.schemas import MAX_SEQUENCES, APIError, RequestModel, Seed, Stops
from stillhouse.serving.served_model import RequestOutput, ServedModel, StreamEvent

router = APIRouter(tags=["The writing page"])
router.include_router(inspector.router)
DIALECT = Dialect(router)

WEB = files("stillhouse.serving") / "web"
MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
NUM_TOP_LOGPROBS = 10
WINDOW_TOKENS = 512  # of context and scored tokens in one request, at most
WINDOWS_AT_ONCE = 4


class SamplingRequest(RequestModel):
    """How to generate."""

    max_new_tokens: int = Field(12, ge=1, le=200)
    temperature: float = Field(1.0, ge=0, le=2, description="0 means greedy decoding.")
    top_p: float = Field(0.9, gt=0, le=1)
    repetition_penalty: float = Field(1.0, ge=1, le=2)
    stop: Stops = Field(default=[])
    seed: Seed | None = None

    def generation(self, num_suggestions: int = 1) -> Generation:
        greedy = self.temperature == 0
        return Generation(
            max_new_tokens=self.max_new_tokens,
            num_return_sequences=1 if greedy else num_suggestions,
            temperature=1.0 if greedy else self.temperature,
            top_k=0,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            greedy=greedy,
            stop=tuple(self.stop),
            seed=self.seed,
        )


class EditorRequest(SamplingRequest):
    """The text before the caret, and how to continue it."""

    text: str


class SuggestionsRequest(EditorRequest):
    """`POST /editor/suggestions`."""

    model: str
    num_suggestions: int = Field(3, ge=1, le=MAX_SEQUENCES)
    token_healing: bool = Field(True, description="Complete a word that the caret cuts off.")
    pinned: str = Field("", description="Kept before the text, which is truncated to make room.")


class EditorMessage(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class ConversationRequest(SamplingRequest):
    """`POST /editor/chat`."""

    model: str
    messages: Annotated[list[EditorMessage], Field(min_length=1, max_length=1_000)]
    max_new_tokens: int = Field(ANSWER_TOKENS, ge=1, le=1_000)


class DraftRequest(EditorRequest):
    """`POST /editor/draft`."""

    teacher: str
    student: str


class SurprisalRequest(RequestModel):
    """`POST /editor/surprisal`."""

    model: str
    text: str


@router.get("/", response_class=Response, include_in_schema=False)
def page() -> Response:
    """The writing page."""
    return asset("index.html")


@router.get("/web/{name}", response_class=Response, include_in_schema=False)
def asset(name: str) -> Response:
    """A file of the page."""
    if name not in {each.name for each in WEB.iterdir()}:
        raise APIError(404, f"The page has no file {name!r}.")
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]
    return Response((WEB / name).read_bytes(), media_type=media_type, headers=PAGE_HEADERS)


@router.get("/editor/models")
async def list_models(models: ModelsDep) -> dict[str, Any]:
    """The models, their tasks, and what their cards say of limits and bias."""
    return {
        "models": [
            {
                "name": model.name,
                "task": model.loaded.pipeline_task,
                "num_parameters": model.loaded.num_parameters,
                "precision": model.precision,
                "max_length": model.loaded.context,
                "vocab_size": model.loaded.model.config.vocab_size,
                "mask_token": model.loaded.tokenizer.mask_token,
                "has_chat_template": bool(chat_template(model.loaded.tokenizer)),
                "limitations": model.limitations,
                "inspected_layers": inspector.described(model),
            }
            for model in models
        ]
    }


@router.post("/editor/suggestions", responses=STREAMED)
async def suggest(body: SuggestionsRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Continuations of a text from the caret, also within a word. Events are `{"index", "text"}`,
    the last of each suggestion with its `finish_reason`."""
    model = models.named(body.model)
    ids, prefix = _prompt_ids(model, body, pinned=body.pinned), None
    settings = body.generation(body.num_suggestions)
    if body.token_healing:
        ids, prefix = model.token_healer.heal(ids)
    if prefix is not None:  # the first new token replaces the last one of the text
        settings = replace(settings, max_new_tokens=settings.max_new_tokens + 1)
    outputs = model.prepare([ids], settings, prefix=prefix)
    client.count_prompt_tokens(model, outputs)
    return await client.stream(_Suggestions(model, outputs).stream(), DIALECT)


def _prompt_ids(model: ServedModel, body: EditorRequest, *, pinned: str = "") -> tuple[int, ...]:
    """The pinned text, and as much of the end of the text as fits the context after it."""
    lm = model.causal_lm
    pinned_ids = tuple(lm.encode(pinned))
    room = lm.context - body.max_new_tokens - len(pinned_ids)
    if room < 2:
        advice = "shorten the pinned text or lower" if pinned else "lower"
        raise APIError(
            400, f"{model.name} has a context of {lm.context} tokens; {advice} max_new_tokens."
        )
    ids = pinned_ids + tuple(lm.encode(body.text)[-room:])
    return ids or lm.prompt_ids("")


class _Suggestions(StreamedResponse):
    def chunks(self, output: RequestOutput, event: StreamEvent) -> Iterator[dict[str, Any]]:
        if not isinstance(event, PrefillDone):
            reason = {"finish_reason": event.reason} if isinstance(event, Ended) else {}
            text = output.sequences[event.sequence].new_text
            yield {"index": event.sequence, "text": text, **reason}


@router.post("/editor/chat", responses=STREAMED)
async def chat(body: ConversationRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Answer a conversation, in the model's chat template or a plain one. Events are those of
    suggestions. Of a conversation longer than the context the oldest messages are left out."""
    model = models.named(body.model)
    prompt = await model.run(_conversation_prompt, model, body)
    settings = prompt.with_stops(body.generation())
    room = max(1, model.causal_lm.context - len(prompt.ids))
    settings = replace(settings, max_new_tokens=min(settings.max_new_tokens, room))
    outputs = model.prepare([prompt.ids], settings, is_answer=True)
    client.count_prompt_tokens(model, outputs)
    return await client.stream(_Suggestions(model, outputs).stream(), DIALECT)


def _conversation_prompt(model: ServedModel, body: ConversationRequest) -> Prompt:
    """The instructions, and as many of the last messages as fit the context after them, at least
    half of which is for messages."""
    messages = [message.model_dump() for message in body.messages]
    first = messages[0]["role"] == "system"
    system, rest = messages[:first], messages[first:]
    context = model.causal_lm.context
    room = context - min(body.max_new_tokens, context // 2)

    def prompt_without(pairs: int) -> Prompt:
        """Without this many of the first messages and their answers."""
        return model.chat_prompt([*system, *rest[2 * pairs :]])

    most = (len(rest) - 1) // 2
    fits = bisect_left(range(most), True, key=lambda n: len(prompt_without(n).ids) <= room)
    return prompt_without(fits)


@router.post("/editor/surprisal", responses=STREAMED)
async def score_surprisal(body: SurprisalRequest, models: ModelsDep, client: ClientDep) -> Response:
    """The log-probability of each token of a text, given those before it. Each event has a stretch
    of tokens: `{"tokens": [{"end", "log_probability", "rank", "top_logprobs"}]}`, with the offset
    of a token's end in UTF-16 units, the number of more likely tokens, and the most likely ones as
    `[text, log_probability]`."""
    model = models.named(body.model)
    encoded = model.causal_lm.tokenizer(
        body.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    widths = (2 if ord(character) > 0xFFFF else 1 for character in body.text)
    utf16 = list(accumulate(widths, initial=0))
    ends = [utf16[end] for _, end in encoded["offset_mapping"]]
    return await client.stream(_surprisal_events(model, encoded["input_ids"], ends), DIALECT)


async def _surprisal_events(
    model: ServedModel, ids: list[int], ends: list[int]
) -> AsyncGenerator[dict[str, Any], None]:
    start_ids = model.causal_lm.prompt_ids("")  # the first token follows the start of a document
    spans = windows(len(ids), min(WINDOW_TOKENS, model.loaded.context - len(start_ids)))
    settings = Generation(max_new_tokens=0, greedy=True)
    while batch := list(islice(spans, min(WINDOWS_AT_ONCE, model.limits.queue))):
        prompts = [
            (*(start_ids if start == 0 else ids[start - 1 : start]), *ids[start:end])
            for start, _, end in batch
        ]
        outputs = model.prepare(prompts, settings, num_top_logprobs=NUM_TOP_LOGPROBS, echo=True)
        await model.generate(outputs)
        for (start, new, end), output in zip(batch, outputs, strict=True):
            scored = zip(ends[new:end], output.prompt[1 + new - start :], strict=True)
            yield {"tokens": [{"end": at, **_token(model, token)} for at, token in scored]}


def _token(model: ServedModel, token: ScoredToken) -> dict[str, Any]:
    assert token.log_probability is not None
    return {
        "log_probability": round(token.log_probability, 4),
        "rank": token.rank,
        "top_logprobs": [
            [model.loaded.token_text(id), round(log_probability, 4)]
            for id, log_probability in token.top_logprobs
        ],
    }


@router.post("/editor/draft", responses=STREAMED)
async def draft(body: DraftRequest, models: ModelsDep, client: ClientDep) -> Response:
    """The teacher's text by speculative decoding with its student. Events are `{"text",
    "drafted"}`, then `{"num_accepted", "num_drafted", "num_rounds"}`."""
    teacher, student = models.named(body.teacher), models.named(body.student)
    room = student.causal_lm.context - body.max_new_tokens
    ids = _prompt_ids(teacher, body)[-room:]
    text = await teacher.run(
        DraftedText, teacher.causal_lm, student.causal_lm, ids, body.generation()
    )
    return await client.stream(_draft_events(teacher, text), DIALECT)


async def _draft_events(
    teacher: ServedModel, text: DraftedText
) -> AsyncGenerator[dict[str, Any], None]:
    if teacher.is_drafting:
        raise APIError(429, f"{teacher.name} is decoding another draft; retry in a moment.")
    teacher.is_drafting = True
    deadline = time.perf_counter() + teacher.limits.request_timeout
    pieces = text.__iter__()
    try:
        while time.perf_counter() < deadline and (piece := await teacher.run(next, pieces, None)):
            yield {"text": piece[0], "drafted": piece[1]}
        counts = text.speculation
        yield {
            "num_accepted": counts.num_accepted,
            "num_drafted": counts.num_drafted,
            "num_rounds": counts.num_rounds,
        }
    finally:
        teacher.is_drafting = False
        await teacher.run(pieces.close)


def windows(num_tokens: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Overlapping windows of a text that is longer than a model's context.

    The start, the first new token and the end of each window: every token is new once, and has
    at least half a context before it, except at the start of the text.
    """
    start, seen = 0, 0
    while seen < num_tokens:
        end = min(start + context, num_tokens)
        yield start, seen, end
        start, seen = end - context // 2, end
