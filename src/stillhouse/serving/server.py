"""Starting the server: which models, on which address, and how it ends."""

import ipaddress
import re
import signal
import socket
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from stillhouse.errors import RecipeError
from stillhouse.inference.engine.worker import Worker
from stillhouse.inference.quantization_check import load_at_precision
from stillhouse.models.hub import resolve_folder
from stillhouse.serving.app import create_app
from stillhouse.serving.catalog import Models
from stillhouse.serving.hosted import Hosted
from stillhouse.serving.limits import Limits

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
DRAIN_SECONDS = 60
ORIGIN = re.compile(r"\*|https?://[^/\s]+")
LIMITS = re.compile(
    r"^#+ [^\n]*(?:limit|bias)[^\n]*\n(?P<body>.*?)(?=^#|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Serving:
    """What `stillhouse serve` was asked for."""

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    precision: str = "auto"
    api_key: str | None = None
    insecure: bool = False
    cors_origins: tuple[str, ...] = ()
    offline: bool = False
    limits: Limits = field(default_factory=Limits)
    has_page: bool = False
    opens_browser: bool = False

    def __post_init__(self) -> None:
        if not _is_local(self.host) and self.api_key is None and not self.insecure:
            raise RecipeError(
                f"On {self.host} anyone who reaches this machine could use the model. Set a key in "
                "the environment variable STILLHOUSE_API_KEY, or say --insecure."
            )
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise RecipeError(
                    f"--cors-origin is {origin!r}; give the scheme, host and port of a site, such "
                    "as https://example.com or http://localhost:3000, or * for all."
                )
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise RecipeError(f"Two models have the name {twice[0]}; rename a folder.")

    @property
    def names(self) -> list[str]:
        """The names that the models are asked for by."""
        return [served_name(model) for model in self.models]


def served_name(model: str) -> str:
    """The name a model is asked for by: its folder's, or its name on the hub."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def serve_models(serving: Serving) -> None:
    """Serve until a signal; requests that were taken are finished.

    Raises:
        RecipeError: the address cannot be listened on.
        ModelError: a model that cannot be loaded.
    """
    listening = _listening(serving.host, serving.port)
    address = f"http://{_in_address(serving.host)}:{listening.getsockname()[1]}"

    def loaded(models: Models | None) -> None:
        if models is None:
            server.should_exit = True
            return
        for each in models.models:
            _say(f"{each.name}: {each.loaded.pipeline_task}, ready at {address}")
        if serving.opens_browser:
            webbrowser.open(address)

    app = application(serving, loaded)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS
    )
    server = _Server(config)
    with listening:
        server.run(sockets=[listening])
    if app.state.failure is not None:
        raise app.state.failure


def application(
    serving: Serving,
    loaded: Callable[[Models | None], None] = lambda _: None,
    *,
    waits: bool = False,
) -> FastAPI:
    """The application with its models.

    Args:
        loaded: Is told the models when they are there, or None when they cannot be loaded.
        waits: See `create_app`.
    """

    def load(worker: Worker) -> Models:
        named = zip(serving.models, serving.names, strict=True)
        try:
            models = Models([_hosted(*each, serving, worker) for each in named])
        except BaseException:
            loaded(None)
            raise
        loaded(models)
        return models

    hosts = (*LOCAL_NAMES, _in_address(serving.host)) if _is_local(serving.host) else ("*",)
    return create_app(
        load,
        api_key=serving.api_key,
        hosts=hosts,
        cors_origins=serving.cors_origins,
        has_page=serving.has_page,
        waits=waits,
    )


def _listening(host: str, port: int) -> socket.socket:
    """Taken before anything is loaded, so that an address in use is known at once."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2_048)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # Python adds the address once more
        raise RecipeError(
            f"The address {host}, port {port}, cannot be listened on ({reason}). Give "
            "another --port or --host."
        ) from error


class _Server(uvicorn.Server):
    """Ends without repeating the signal: a server that was asked to stop has done its work."""

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _hosted(model: str, name: str, serving: Serving, worker: Worker) -> Hosted:
    found = load_at_precision(model, serving.precision, offline=serving.offline)
    if serving.precision != "fp32":
        _say(f"{name}: precision: {found}")
    note = _note_on_limits(resolve_folder(model, offline=serving.offline) / "README.md")
    return Hosted(name, found.model, serving.limits, worker, precision=found.precision, note=note)


def _note_on_limits(card: Path) -> str:
    """The section of a model's card on its limits and biases; empty where it has none."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = LIMITS.search(text)
    return found["body"].strip() if found else ""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
