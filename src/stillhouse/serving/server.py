"""Starting the server: which models, on which address, and how it ends."""

import ipaddress
import signal
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
        RecipeError: the address is in use.
        ModelError: a model that cannot be loaded.
    """
    names = [served_name(model) for model in serving.models]
    if len(set(names)) < len(names):
        raise RecipeError(f"Two models have the name {names[0]}; rename a folder.")

    def load(worker: Worker) -> Models:
        hosted = [
            _hosted(model, name, serving, worker)
            for model, name in zip(serving.models, names, strict=True)
        ]
        _say(serving, hosted)
        return Models(hosted)

    hosts = ("*",) if not _is_local(serving.host) else LOCAL_NAMES
    app = create_app(load, api_key=serving.api_key, hosts=hosts)
    config = uvicorn.Config(
        app,
        host=serving.host,
        port=serving.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config)
    server.run()
    if app.state.failure is not None:
        raise app.state.failure


class _Server(uvicorn.Server):
    """Ends without repeating the signal: a server that was asked to stop has done its work."""

    def handle_exit(self, sig: int, frame: object) -> None:
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _hosted(model: str, name: str, serving: Serving, worker: Worker) -> Hosted:
    loaded, precision, change = load_at_precision(model, serving.precision, offline=serving.offline)
    if precision != "fp32":
        print(f"{name}: {precision}, perplexity {change:+.2%}", file=sys.stderr)
    return Hosted(name, loaded, serving.limits, worker)


def _say(serving: Serving, hosted: list[Hosted]) -> None:
    address = f"http://{serving.host}:{serving.port}"
    for each in hosted:
        print(f"{each.name}: {each.loaded.pipeline_task}, ready at {address}", file=sys.stderr)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
