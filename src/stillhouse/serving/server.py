"""Starting the server: which models, on which address, and how it ends."""

import ipaddress
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from stillhouse.errors import RecipeError
from stillhouse.generation.gate import load_at_precision
from stillhouse.generation.worker import Worker
from stillhouse.serving.app import create_app
from stillhouse.serving.catalog import Models
from stillhouse.serving.hosted import Hosted
from stillhouse.serving.limits import Limits

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
DRAIN_SECONDS = 60


@dataclass(frozen=True)
class Serving:
    """What `stillhouse serve` was asked for."""

    models: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    precision: str = "auto"
    api_key: str | None = None
    insecure: bool = False
    offline: bool = False
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not _is_local(self.host) and self.api_key is None and not self.insecure:
            raise RecipeError(
                f"On {self.host} anyone who reaches this machine could use the model. Set a key in "
                "the environment variable STILLHOUSE_API_KEY, or say --insecure."
            )


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
    names = [served_name(model) for model in serving.models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"Two models have the name {twice[0]}; rename a folder.")
    listening = _listening(serving.host, serving.port)
    address = f"http://{serving.host}:{listening.getsockname()[1]}"

    def load(worker: Worker) -> Models:
        try:
            hosted = [
                _hosted(*each, serving, worker) for each in zip(serving.models, names, strict=True)
            ]
        except BaseException:
            server.should_exit = True
            raise
        for each in hosted:
            _say(f"{each.name}: {each.loaded.pipeline_task}, ready at {address}")
        return Models(hosted)

    hosts = ("*",) if not _is_local(serving.host) else LOCAL_NAMES
    app = create_app(load, api_key=serving.api_key, hosts=hosts)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS
    )
    server = _Server(config)
    with listening:
        server.run(sockets=[listening])
    if app.state.failure is not None:
        raise app.state.failure


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
    loaded, precision, change = load_at_precision(model, serving.precision, offline=serving.offline)
    if precision != "fp32":
        _say(f"{name}: {precision}, perplexity {change:+.2%}")
    return Hosted(name, loaded, serving.limits, worker)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
