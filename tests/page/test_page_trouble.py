"""What goes wrong is shown, can be tried again, and costs nothing that was written."""

import gzip
import json
import time
import urllib.request
from importlib.resources import files

import pytest
from playwright.sync_api import Page, Route, expect
from tests.page.acts import TEXT, ask, finished, marked, reload, text_of
from tests.serving.conftest import start, stop

pytestmark = pytest.mark.page

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
    expect(page.locator("#trouble")).to_contain_text("cannot be reached")
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
        (502, None, "The server responded with 502."),
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
        route.fulfill(content_type="text/event-stream", body='data: {"index": 0, "text": "bo')

    page.route("**/editor/suggestions", answer)
    page.keyboard.press("Tab")
    expect(page.locator("#trouble")).to_contain_text("ended early")
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
    expect(page.locator("#trouble")).to_contain_text("has not responded")
    assert text_of(page) == TEXT


def test_layers_may_take_minutes(page):
    """What is computed in one go has no events to hear; after ten minutes it is given up."""
    page.clock.install()
    page.get_by_role("tab", name="Inspect").click()
    page.route("**/editor/layers", lambda route: None)
    page.get_by_role("button", name="Layers on my text").click()
    page.clock.fast_forward(590_000)
    expect(page.locator("#trouble")).to_be_hidden()
    page.clock.fast_forward(20_000)
    expect(page.locator("#trouble")).to_contain_text("has not responded for 600 seconds")


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
        expect(page.locator("#trouble")).to_contain_text("cannot be reached")
        assert text_of(page) == TEXT
        port = first.url.rpartition(":")[2]
        second = start(
            "sample", "--no-browser", "--precision", "fp32", command="write", port=int(port)
        )
        try:
            try_again(page)
        finally:
            stop(second)
    finally:
        context.close()
        first.process.kill()


def test_a_server_with_a_key_asks_the_writer_for_it(browser):
    server = start(
        "sample",
        "--no-browser",
        "--precision",
        "fp32",
        command="write",
        environment={"STILLHOUSE_API_KEY": "secret"},
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


def test_a_further_set_that_fails_leaves_the_earlier_ones(page):
    first = ask(page)

    def answer(route: Route) -> None:
        route.fulfill(status=429, body=json.dumps({"error": "Too many are waiting."}))

    page.route("**/editor/suggestions", answer)
    page.keyboard.press("Tab")
    expect(page.locator("#trouble")).to_contain_text("Too many are waiting.")
    assert finished(page) == first
    expect(page.locator("#set")).to_have_text("1 of 1")
    page.unroute("**/editor/suggestions")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#set")).to_have_text("2 of 2")
    assert finished(page) != first
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    assert text_of(page) == TEXT + first[0]


def test_no_word_is_taken_before_it_is_whole_and_what_has_not_come_yet_is_not_dropped(page):
    """A stream that stops in the middle of its words, before the second suggestion starts."""
    page.evaluate(
        """() => {
          const told = (event) => new TextEncoder().encode(`data: ${JSON.stringify(event)}\\n\\n`);
          window.fetch = async () => new Response(new ReadableStream({
            start(controller) {
              window.come = (...events) => {
                for (const event of events) controller.enqueue(told(event));
              };
            },
          }));
        }"""
    )
    page.keyboard.press("Tab")
    options = page.locator("#suggestions li span")
    page.evaluate("come({index: 0, text: 'bor an'}, {index: 2, text: 'vest '})")
    expect(options).to_have_text(["bor an", "…", "vest "])
    page.keyboard.press("Control+ArrowRight")
    page.keyboard.press("Control+ArrowRight")
    assert text_of(page) == f"{TEXT}bor", "' an' may yet become another word"
    expect(options).to_have_text([" an", "…"])
    page.evaluate("come({index: 0, text: 'd'}, {index: 1, text: 'bor is'})")
    expect(options).to_have_text([" and", " is"])
    page.evaluate("come({index: 0, text: '', finish_reason: 'length'})")
    page.wait_for_timeout(100)
    page.keyboard.press("Control+ArrowRight")
    assert text_of(page) == f"{TEXT}bor and"


NO_STORAGE = """
for (const area of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, area, { get() { throw new DOMException("no", "SecurityError"); } });
}
"""


def test_where_the_browser_keeps_nothing_the_page_works_and_says_so_once(open_page):
    page = open_page()
    page.add_init_script(NO_STORAGE)
    reload(page)
    page.locator("#text").click()
    page.keyboard.type(TEXT)
    expect(page.locator("#trouble")).to_contain_text("cannot save your text")
    page.get_by_role("button", name="Dismiss").click()
    page.locator("#text").focus()
    assert len(ask(page)) == 3
    page.keyboard.press("Enter")
    page.wait_for_timeout(500)
    expect(page.locator("#trouble")).to_be_hidden()
    text = text_of(page)
    page.get_by_role("button", name="New", exact=True).click()
    page.get_by_role("button", name="Restore previous text").click()
    assert text_of(page) == text


def test_who_has_no_key_can_leave_the_question_for_it(open_page):
    page = open_page()
    refused = []

    def answer(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            refused.append(route)
            route.fulfill(status=401, body=json.dumps({"error": "A key is needed."}))

    page.route("**/editor/models", answer)
    page.reload()
    expect(page.locator("#asking-key")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#trouble")).to_contain_text("A key is needed.")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#asking-key")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#trouble")).to_contain_text("A key is needed.")
    page.get_by_role("button", name="Try again").click()
    page.get_by_label("Key", exact=True).fill("secret")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("Ready")
    assert len(refused) == 3, "an empty key is not tried"


def test_a_task_without_an_answer_can_be_asked_again(page):
    """A silent server is given up after half a minute here too."""
    page.clock.install()
    page.get_by_role("tab", name="Tasks").click()
    page.route("**/models/minilm", lambda route: None)
    button = page.locator("#tasks button").first
    button.click()
    expect(button).to_be_disabled()
    page.clock.fast_forward(31_000)
    expect(page.locator("#trouble")).to_contain_text("has not responded")
    expect(button).to_be_enabled()
    page.unroute("**/models/minilm")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#tasks li").first).to_be_visible()


@pytest.mark.parametrize("ends", ["by hand", "by an error"])
def test_a_heat_map_that_is_not_read_does_not_go_on_reading(page, ends):
    def answer(route: Route) -> None:
        if ends == "by an error":
            route.fulfill(status=500, body=json.dumps({"error": "Reading failed."}))

    page.route("**/editor/surprisal", answer)
    page.get_by_role("tab", name="Heat map").click()
    if ends == "by hand":
        expect(page.locator("#heat-summary")).to_contain_text("Scoring")
        page.locator("#heat-stop").click()
    expect(page.locator("#heat-stop")).to_be_hidden()
    expect(page.locator("#heat-summary")).to_have_text("No text was scored.")


def test_a_retry_that_fails_costs_no_turn_of_the_story(page):
    """Nor does a reload while it waits."""
    page.get_by_role("tab", name="Story").click()
    page.get_by_label("What happens next").fill("wait")
    page.get_by_label("What happens next").press("Enter")
    turns = page.locator("#story-turns li")
    expect(turns).to_have_count(2)
    expect(page.locator("#story-stop")).to_be_hidden()
    told = turns.all_text_contents()
    page.context.set_offline(True)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#trouble")).to_contain_text("cannot be reached")
    assert turns.all_text_contents() == told
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(turns.nth(1)).not_to_have_text(told[1])
    expect(page.locator("#story-stop")).to_be_hidden()
    told = turns.all_text_contents()
    page.route("**/editor/suggestions", lambda route: None)
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#story-stop")).to_be_visible()
    reload(page)
    page.get_by_role("tab", name="Story").click()
    assert turns.all_text_contents() == told
