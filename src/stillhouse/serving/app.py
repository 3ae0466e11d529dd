"""The HTTP application: every dialect on one port.

It accepts requests as soon as it is started, and answers 503 until its models are loaded.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from stillhouse import __version__
from stillhouse.errors import StillhouseError
from stillhouse.inference.engine.worker import Worker
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.dialects.registry import DIALECTS, EDITOR, error_body
from stillhouse.serving.errors import APIError, as_api_error
from stillhouse.serving.metrics import Metrics
from stillhouse.serving.middleware import RequestGuard
from stillhouse.serving.served_model import ServedModels

Loader = Callable[[Worker], ServedModels]
ERRORS = (APIError, StillhouseError, RequestValidationError, HTTPException, Exception)
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
    for status, text in {
        400: "The request is invalid.",
        401: "The API key is missing or wrong.",
        404: "The model does not exist.",
        413: "The body is too long.",
        429: "The queue is full.",
        503: "The model is loading.",
    }.items()
}


def create_app(load: Loader, config: ServerConfig, *, wait: bool = False) -> FastAPI:
    """The application.

    Args:
        load: Loads the models; called in their worker's thread when the application starts.
        config: Access and surfaces; `load` decides about the models.
        wait: Start only once the models are loaded, instead of answering 503 until then.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = Worker()
        loading = asyncio.create_task(_load(app, load, worker))
        if wait:
            await loading
        yield
        await asyncio.gather(loading, return_exceptions=True)
        await asyncio.to_thread(worker.close)

    app = FastAPI(
        title="Stillhouse",
        version=__version__,
        docs_url=None,  # `dialects.system` has a page that needs no network
        redoc_url=None,
        lifespan=lifespan,
        responses=RESPONSES,
    )
    app.state.models = app.state.failure = None
    app.state.metrics = Metrics()
    for dialect in (EDITOR, *DIALECTS) if config.with_editor else DIALECTS:
        app.include_router(dialect.router)
    for kind in ERRORS:
        app.add_exception_handler(kind, _on_error)
    app.add_middleware(RequestGuard, metrics=app.state.metrics, api_key=config.api_key)
    if config.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=config.allowed_hosts)
    return app


async def _load(app: FastAPI, load: Loader, worker: Worker) -> None:
    try:
        models = await asyncio.wrap_future(worker.call(lambda: load(worker)))
    except BaseException as error:
        app.state.failure = error
        raise
    app.state.metrics.watch(models)
    app.state.models = models


async def _on_error(request: Request, error: Exception) -> Response:
    """Any exception as a JSON response; the traceback of a bug is logged by the server."""
    found = as_api_error(error, request.headers.get("content-type", "none"))
    return JSONResponse(error_body(found, request.url.path), found.status, found.headers)
