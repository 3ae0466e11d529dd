"""What DistilGPT2's card and the first Write With Transformer asked of a server: `POST /score` and
`POST /autocomplete/{model}`."""

import time
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import JSONResponse, Response

from stillhouse.inference.engine.batcher import Request
from stillhouse.inference.generation import Generation
from stillhouse.serving.bodies import Seed, Strict
from stillhouse.serving.depends import Catalog, Client, Served
from stillhouse.serving.hosted import Hosted
from stillhouse.serving.limits import PROMPTS

router = APIRouter(tags=["Cards and editors of 2019"])

Texts = Annotated[list[str], Field(min_length=1, max_length=PROMPTS)]
SENTENCES = 3
SENTENCE_TOKENS = 24


class ScoreParameters(Strict):
    """Of `/score`."""

    max_new_tokens: int = Field(default=50, ge=1)
    do_sample: bool = True
    temperature: float = Field(default=1.0, gt=0, le=100)
    top_k: int = Field(default=50, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    return_full_text: bool = True
    seed: Seed | None = None


class ScoreInputs(Strict):
    """The second form of `input_data`."""

    input_string: Texts
    parameters: ScoreParameters = ScoreParameters()


class ScoreBody(Strict):
    """`POST /score`."""

    input_data: Texts | ScoreInputs
    params: ScoreParameters | None = None


class AutocompleteBody(Strict):
    """`POST /autocomplete/{model}`."""

    context: str
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(1.0, gt=0, le=100)
    max_time: float = Field(2.0, gt=0, le=60)
    seed: Seed | None = None


@router.post("/score")
async def score(body: ScoreBody, catalog: Catalog, served: Served) -> Response:
    """Continue texts; a list of texts comes back."""
    hosted = catalog.named(None, "text-generation")
    if isinstance(body.input_data, ScoreInputs):
        texts, parameters = body.input_data.input_string, body.input_data.parameters
    else:
        texts, parameters = body.input_data, body.params or ScoreParameters()
    settings = Generation(
        max_new_tokens=parameters.max_new_tokens,
        temperature=parameters.temperature,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        greedy=not parameters.do_sample,
        seed=parameters.seed,
    )
    found = await _continued(hosted, texts, settings, hosted.limits.seconds, served)
    whole = parameters.return_full_text
    return JSONResponse(
        [(text if whole else "") + own[0]["value"] for text, own in zip(texts, found, strict=True)]
    )


@router.post("/autocomplete/{model_id:path}")
async def autocomplete(
    model_id: str, body: AutocompleteBody, catalog: Catalog, served: Served
) -> Response:
    """Three ways to go on from a text."""
    settings = Generation(
        max_new_tokens=SENTENCE_TOKENS,
        num_return_sequences=SENTENCES,
        temperature=body.temperature,
        top_k=0,
        top_p=body.top_p,
        seed=body.seed,
    )
    started = time.perf_counter()
    (sentences,) = await _continued(
        catalog.named(model_id), [body.context], settings, body.max_time, served
    )
    seconds = time.perf_counter() - started
    return JSONResponse({"sentences": [each | {"time": seconds} for each in sentences]})


async def _continued(
    hosted: Hosted, texts: list[str], settings: Generation, seconds: float, served: Client
) -> list[list[dict[str, Any]]]:
    """For each text what follows it, with its number of tokens."""
    hosted.must_continue_text()
    seed = settings.drawn_seed()
    requests = [
        Request(
            hosted.loaded.prompt_ids(text), settings, (seed + number) % 2**64, max_seconds=seconds
        )
        for number, text in enumerate(texts)
    ]
    served.count(hosted, requests)
    answers = await served.unless_gone(hosted.answers(requests))
    return [
        [{"value": each.text, "tokens": len(each.tokens)} for each in answer.continuations]
        for answer in answers
    ]
