"""Writes docs/pages/*.png: what the writing page looks like, taken in Chromium from a real server.

    python docs/screenshots.py smollm2 runs/quickstart/student sample

The first model writes and chats, the second is compared with its teacher, the third; `minilm`
(extra `samples`) is shown beside them.
"""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

PAGES = Path(__file__).parent / "pages"
PORT = 8765
URL = f"http://127.0.0.1:{PORT}"
TEXT = "The old man went down to the sea. The wind had been rising since noon, and now"
WIDE, PHONE = {"width": 1100, "height": 720}, {"width": 390, "height": 844}


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
    page.locator("#compare-teacher").select_option(sys.argv[-1])
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


SHOTS: dict[str, tuple[Callable[[Page], None], dict]] = {
    "write": (write, {"viewport": WIDE}),
    "heat": (heat, {"viewport": WIDE}),
    "rank": (rank, {"viewport": WIDE}),
    "compare": (compare, {"viewport": {"width": 1100, "height": 900}}),
    "chat": (chat, {"viewport": WIDE}),
    "story": (story, {"viewport": WIDE}),
    "tasks": (tasks, {"viewport": WIDE}),
    "settings": (settings, {"viewport": {"width": 1100, "height": 820}}),
    "dark": (write, {"viewport": WIDE, "color_scheme": "dark"}),
    "dark-heat": (heat, {"viewport": WIDE, "color_scheme": "dark"}),
    "phone": (phone, {"viewport": PHONE, "has_touch": True, "is_mobile": True}),
}


def main() -> None:
    PAGES.mkdir(exist_ok=True)
    expect.set_options(timeout=60_000)  # milliseconds: models may be slow here
    models = [*sys.argv[1:], "minilm"]
    line = [sys.executable, "-m", "stillhouse", "write", *models, "--port", str(PORT)]
    server = subprocess.Popen([*line, "--no-browser", "--offline"])
    try:
        wait_for_server()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
            )
            for name, (act, context) in SHOTS.items():
                page = browser.new_context(**context, reduced_motion="reduce").new_page()
                kept = json.dumps({"fixedSeed": True, "seed": 3, "tokens": 16})
                page.add_init_script(f"localStorage['stillhouse.settings'] = '{kept}'")
                page.goto(URL)
                expect(page.locator("#status")).to_contain_text("Ready")
                act(page)
                page.wait_for_timeout(200)
                page.screenshot(path=PAGES / f"{name}.png")
                page.context.close()
    finally:
        server.terminate()
        server.wait()


def wait_for_server() -> None:
    while True:
        try:
            with urllib.request.urlopen(f"{URL}/health"):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)


if __name__ == "__main__":
    main()
