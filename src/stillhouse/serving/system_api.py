"""What operators and tools ask a server: is it there, what does it do, how does it split text."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.serving.depends import Catalog
from stillhouse.serving.openai_api import Strict

router = APIRouter(tags=["Server"])


class TokenizeBody(Strict):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = False


@router.get("/health")
async def health(request: Request) -> Response:
    """200 when the models are loaded, 503 before."""
    if request.app.state.models is None:
        return JSONResponse({"status": "loading"}, status_code=503, headers={"Retry-After": "1"})
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Counts for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, catalog: Catalog) -> dict[str, Any]:
    """The tokens of a text."""
    hosted = catalog.first if body.model is None else catalog.named(body.model)
    tokenizer = hosted.loaded.tokenizer
    ids: list[int] = tokenizer(
        body.prompt, add_special_tokens=body.add_special_tokens, verbose=False
    )["input_ids"]
    return {"tokens": ids, "count": len(ids), "max_model_len": hosted.loaded.context}
