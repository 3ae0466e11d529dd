"""What the writing page asks of the server: the page itself, its models, ways to go on from the
caret, how surprising a text is, and a text that a student drafts for its teacher."""

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from stillhouse.inference.engine.batcher import Ended, PrefillDone, Request, ScoredToken
from stillhouse.inference.engine.speculative import DraftedText
from stillhouse.inference.generation import Generation
from stillhouse.inference.windows import windows
from stillhouse.serving.bodies import Seed, Stops, Strict
from stillhouse.serving.depends import Catalog, Served
from stillhouse.serving.hosted import Hosted
from stillhouse.serving.limits import SEQUENCES
from stillhouse.serving.problems import Problem, as_hub
from stillhouse.serving.streaming import ANSWERS, event_stream

router = APIRouter(tags=["The writing page"])

WEB = files("stillhouse.serving") / "web"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
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
LIKELIEST = 10
CONTEXT = 512  # tokens that a surprisal is given, at most
WINDOWS = 4  # are asked for at once


class Asked(Strict):
    """What all of these say: the text before the caret, and how to go on."""

    text: str
    tokens: int = Field(12, ge=1, le=200)
    temperature: float = Field(1.0, ge=0, le=2, description="0 takes the likeliest token.")
    top_p: float = Field(0.9, gt=0, le=1)
    repetition_penalty: float = Field(1.0, ge=1, le=2)
    stop: Stops = Field(default=[])
    seed: Seed | None = None

    def generation(self, number: int = 1) -> Generation:
        greedy = self.temperature == 0
        return Generation(
            max_new_tokens=self.tokens,
            num_return_sequences=1 if greedy else number,
            temperature=1.0 if greedy else self.temperature,
            top_k=0,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            greedy=greedy,
            stop=tuple(self.stop),
            seed=self.seed,
        )


class SuggestionsBody(Asked):
    """`POST /editor/suggestions`."""

    model: str
    number: int = Field(3, ge=1, le=SEQUENCES)
    within_words: bool = Field(True, description="Whether a word that is cut off is completed.")
    pinned: str = Field("", description="Stands before the text, of which the rest is cut off.")


class DraftBody(Asked):
    """`POST /editor/draft`."""

    teacher: str
    student: str


class SurprisalBody(Strict):
    """`POST /editor/surprisal`."""

    model: str
    text: str


@cache
def _page(name: str) -> bytes:
    return (WEB / name).read_bytes()


@router.get("/", response_class=Response, include_in_schema=False)
def page() -> Response:
    """The writing page."""
    return _file("index.html")


@router.get("/web/{name}", response_class=Response, include_in_schema=False)
def asset(name: str) -> Response:
    """A part of the page."""
    if name not in {each.name for each in WEB.iterdir()}:
        raise Problem(404, f"The page has no part {name!r}.")
    return _file(name)


def _file(name: str) -> Response:
    kind = KINDS[name[name.rindex(".") :]]
    return Response(_page(name), media_type=kind, headers=PAGE_HEADERS)


@router.get("/editor/models")
async def models(catalog: Catalog) -> dict[str, Any]:
    """The models, what each does, and what its card says of its limits."""
    return {"models": [_described(each) for each in catalog.models]}


def _described(hosted: Hosted) -> dict[str, Any]:
    loaded = hosted.loaded
    return {
        "name": hosted.name,
        "does": loaded.pipeline_task,
        "parameters": loaded.num_parameters,
        "precision": hosted.precision,
        "context": loaded.context,
        "vocabulary": loaded.model.config.vocab_size,
        "mask": loaded.tokenizer.mask_token,
        "limits": hosted.note,
    }


@router.post("/editor/suggestions", responses=ANSWERS)
async def suggestions(body: SuggestionsBody, catalog: Catalog, served: Served) -> Response:
    """Ways to go on from the end of a text, the middle of a word too, each with its number, as they
    come: `{"sequence", "text"}`, and last `{"sequence", "reason"}`."""
    hosted = catalog.named(body.model)
    request = _request(hosted, body)
    served.count(hosted, [request])
    return await event_stream(_suggested(hosted, request), served, as_hub)


def _request(hosted: Hosted, body: SuggestionsBody) -> Request:
    """From as much of the end of the text as the model takes."""
    settings, begins = body.generation(body.number), None
    ids = _recent(hosted, body, pinned=body.pinned)
    if body.within_words:
        ids, begins = hosted.resumer.heal(ids)
    if begins is not None:  # the first new token is the last of the text, or begins with it
        settings = replace(settings, max_new_tokens=settings.max_new_tokens + 1)
    return Request(
        ids,
        settings,
        settings.drawn_seed(),
        prefix=begins,
        max_seconds=hosted.limits.seconds,
    )


def _recent(hosted: Hosted, body: Asked, *, pinned: str = "") -> tuple[int, ...]:
    """What is pinned, and as much of the end of the text as there is room for after it."""
    hosted.must_continue_text()
    always = tuple(hosted.loaded.encode(pinned))
    room = hosted.loaded.context - body.tokens - len(always)
    if room < 2:
        fewer = "pin less, or ask for fewer" if pinned else "ask for fewer"
        raise Problem(400, f"{hosted.name} takes {hosted.loaded.context} tokens; {fewer}.")
    ids = always + tuple(hosted.loaded.encode(body.text)[-room:])
    return ids or hosted.loaded.prompt_ids("")


async def _suggested(hosted: Hosted, request: Request) -> AsyncGenerator[str, None]:
    async with aclosing(hosted.events([request])) as events:
        async for _, event in events:
            if isinstance(event, PrefillDone):
                continue
            told: dict[str, Any] = {"sequence": event.sequence, "text": event.text}
            if isinstance(event, Ended):
                told["reason"] = event.reason
            yield json.dumps(told)


@router.post("/editor/surprisal", responses=ANSWERS)
async def surprisal(body: SurprisalBody, catalog: Catalog, served: Served) -> Response:
    """How likely each token of a text was, given those before it: for a stretch of the text at a
    time `{"tokens": [{"end", "log_probability", "rank", "likeliest"}]}`: where the token ends in
    UTF-16, how many tokens were likelier, and `[text, log_probability]` of the likeliest."""
    hosted = catalog.named(body.model)
    hosted.must_continue_text()
    ids, ends = _with_ends(hosted, body.text)
    return await event_stream(_surprisals(hosted, ids, ends), served, as_hub)


def _with_ends(hosted: Hosted, text: str) -> tuple[list[int], list[int]]:
    """The tokens, and where each ends in UTF-16."""
    found = hosted.loaded.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    widths = [0]
    for character in text:
        widths.append(widths[-1] + (2 if ord(character) > 0xFFFF else 1))
    return found["input_ids"], [widths[end] for _, end in found["offset_mapping"]]


async def _surprisals(hosted: Hosted, ids: list[int], ends: list[int]) -> AsyncGenerator[str, None]:
    begin = hosted.loaded.prompt_ids("")  # the first token is given the beginning of a document
    settings = Generation(max_new_tokens=0, greedy=True)
    left = windows(len(ids), min(CONTEXT, hosted.loaded.context - len(begin)))
    while several := list(islice(left, min(WINDOWS, hosted.limits.queue))):
        requests = [
            Request(
                (*(begin if start == 0 else ids[start - 1 : start]), *ids[start:end]),
                settings,
                seed=0,
                num_top_logprobs=LIKELIEST,
                echo=True,
                max_seconds=hosted.limits.seconds,
            )
            for start, _, end in several
        ]
        for (start, new, end), answer in zip(several, await hosted.answers(requests), strict=True):
            scored = answer.prompt[1 + new - start :]
            yield json.dumps(
                {
                    "tokens": [
                        {"end": at, **_seen(hosted, token)}
                        for at, token in zip(ends[new:end], scored, strict=True)
                    ]
                }
            )


def _seen(hosted: Hosted, token: ScoredToken) -> dict[str, Any]:
    assert token.log_probability is not None
    return {
        "log_probability": round(token.log_probability, 4),
        "rank": token.rank,
        "likeliest": [
            [hosted.loaded.token_text(id), round(log_probability, 4)]
            for id, log_probability in token.top_logprobs
        ],
    }


@router.post("/editor/draft", responses=ANSWERS)
async def draft(body: DraftBody, catalog: Catalog, served: Served) -> Response:
    """A text by the teacher, its student drafting: `{"text", "drafted"}` as it is settled, and last
    `{"num_accepted", "num_drafted", "num_rounds"}`."""
    teacher, student = catalog.named(body.teacher), catalog.named(body.student)
    student.must_continue_text()
    ids = _recent(teacher, body)[-(student.loaded.context - body.tokens) :]
    text = await teacher.do(DraftedText, teacher.loaded, student.loaded, ids, body.generation())
    return await event_stream(_drafted(teacher, text), served, as_hub)


async def _drafted(teacher: Hosted, text: DraftedText) -> AsyncGenerator[str, None]:
    if teacher.is_drafted_for:
        raise Problem(429, f"A text by {teacher.name} is being drafted; try again in a moment.")
    teacher.is_drafted_for = True
    started = time.perf_counter()
    pieces = text.__iter__()
    try:
        while time.perf_counter() - started < teacher.limits.seconds:
            piece = await teacher.do(next, pieces, None)
            if piece is None:
                break
            yield json.dumps({"text": piece[0], "drafted": piece[1]})
        counts = text.speculation
        yield json.dumps(
            {
                "num_accepted": counts.num_accepted,
                "num_drafted": counts.num_drafted,
                "num_rounds": counts.num_rounds,
            }
        )
    finally:
        teacher.is_drafted_for = False
        await teacher.do(pieces.close)
