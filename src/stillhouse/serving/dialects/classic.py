"""The dialect of DistilGPT2's model card and the first Write With Transformer: `POST /score` and
`POST /autocomplete/{model}`."""

import time
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from stillhouse.inference.generation import Generation
from stillhouse.serving.dialects.base import Client, ClientDep, Dialect, ModelsDep
from stillhouse.serving.schemas import MAX_PROMPTS, RequestModel, Seed
from stillhouse.serving.served_model import RequestOutput, ServedModel

router = APIRouter(tags=["Model cards and editors of 2019"])
DIALECT = Dialect(router)

Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
NUM_SENTENCES = 3
SENTENCE_TOKENS = 24


class ScoreParameters(RequestModel):
    """Parameters of `/score`."""

    max_new_tokens: int = Field(default=50, ge=1)
    do_sample: bool = True
    temperature: float = Field(default=1.0, gt=0, le=100)
    top_k: int = Field(default=50, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    return_full_text: bool = True
    seed: Seed | None = None


class ScoreInputs(RequestModel):
    """The second form of `input_data`."""

    input_string: Texts
    parameters: ScoreParameters = ScoreParameters()


class ScoreRequest(RequestModel):
    """`POST /score`."""

    input_data: Texts | ScoreInputs
    params: ScoreParameters | None = None


class AutocompleteRequest(RequestModel):
    """`POST /autocomplete/{model}`."""

    context: str
    top_p: float = Field(0.9, gt=0, le=1)
    temperature: float = Field(1.0, gt=0, le=100)
    max_time: float = Field(2.0, gt=0, le=60)
    seed: Seed | None = None


@router.post("/score")
async def score(body: ScoreRequest, models: ModelsDep, client: ClientDep) -> Response:
    """Continue a list of texts."""
    texts, parameters = body.input_data, body.params or ScoreParameters()
    if isinstance(texts, ScoreInputs):
        texts, parameters = texts.input_string, texts.parameters
    settings = Generation(
        max_new_tokens=parameters.max_new_tokens,
        temperature=parameters.temperature,
        top_k=parameters.top_k,
        top_p=parameters.top_p,
        greedy=not parameters.do_sample,
        seed=parameters.seed,
    )
    model = models.named(None, "text-generation")
    outputs = await _generate(model, texts, settings, client)
    prefixes = texts if parameters.return_full_text else [""] * len(texts)
    return JSONResponse(
        [prefix + each.sequences[0].text for prefix, each in zip(prefixes, outputs, strict=True)]
    )


@router.post("/autocomplete/{model_id:path}")
async def autocomplete(
    model_id: str, body: AutocompleteRequest, models: ModelsDep, client: ClientDep
) -> Response:
    """Suggest three continuations of a text."""
    settings = Generation(
        max_new_tokens=SENTENCE_TOKENS,
        num_return_sequences=NUM_SENTENCES,
        temperature=body.temperature,
        top_k=0,
        top_p=body.top_p,
        seed=body.seed,
    )
    started = time.perf_counter()
    (output,) = await _generate(
        models.named(model_id), [body.context], settings, client, max_seconds=body.max_time
    )
    seconds = time.perf_counter() - started
    sentences = [
        {"value": each.text, "tokens": len(each.tokens), "time": seconds}
        for each in output.sequences
    ]
    return JSONResponse({"sentences": sentences})


async def _generate(
    model: ServedModel, texts: list[str], settings: Generation, client: Client, **options: Any
) -> list[RequestOutput]:
    """What is generated for each text."""
    prompts = [model.causal_lm.prompt_ids(text) for text in texts]
    outputs = model.prepare(prompts, settings, **options)
    client.count_prompt_tokens(model, outputs)
    await client.cancel_on_disconnect(model.generate(outputs))
    return outputs
