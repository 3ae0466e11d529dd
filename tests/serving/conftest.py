"""A model of every kind, served in this process; and a real server, the command line's own, for the
tests of what only a process has: its start, its end, its sockets."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from tests.task_models import make_task_folder, make_tokenizer
from tests.tiny_models import make_config
from transformers import AutoModelForMaskedLM

from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model, save_model
from stillhouse.serving.config import ServerConfig
from stillhouse.serving.server import create_app, load_models
from stillhouse.tokens.tokenizer import load_tokenizer

READY_SECONDS = 60
URL = "http://localhost"  # of what is served in this process


@dataclass(frozen=True)
class Server:
    """A server's address, its process, and the folders of its models."""

    url: str
    process: subprocess.Popen[str]
    folders: dict[str, Path]


def start(
    *arguments: str,
    environment: dict[str, str] | None = None,
    command: str = "serve",
    port: int | None = None,
) -> Server:
    """`stillhouse serve` (or another command) with these arguments, ready to answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = port or free.getsockname()[1]
    line = [sys.executable, "-m", "stillhouse", command, *arguments, "--port", str(port)]
    process = subprocess.Popen(
        [*line, "--offline"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return Server(url, process, {})
        except urllib.error.HTTPError as error:
            error.close()  # it is loading
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the server did not start: {process.communicate()[1]}")


def application(models: tuple[str, ...], **settings: Any) -> FastAPI:
    """The application with these models in float32; entering its lifespan loads them."""
    config = ServerConfig(models=models, offline=True, **{"precision": "fp32", **settings})
    return create_app(partial(load_models, config), config, wait=True)


def stop(server: Server) -> int:
    """End a server as Ctrl+C does; its exit code."""
    server.process.terminate()
    server.process.communicate(timeout=90)
    return server.process.returncode


@pytest.fixture(scope="session")
def served_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small model of each kind but the causal one, by its name."""
    root = tmp_path_factory.mktemp("served")
    heads = {
        "classifier": ("SequenceClassification", {"num_labels": 3}),
        "tagger": ("TokenClassification", {"num_labels": 3}),
        "answerer": ("QuestionAnswering", {"null_score_diff_threshold": -100.0}),
    }
    folders = {
        name: make_task_folder(root / name, "bert", head, **settings)
        for name, (head, settings) in heads.items()
    }
    tokenizer = make_tokenizer("bert")
    config = make_config("bert", vocabulary=len(tokenizer), positions=64)
    folders["picky"] = root / "picky"
    source = resolve_folder("sample", offline=True)
    picky, speaker = load_model(source)[1], load_tokenizer(source)
    speaker.chat_template = (
        "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}"
        "{% endif %}{{ messages[0].content }}"
    )
    save_model(picky, speaker, folders["picky"])
    folders["masked"] = root / "masked"
    save_model(AutoModelForMaskedLM.from_config(config), tokenizer, folders["masked"])
    return folders


@pytest.fixture(scope="session")
def served_app(served_folders: dict[str, Path]) -> Iterator[FastAPI]:
    """The application with the models of `server`, without a process or a port."""
    models = ("sample", "minilm", *map(str, served_folders.values()))
    app = application(models, with_editor=True)
    with TestClient(app, base_url=URL):  # loads the models, and ends their thread
        yield app


@pytest.fixture
def http(served_app: FastAPI) -> TestClient:
    """An HTTP client of `served_app`; OpenAI's and Hugging Face's clients take it for a network."""
    return TestClient(served_app, base_url=URL)


@pytest.fixture(scope="session")
def server(served_folders: dict[str, Path]) -> Iterator[Server]:
    """The sample teacher, MiniLM, and a small model of each other kind; with the writing page,
    whose paths are added to the others."""
    models = ("sample", "minilm", *map(str, served_folders.values()))
    started = start(*models, "--precision", "fp32", "--no-browser", command="write")
    yield Server(started.url, started.process, served_folders)
    stop(started)
