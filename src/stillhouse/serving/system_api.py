"""What operators and tools ask a server: is it there, what does it do, how does it split text."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse.serving.bodies import Strict
from stillhouse.serving.depends import Catalog

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
    hosted = catalog.named(body.model)

    def tokenized() -> list[int]:
        """In the model's thread: where a tokenizer cuts is set in it, for all that use it."""
        special = body.add_special_tokens
        return hosted.loaded.tokenizer(body.prompt, add_special_tokens=special, verbose=False)[
            "input_ids"
        ]

    ids = await hosted.do(tokenized)
    return {"tokens": ids, "count": len(ids), "max_model_len": hosted.loaded.context}
