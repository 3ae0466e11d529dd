"""Writes docs/pages/*.png: what the pages look like, taken in Chromium from real servers.

    python docs/screenshots.py --run runs/quickstart --inspection inspection/smollm2
        --cleaned runs/openwebtext [NAME ...]

The writing page with smollm2, the run's student beside its teacher `sample`, and `minilm`; its tab
Inspect with the neurons of smollm2 (`stillhouse inspect smollm2`); the report of the run, and the
page of `stillhouse watch`; the report of cleaning; the site (`make site`). With names: those
pictures alone.
"""

import argparse
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
TEXT = "The old man went down to the sea. The wind had been rising since noon, and now"
WIDE, HIGH = {"width": 1100, "height": 720}, {"width": 1100, "height": 1200}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
DARK = {"viewport": WIDE, "color_scheme": "dark"}


def write(page: Page) -> None:
    page.locator("#text").click()
    page.keyboard.type(TEXT)
    page.keyboard.press("Tab")
    finished(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    finished(page)


def finished(page: Page) -> None:
    expect(page.locator("#suggestions")).to_have_attribute("aria-busy", "false")


def heat(page: Page) -> None:
    page.locator("#text").fill(TEXT)
    page.get_by_role("tab", name="Heat map").click()
    expect(page.locator("#heat-stop")).to_be_hidden()
    page.locator("#heat-text").focus()
    page.keyboard.press("ArrowDown")


def rank(page: Page) -> None:
    heat(page)
    page.get_by_label("Rank").check()


def compare(page: Page) -> None:
    page.locator("#text").fill(TEXT)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-teacher").select_option("sample")
    page.get_by_role("button", name="Speculative decoding").click()
    expect(page.locator("#draft-facts")).to_contain_text("Speed-up")
    page.get_by_role("button", name="Continue with both").click()
    expect(page.locator("#agreement")).not_to_be_empty()


def chat(page: Page) -> None:
    settings(page)
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Instructions").fill("Answer in one or two sentences.")
    field = page.get_by_label("Your message")
    for number, words in enumerate(("What is the capital of France?", "What is it famous for?")):
        field.fill(words)
        field.press("Enter")
        expect(page.locator("#chat-turns .model")).to_have_count(number + 1)
        expect(page.locator("#chat-stop")).to_be_hidden()


def story(page: Page) -> None:
    page.get_by_role("tab", name="Story").click()
    page.get_by_label("Always remember").fill("The old man kept the lighthouse by the sea.")
    field = page.get_by_label("What happens next")
    turns = (("Story", "The wind had been rising since noon, and now"), ("Say", "Who is there?"))
    for kind, words in turns:
        page.get_by_role("radio", name=kind).check()
        field.fill(words)
        field.press("Enter")
        expect(page.locator("#story-stop")).to_be_hidden()


def tasks(page: Page) -> None:
    page.get_by_role("tab", name="Tasks").click()
    page.locator("#tasks button").first.click()
    expect(page.locator("#tasks li").first).to_be_visible()


def settings(page: Page) -> None:
    page.get_by_role("button", name="Settings").click()


def phone(page: Page) -> None:
    page.locator("#text").fill(TEXT)
    page.locator("#suggest").tap()
    finished(page)


def neuron(page: Page) -> None:
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect-strongest button").nth(20).click()
    expect(page.locator("#inspect-contexts li").first).to_be_visible()


def layers(page: Page) -> None:
    page.locator("#text").fill("The capital of France is")
    page.get_by_role("tab", name="Inspect").click()
    page.get_by_role("button", name="Layers on my text").click()
    expect(page.locator("#inspect-layers tr").last).to_be_visible()
    page.locator("#inspect-layers").scroll_into_view_if_needed()


def to_heading(words: str) -> Callable[[Page], None]:
    """Scrolls to a heading."""

    def act(page: Page) -> None:
        page.get_by_role("heading", name=words).first.evaluate("each => each.scrollIntoView()")

    return act


def still(page: Page) -> None:
    del page


@dataclass(frozen=True)
class Shot:
    """A picture: where, of what size, after which acts."""

    act: Callable[[Page], None]
    context: dict
    path: str = "/"


@dataclass(frozen=True)
class PageServer:
    """A server, as the command that starts it, and its pictures.

    Attributes:
        ready: A path that is answered once it is ready.
    """

    command: Sequence[str | Path]
    shots: dict[str, Shot]
    ready: str = "/"


def servers(run: Path, inspection: Path, cleaned: Path) -> list[PageServer]:
    """The servers, with all their pictures."""
    own = (sys.executable, "-m", "stillhouse")
    port = ("--port", str(PORT))
    writing = (*own, "write", *port, "--no-browser", "--offline")
    wide, high = {"viewport": WIDE}, {"viewport": HIGH}
    files = (sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1", "--directory")
    return [
        PageServer(
            (*writing, "smollm2", run / "student", "sample", "minilm"),
            {
                "write": Shot(write, wide),
                "heat": Shot(heat, wide),
                "rank": Shot(rank, wide),
                "compare": Shot(compare, {"viewport": {"width": 1100, "height": 900}}),
                "chat": Shot(chat, wide),
                "story": Shot(story, wide),
                "tasks": Shot(tasks, wide),
                "settings": Shot(settings, {"viewport": {"width": 1100, "height": 820}}),
                "dark": Shot(write, DARK),
                "dark-heat": Shot(heat, DARK),
                "phone": Shot(phone, PHONE),
            },
            "/health",
        ),
        PageServer(
            (*writing, "smollm2", "--precision", "fp32", "--inspection", inspection),
            {
                "neuron": Shot(neuron, high),
                "neuron-phone": Shot(neuron, PHONE),
                "layers": Shot(layers, high),
            },
            "/health",
        ),
        PageServer(
            (*files, run),
            {
                "report": Shot(still, high, "/report.html"),
                "report-pictures": Shot(
                    to_heading("Quality, size and speed"), high, "/report.html"
                ),
                "report-phone": Shot(still, PHONE, "/report.html"),
            },
        ),
        PageServer(
            (*files, cleaned),
            {
                "cleaning": Shot(still, high, "/cleaning.html"),
                "cleaning-phone": Shot(still, PHONE, "/cleaning.html"),
            },
        ),
        PageServer(
            (*own, "watch", run, *port),
            {"watch": Shot(still, wide), "watch-phone": Shot(still, PHONE)},
        ),
        PageServer(
            (*files, ROOT / "site"),
            {
                "site": Shot(still, wide),
                "site-phone": Shot(still, PHONE),
                "site-detect": Shot(to_heading("Measured"), high, "/guides/detect.html"),
                "site-card": Shot(still, high, "/results/model-cards/smollm2-24.html"),
            },
        ),
    ]


def take(browser: Browser, name: str, shot: Shot) -> None:
    """One picture, in a browser of its own."""
    page = browser.new_context(**shot.context, reduced_motion="reduce").new_page()
    kept = json.dumps({"fixedSeed": True, "seed": 3, "tokens": 16})
    page.add_init_script(f"localStorage['stillhouse.settings'] = '{kept}'")
    page.goto(URL + shot.path)
    if page.locator("#status").count():
        expect(page.locator("#status")).to_contain_text("Ready")
    shot.act(page)
    page.wait_for_timeout(500)
    page.screenshot(path=PAGES / f"{name}.png")
    page.context.close()


@contextmanager
def started(served: PageServer) -> Iterator[None]:
    """The server while this context lasts."""
    process = subprocess.Popen([*map(str, served.command)], stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(URL + served.ready).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="pictures, such as write or report-phone")
    parser.add_argument("--run", type=Path, required=True, help="a run of the quickstart")
    parser.add_argument("--inspection", type=Path, required=True, help="the neurons of smollm2")
    parser.add_argument("--cleaned", type=Path, required=True, help="a run whose text was cleaned")
    options = parser.parse_args()
    expect.set_options(timeout=240_000)  # milliseconds: models may be slow here
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        for served in servers(options.run, options.inspection, options.cleaned):
            shots = served.shots.items()
            wanted = {
                name: shot for name, shot in shots if name in options.names or not options.names
            }
            if wanted:
                with started(served):
                    for name, shot in wanted.items():
                        take(browser, name, shot)


if __name__ == "__main__":
    main()
