"""A run's state as a page on this machine, which asks for the news every two seconds."""

import json
from collections.abc import Sequence
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from stillhouse import units
from stillhouse.report.curves import Figure, figure, lines_of
from stillhouse.watch import show
from stillhouse.watch.state import RunState, Training, read_state

HOST = "127.0.0.1"
TOGETHER = ("student", "control", "control_same_time")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'"


class Watcher(ThreadingHTTPServer):
    """Serves the page of one run on this machine alone."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        super().__init__((HOST, port), Handler)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """`/` is the page, `/state` its content as JSON, `/watch.js` what fetches it."""

    server: Watcher  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        # A page elsewhere could reach this server under a name of its own.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            state = read_state(self.server.folder)
            self._answer("text/html", template("watch.html").render(values_of(state)))
        elif self.path == "/state":
            state = read_state(self.server.folder)
            main = template("state.html").render(values_of(state))
            self._answer("application/json", json.dumps({"html": main, "is_over": state.is_over}))
        elif self.path == "/watch.js":
            self._answer("text/javascript", template("watch.js").render())
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests of the page are no news."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=ChoiceLoader(
            [PackageLoader("stillhouse.watch"), PackageLoader("stillhouse.report")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def template(name: str) -> Template:
    """A template of the page."""
    return _environment().get_template(name)


def values_of(state: RunState) -> dict[str, object]:
    """What the templates show: the same as the terminal, with curves."""
    progress = state.progress
    share = progress["step"] / max(1, progress["total"]) if "total" in progress else None
    return {
        "state": state,
        "work": show.work_of(state),
        "share": share if state.status == "running" else None,
        "figures": figures_of(state.trainings),
        "show": show,
        "units": units,
    }


def figures_of(trainings: Sequence[Training]) -> list[Figure]:
    """The losses of student and controls, and those of each other training."""
    shared = [each for each in trainings if each.model in TOGETHER]
    groups = {"Loss over tokens": shared}
    for each in trainings:
        if each not in shared:
            groups.setdefault(f"Loss of {each.model}", []).append(each)
    found = [
        figure(
            title,
            [
                line
                for each in group
                for line in lines_of(
                    [each.lines],
                    each.model,
                    each.key,
                    color=each.model if each in shared else "other",
                    label=show.title_of(each).capitalize(),
                )
            ],
            "Lines: smoothed training loss; dots: the steps.",
        )
        for title, group in groups.items()
    ]
    return [each for each in found if each is not None]
