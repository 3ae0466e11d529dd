"""The server process: loads models, listens, and drains on a signal."""

import re
import signal
import socket
import sys
import webbrowser
from pathlib import Path

import uvicorn

from stillhouse.errors import RecipeError
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.quantization_check import load_at_precision
from stillhouse.models.hub import resolve_folder
from stillhouse.serving.app import create_app
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.served_model import ServedModel, ServedModels

SHUTDOWN_SECONDS = 60
LIMITATIONS = re.compile(
    r"^#+ [^\n]*(?:limit|bias)[^\n]*\n(?P<body>.*?)(?=^#|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


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
    models = []
    for model, name in zip(config.models, config.names, strict=True):
        found = load_at_precision(model, config.precision, offline=config.offline)
        if config.precision != "fp32":
            _log(f"{name}: precision: {found}")
        card = resolve_folder(model, offline=config.offline) / "README.md"
        models.append(
            ServedModel(
                name,
                found.model,
                config.limits,
                worker,
                precision=found.precision,
                limitations=_limitations(card),
            )
        )
    return ServedModels(models)


def _limitations(card: Path) -> str:
    """The section of a model card on limits and bias; empty where there is none."""
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
