"""The server: the HTTP application, every dialect on one port, and its process.

It listens at once, answers 503 until its models are loaded, and finishes accepted requests when a
signal ends it.
"""

import asyncio
import re
import signal
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from stillhouse import __version__
from stillhouse.errors import RecipeError, StillhouseError
from stillhouse.inference.chat import template_problem
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.engines import load_with_engine
from stillhouse.inspection.collect import fingerprint_in, open_inspection
from stillhouse.models.hub import gguf_file, resolve_folder
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.dialects.registry import DIALECTS, EDITOR, error_body
from stillhouse.serving.middleware import Metrics, RequestGuard
from stillhouse.serving.schemas import APIError, as_api_error
from stillhouse.serving.served_model import ServedModel, ServedModels
from stillhouse.stages.context import folder_fingerprint
from stillhouse.training.device import is_device_given, pick_device

SHUTDOWN_SECONDS = 60
LIMITATIONS = re.compile(
    r"^#+ [^\n]*(?:limit|bias)[^\n]*\n(?P<body>.*?)(?=^#|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)
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
        exception_handlers=dict.fromkeys(ERRORS, _on_error),
    )
    app.state.models = app.state.failure = None
    app.state.metrics = Metrics()
    for dialect in (EDITOR, *DIALECTS) if config.with_editor else DIALECTS:
        app.include_router(dialect.router)
    app.add_middleware(
        RequestGuard, metrics=app.state.metrics, api_key=config.api_key, error_body=error_body
    )
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
    found = as_api_error(error, request.headers.get("content-type", "missing"))
    return JSONResponse(error_body(found, request.url.path), found.status, found.headers)


def serve_models(config: ServerConfig) -> None:
    """Serve until a signal; accepted requests are finished.

    Raises:
        RecipeError: The address cannot be bound.
        ModelError: A model cannot be loaded.
    """
    listener = _bind(config)
    address = f"http://{config.url_host}:{listener.getsockname()[1]}"

    def load(worker: Worker) -> ServedModels:
        try:
            models = load_models(config, worker)
        except BaseException:
            server.should_exit = True
            raise
        for model in models:
            _log(f"{model.name}: {model.loaded.pipeline_task}, ready at {address}")
            if model.batcher and (problem := template_problem(model.loaded.tokenizer)):
                _log(f"{model.name}: {problem}")
        if config.open_browser:
            webbrowser.open(address)
        return models

    app = create_app(load, config)
    server = _Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=SHUTDOWN_SECONDS
        )
    )
    with listener:
        server.run(sockets=[listener])
    if app.state.failure is not None:
        raise app.state.failure


def load_models(config: ServerConfig, worker: Worker) -> ServedModels:
    """The configured models, ready to run in the worker's thread.

    Raises:
        ModelError: A model cannot be loaded.
    """
    models, folders = [], find_inspections(config)
    for model, name in zip(config.models, config.names, strict=True):
        found = load_with_engine(
            model,
            config.engine,
            config.precision,
            default="auto",
            num_slots=config.limits.num_slots,
            offline=config.offline,
            device=pick_device(),
            is_device_given=is_device_given(),
        )
        if found.reason:
            _log(f"{name}: precision: {found}")
        limitations = _limitations(model, offline=config.offline)
        inspection = open_inspection(*folders[model]) if model in folders else None
        models.append(
            ServedModel(
                name,
                found,
                config.limits,
                worker,
                limitations=limitations,
                inspection=inspection,
            )
        )
    return ServedModels(models)


def find_inspections(config: ServerConfig) -> dict[str, tuple[Path, str]]:
    """For each model with a folder of its neurons, this and the model's fingerprint.

    Raises:
        RecipeError: a folder of none of the models.
    """
    if not config.inspections:
        return {}
    prints = {
        model: folder_fingerprint(resolve_folder(model, offline=config.offline))
        for model in config.models
    }
    found = {}
    for folder in config.inspections:
        own = [model for model, each in prints.items() if each == fingerprint_in(folder)]
        if not own:
            raise RecipeError(
                f"--inspection {folder} has the neurons of none of the models: "
                f"{', '.join(config.models)}. Give a folder that `stillhouse inspect` made of one."
            )
        found |= {model: (folder, prints[model]) for model in own}
    return found


def _limitations(model: str, *, offline: bool) -> str:
    """The section of a model's card on limits and bias; empty where there is none. What lies beside
    a model that is a single file belongs to others."""
    if Path(model).expanduser().is_file():
        return ""
    file = gguf_file(model)
    folder = resolve_folder(model, offline=offline) if file is None else file.parent
    card = folder / "README.md"
    try:
        section = LIMITATIONS.search(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    return section["body"].strip() if section else ""


def _bind(config: ServerConfig) -> socket.socket:
    """Bound before a model is loaded, so that an address in use is reported at once."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=2_048)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # Python adds the address once more
        raise RecipeError(
            f"Cannot listen on {config.host}, port {config.port} ({reason}). Give another --port "
            "or --host."
        ) from error


class _Server(uvicorn.Server):
    """Exits without raising the signal again: stopping on request is a normal end."""

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
