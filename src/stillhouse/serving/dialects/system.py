"""Routes for operators and tools: health, metrics, tokenization, and a page of all routes.

The page loads nothing: FastAPI's own documentation pages fetch their scripts from another site, and
stay empty without a network.
"""

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from stillhouse.serving.dialects.base import Dialect, ModelsDep
from stillhouse.serving.schemas import RequestModel

router = APIRouter(tags=["Server"])
DIALECT = Dialect(router)

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
STYLE = (
    ":root{color-scheme:light dark}body{font:1rem/1.6 system-ui,sans-serif;max-width:56rem;"
    "margin:3rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


class TokenizeRequest(RequestModel):
    """`POST /tokenize`."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool = False


@router.get("/health")
async def health(request: Request) -> Response:
    """200 once the models are loaded, 503 before."""
    if request.app.state.models is None:
        return JSONResponse({"status": "loading"}, status_code=503, headers={"Retry-After": "1"})
    return JSONResponse({"status": "ok"})


@router.get("/metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4")


@router.post("/tokenize")
async def tokenize(body: TokenizeRequest, models: ModelsDep) -> dict[str, Any]:
    """The token ids of a text."""
    model = models.named(body.model)
    loaded = model.loaded

    def encode() -> list[int]:
        """Runs in the model's thread: a tokenizer's truncation is state that its users share."""
        special = body.add_special_tokens
        return loaded.tokenizer(body.prompt, add_special_tokens=special, verbose=False)["input_ids"]

    ids = await model.run(encode)
    return {"tokens": ids, "count": len(ids), "max_model_len": loaded.context}


@router.get("/", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
def index(request: Request) -> HTMLResponse:
    """The routes, and where their schema is."""
    app = request.app
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', '').partition('. ')[0].rstrip('.'))}</td></tr>"
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Stillhouse</title>'
        f"<style>{STYLE}</style><h1>Stillhouse {escape(app.version)}</h1>"
        "<p>The base URL is <code>/v1</code> for OpenAI's clients, and this address for those of "
        "Hugging Face. "
        'The schema of all requests: <a href="/openapi.json">openapi.json</a>; the models: '
        '<a href="/v1/models">/v1/models</a>.</p>'
        f"<table>{rows}</table></html>",
        headers=PAGE_HEADERS,
    )
