"""The HTTP application: every dialect on one port.

It answers from the moment it is started; while its models are being loaded, with 503.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from stillhouse import __version__
from stillhouse.errors import StillhouseError
from stillhouse.inference.engine.worker import Worker
from stillhouse.serving import classic_api, editor_api, hub_api, index_page, openai_api, system_api
from stillhouse.serving.catalog import Models
from stillhouse.serving.guards import Guards, body_of
from stillhouse.serving.metrics import Metrics
from stillhouse.serving.problems import Problem, from_error, from_validation

UNREADABLE = "There was an error parsing the body"  # FastAPI's words
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, text in {
        400: "The request cannot be right.",
        401: "The API key is missing or wrong.",
        404: "There is no such model.",
        413: "The body is too long.",
        429: "Too many requests wait.",
        503: "The model is being loaded.",
    }.items()
}


def create_app(
    load: Callable[[Worker], Models],
    *,
    api_key: str | None = None,
    hosts: tuple[str, ...] = ("*",),
    cors_origins: tuple[str, ...] = (),
    has_page: bool = False,
    waits: bool = False,
) -> FastAPI:
    """Args:
    load: Loads the models; runs in their worker's thread when the application starts.
    api_key: What clients must send as `Authorization: Bearer KEY`.
    hosts: The names this server may be called by: a page of another site, which has its own
        name point here, is refused.
    cors_origins: Sites whose pages may read the answers, such as https://example.com; * for all.
    has_page: The writing page is served too.
    waits: It answers only when the models are loaded; otherwise with 503 until then.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = Worker()
        loading = asyncio.create_task(_load(app, load, worker))
        if waits:
            await loading
        yield
        await asyncio.gather(loading, return_exceptions=True)
        await asyncio.to_thread(worker.close)

    app = FastAPI(
        title="Stillhouse",
        version=__version__,
        docs_url=None,  # `index_page` has them
        redoc_url=None,
        lifespan=lifespan,
        responses=RESPONSES,
    )
    app.state.models = None
    app.state.failure = None
    app.state.metrics = metrics
    pages = (editor_api.router, index_page.router) if has_page else (index_page.router,)
    for router in (
        openai_api.router,
        openai_api.hub_router,
        hub_api.router,
        classic_api.router,
        system_api.router,
        *pages,
    ):
        app.include_router(router)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(StillhouseError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(Guards, metrics=metrics, api_key=api_key)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    return app


async def _load(app: FastAPI, load: Callable[[Worker], Models], worker: Worker) -> None:
    try:
        models = await asyncio.wrap_future(worker.call(lambda: load(worker)))
    except BaseException as error:
        app.state.failure = error
        raise
    app.state.metrics.watch(models)
    app.state.models = models


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    content = body_of(error, request.url.path)
    return JSONResponse(content, status_code=error.status, headers=error.headers)


async def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StillhouseError)
    return await _on_problem(request, from_error(error))


async def _on_http(request: Request, error: Exception) -> Response:
    """What the framework refuses: an unknown path or method."""
    assert isinstance(error, HTTPException)
    problem = Problem(error.status_code, str(error.detail))
    if problem.message == UNREADABLE:
        problem = Problem(400, "The body cannot be read: send JSON in UTF-8.")
    content = body_of(problem, request.url.path)
    return JSONResponse(content, status_code=error.status_code, headers=error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    """Its traceback goes to the server's log."""
    return await _on_problem(request, Problem(500, f"A bug of the server: {type(error).__name__}."))


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A body that does not fit."""
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes) and error.body:  # whose type it was not
        kind = request.headers.get("content-type", "none")
        message = f"The Content-Type is {kind}; send JSON, as application/json."
        return await _on_problem(request, Problem(400, message))
    return await _on_problem(request, from_validation(error.errors()))
