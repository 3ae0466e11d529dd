"""The writing page in a real browser, before a real server."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from tests.serving.conftest import Server, start, stop

from stillhouse.inspection.collect import CollectRequest, collect
from stillhouse.inspection.units import load_language_model
from stillhouse.models.hub import resolve_folder
from stillhouse.models.load import load_model, save_model
from stillhouse.stages.context import folder_fingerprint
from stillhouse.tokens.tokenizer import load_tokenizer
from stillhouse.training.progress import QuietReporter

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
CHROMIUM = shutil.which("chromium")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for each module: while it is there, no other loop of asyncio can run in this thread."""
    if CHROMIUM is None:
        pytest.fail("no chromium here: apt-get install chromium, or put one on the PATH")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A student beside its teacher, and an encoder with real weights."""
    student = make_student(tmp_path_factory.mktemp("page") / "student")
    models = (str(student), "sample", "minilm", "--inspection", str(inspected(student)))
    started = start(*models, "--no-browser", "--precision", "fp32", command="write")
    yield started
    stop(started)


def make_student(folder: Path) -> Path:
    """The sample teacher's first half, with a chat template."""
    source = resolve_folder("sample", offline=True)
    _, model = load_model(source)
    del model.transformer.h[3:]  # pyright: ignore
    model.config.n_layer = 3
    tokenizer = load_tokenizer(source)
    tokenizer.chat_template = CHAT_TEMPLATE
    save_model(model, tokenizer, folder)
    return folder


def inspected(model: Path) -> Path:
    """The folder of a model's neurons, on a short text."""
    request = CollectRequest(folder_fingerprint(model), "sample", 512)
    folder = model.with_name("inspection")
    collect(load_language_model(str(model), offline=True), folder, request, QuietReporter())
    return folder


@pytest.fixture
def open_page(browser: Browser, writing: Server) -> Iterator[Callable[..., Page]]:
    """open_page(width=, ...): the page, its models loaded. Afterwards: no script has failed, and
    nothing was asked of any other server."""
    contexts, trouble = [], []

    def opened(url: str = "/", *, width: int = 1100, height: int = 800, **settings: object) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)  # pyright: ignore
        contexts.append(context)
        # From the first request on, so that one caught later is not sent past Playwright: Chromium
        # takes a moment to begin.
        context.route("**/never-asked-for", lambda route: route.abort())
        page = context.new_page()
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: _own(request.url, writing.url, trouble))
        page.goto(writing.url + url)
        expect(page.locator("#status")).to_contain_text("Ready")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not trouble


def _own(url: str, server: str, trouble: list[str]) -> None:
    if not url.startswith((server, "blob:", "data:", "file:")):
        trouble.append(f"asked of another server: {url}")
