"""A page that says what the server answers. It fetches nothing: FastAPI's own documentation pages
load their scripts from elsewhere, and stay empty without a network."""

from html import escape

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}
STYLE = (
    ":root{color-scheme:light dark}body{font:1rem/1.6 system-ui,sans-serif;max-width:56rem;"
    "margin:3rem auto;padding:0 1rem}td{padding:.2rem 1rem .2rem 0;vertical-align:top}"
)


@router.get("/")
@router.get("/docs")
def index(request: Request) -> HTMLResponse:
    """What there is, and where its schema is."""
    return HTMLResponse(_page(request.app), headers=HEADERS)


def _page(app: FastAPI) -> str:
    rows = "".join(
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', '').partition('. ')[0].rstrip('.'))}</td></tr>"
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Stillhouse</title>'
        f"<style>{STYLE}</style><h1>Stillhouse {escape(app.version)}</h1>"
        "<p>The base URL is <code>/v1</code> for OpenAI's clients, and this address for those of "
        "Hugging Face. "
        'The schema of all requests: <a href="/openapi.json">openapi.json</a>; the models: '
        '<a href="/v1/models">/v1/models</a>.</p>'
        f"<table>{rows}</table></html>"
    )
