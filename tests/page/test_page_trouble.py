"""What goes wrong is shown, can be tried again, and costs nothing that was written."""

import gzip
import json
import time
import urllib.request
from importlib.resources import files

import pytest
from playwright.sync_api import Page, Route, expect
from tests.page.acts import TEXT, ask, finished, marked, text_of
from tests.serving.conftest import start, stop

COMPRESSED_BYTES = 150_000


@pytest.fixture
def page(open_page) -> Page:
    opened = open_page()
    opened.locator("#text").click()
    opened.keyboard.type(TEXT)
    return opened


def try_again(page: Page) -> None:
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#trouble")).to_be_hidden()
    assert len(finished(page)) == 3
    page.keyboard.press("Enter")
    assert text_of(page).startswith(TEXT)
    assert marked(page)


def test_without_a_connection_the_text_stays_and_retrying_works(page):
    page.context.set_offline(True)
    page.keyboard.press("Tab")
    expect(page.locator("#trouble")).to_contain_text("does not answer")
    assert text_of(page) == TEXT
    page.keyboard.type("b")
    assert text_of(page) == f"{TEXT}b"
    page.context.set_offline(False)
    page.keyboard.press("Backspace")
    try_again(page)


@pytest.mark.parametrize(
    ("status", "body", "shown"),
    [
        (429, {"error": "64 requests are waiting already."}, "64 requests are waiting already."),
        (500, {"error": "Generating failed."}, "Generating failed."),
        (502, None, "The server says 502."),
    ],
)
def test_what_the_server_says_is_shown(page, status, body, shown):
    def answer(route: Route) -> None:
        route.fulfill(status=status, body=json.dumps(body) if body else "<html>")

    page.route("**/editor/suggestions", answer)
    page.keyboard.press("Tab")
    expect(page.locator("#trouble")).to_contain_text(shown)
    page.unroute("**/editor/suggestions")
    try_again(page)


def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(page):
    def answer(route: Route) -> None:
        route.fulfill(content_type="text/event-stream", body='data: {"sequence": 0, "text": "bo')

    page.route("**/editor/suggestions", answer)
    page.keyboard.press("Tab")
    expect(page.locator("#trouble")).to_contain_text("broke off")
    page.unroute("**/editor/suggestions")
    try_again(page)


def test_no_spinner_turns_for_ever(page):
    """A server that says nothing is given up after half a minute."""
    page.clock.install()
    page.route("**/editor/suggestions", lambda route: None)
    page.keyboard.press("Tab")
    expect(page.locator("#stop")).to_be_visible()
    page.clock.fast_forward(29_000)
    expect(page.locator("#trouble")).to_be_hidden()
    page.clock.fast_forward(2_000)
    expect(page.locator("#trouble")).to_contain_text("silent")
    assert text_of(page) == TEXT


def test_stop_keeps_what_has_come(page):
    page.evaluate(
        "localStorage.setItem('stillhouse.settings', JSON.stringify({tokens: 120, number: 8}))"
    )
    page.reload()
    expect(page.locator("#status")).to_contain_text("Ready")
    page.locator("#text").click()
    page.keyboard.press("Tab")
    expect(page.locator("#suggestions li span").first).not_to_have_text("…")
    page.locator("#stop").click()
    expect(page.locator("#stop")).to_be_hidden()
    texts = page.locator("#suggestions li span").all_text_contents()
    page.wait_for_timeout(300)
    assert page.locator("#suggestions li span").all_text_contents() == texts


def test_a_server_that_was_killed_and_started_again_goes_on(browser):
    """Its page stays open; the text is there."""
    first = start("sample", "--no-browser", "--precision", "fp32", command="write")
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(first.url)
        expect(page.locator("#status")).to_contain_text("Ready")
        page.keyboard.type(TEXT)
        first.process.kill()
        first.process.communicate()
        page.keyboard.press("Tab")
        expect(page.locator("#trouble")).to_contain_text("does not answer")
        assert text_of(page) == TEXT
        port = first.url.rpartition(":")[2]
        second = start("sample", "--no-browser", command="write", port=int(port))
        try:
            try_again(page)
        finally:
            stop(second)
    finally:
        context.close()
        first.process.kill()


def test_a_server_with_a_key_asks_the_writer_for_it(browser):
    server = start(
        "sample", "--no-browser", command="write", environment={"STILLHOUSE_API_KEY": "secret"}
    )
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(server.url)
        page.get_by_label("Key", exact=True).fill("secret")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("Ready")
        page.locator("#text").click()
        page.keyboard.type(TEXT)
        assert len(ask(page)) == 3
    finally:
        context.close()
        stop(server)


def test_fifty_thousand_characters_are_written_in_as_fast_as_they_are_typed(page):
    """A letter takes less than a tenth of a second, and suggestions come."""
    page.locator("#text").fill("The wind rose and the sea with it. \n" * 1_400)
    page.locator("#text").focus()
    page.keyboard.press("Control+End")
    started = time.monotonic()
    page.keyboard.type("And then it was over")
    assert time.monotonic() - started < 20 * 0.1
    assert len(ask(page)) == 3
    page.keyboard.press("Enter")
    assert len(text_of(page)) > 50_000
    assert len(marked(page)) == 1


def test_the_page_is_small_and_strict(writing):
    """What it takes together, compressed; and what it may load: its own parts alone."""
    parts = list((files("stillhouse.serving") / "web").iterdir())
    assert sum(len(gzip.compress(part.read_bytes())) for part in parts) < COMPRESSED_BYTES
    with urllib.request.urlopen(writing.url) as answer:
        policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
