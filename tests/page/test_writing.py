"""Writing with suggestions: keys alone, by hand, on a phone."""

import json

import pytest
from playwright.sync_api import Page, expect
from tests.page.acts import TEXT, ask, finished, keep_settings, marked, reload, text_of

pytestmark = pytest.mark.page

SETTINGS = {"fixedSeed": True, "seed": 5, "model": "student"}


@pytest.fixture
def page(open_page) -> Page:
    opened = open_page()
    keep_settings(opened, SETTINGS)
    return opened


def test_tab_asks_enter_takes_and_one_undo_takes_it_back(page):
    """With keys alone, in the middle of a word: no space is forced in."""
    page.keyboard.type(TEXT)
    first = ask(page)
    assert len(first) == 3
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#popover")).to_be_hidden()
    assert text_of(page) == TEXT + first[1]
    assert marked(page) == [first[1]]
    page.keyboard.press("Control+z")
    assert text_of(page) == TEXT
    assert marked(page) == []
    page.keyboard.press("Control+Shift+z")
    assert text_of(page) == TEXT + first[1]
    assert marked(page) == [first[1]], "what is done again is a machine's again"


def test_tab_again_gives_others_and_the_earlier_ones_are_kept(page):
    page.keyboard.type(TEXT)
    first = ask(page)
    second = ask(page)
    assert first != second
    expect(page.locator("#set")).to_have_text("2 of 2")
    page.keyboard.press("Shift+Tab")
    assert finished(page) == first
    page.keyboard.press("3")
    assert text_of(page) == TEXT + first[2]


def test_a_fixed_seed_gives_the_same_suggestions_again(page):
    page.keyboard.type(TEXT)
    first = ask(page)
    page.keyboard.press("Escape")
    assert ask(page) == first


def test_one_word_is_taken_at_a_time(page):
    page.keyboard.type(TEXT)
    text = ask(page)[0]
    page.keyboard.press("Control+ArrowRight")
    word = marked(page)[0]
    assert text.startswith(word)
    assert len(word.split()) == 1
    expect(page.locator("#popover")).to_be_visible()
    page.keyboard.press("Enter")
    assert text_of(page) == TEXT + text
    assert marked(page) == [text], "two takings in a row are one stretch"


def test_suggestions_come_at_the_caret_and_what_stands_behind_it_stays(page):
    page.keyboard.type("The sea was  tonight.")
    for _ in range(len(" tonight.")):
        page.keyboard.press("ArrowLeft")
    text = ask(page)[0]
    page.keyboard.press("Enter")
    assert text_of(page) == f"The sea was {text} tonight."
    assert marked(page) == [text]


def test_what_a_person_types_inside_machine_text_is_the_person_s(page):
    page.keyboard.type(TEXT)
    text = ask(page)[0]
    page.keyboard.press("Enter")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    page.keyboard.type("XY")
    assert marked(page) == [text[:-3], text[-3:]]
    page.keyboard.press("Backspace")
    page.keyboard.press("Backspace")
    assert marked(page) == [text], "and when it is gone, nothing of it is left"


def test_typing_on_closes_the_suggestions_and_escape_too(page):
    page.keyboard.type(TEXT)
    ask(page)
    page.keyboard.type("b")
    expect(page.locator("#popover")).to_be_hidden()
    ask(page)
    page.keyboard.press("Escape")
    expect(page.locator("#popover")).to_be_hidden()
    assert text_of(page) == f"{TEXT}b"


def test_escape_then_tab_leaves_the_text(page):
    """No trap for the keyboard; and Ctrl+Space asks as Tab does."""
    page.locator("#text").focus()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    expect(page.locator("#text")).not_to_be_focused()
    page.locator("#text").focus()
    page.keyboard.type(TEXT)
    page.keyboard.press("Control+ ")
    assert len(finished(page)) == 3


def test_a_click_and_the_settings(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("slider", name="Suggestions").fill("5")
    page.get_by_role("slider", name="Tokens per suggestion").fill("4")
    page.get_by_role("button", name="Done").click()
    page.locator("#text").click()
    page.keyboard.type(TEXT)
    page.get_by_role("button", name="Suggest", exact=True).click()
    texts = finished(page)
    assert len(texts) == 5
    page.get_by_role("option").nth(4).click()
    assert text_of(page) == TEXT + texts[4]


def test_what_is_written_is_there_after_a_reload(page):
    """With what a machine wrote of it."""
    page.keyboard.type(TEXT)
    text = ask(page)[0]
    page.keyboard.press("Enter")
    reload(page)
    assert text_of(page) == TEXT + text
    assert marked(page) == [text]


def test_a_link_holds_the_text_and_one_s_own_is_kept(page, writing):
    page.keyboard.type(TEXT)
    text = ask(page)[0]
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Share").click()
    expect(page.locator("#link")).not_to_have_value("")
    link = page.locator("#link").input_value()
    page.locator("#sharing").get_by_role("button", name="Close").click()
    page.locator("#text").fill("My own text.")
    page.wait_for_timeout(500)  # it is kept a moment after the last change
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#status")).to_contain_text("Ready")
    assert text_of(page) == TEXT + text
    assert marked(page) == [text]
    assert page.url == f"{writing.url}/"
    page.get_by_role("button", name="Restore previous text").click()
    assert text_of(page) == "My own text."


@pytest.mark.parametrize("format", ["txt", "html", "json"])
def test_exports_say_what_a_machine_wrote(page, format, tmp_path):
    page.keyboard.type("Waves <b>& wind</b>")
    text = ask(page)[0]
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.locator(f"[data-format={format}]").click()
    path = tmp_path / f"text.{format}"
    download.value.save_as(path)
    content = path.read_text(encoding="utf-8")
    assert "% of this text was written by a machine (student)." in content
    if format == "json":
        parts = json.loads(content)["parts"]
        assert [part["text"] for part in parts] == ["Waves <b>& wind</b>", text]
        assert [part["written_by"] for part in parts] == ["person", "machine"]
    elif format == "html":
        assert "Waves &lt;b&gt;&amp; wind&lt;/b&gt;" in content
        page.goto(path.as_uri())
        assert page.locator("mark").text_content() == text
    else:
        assert content.startswith("Waves <b>& wind</b>" + text.rstrip())


def test_on_a_phone_buttons_do_what_keys_do(open_page):
    page = open_page(width=390, height=844, has_touch=True, is_mobile=True)
    page.locator("#text").fill(TEXT)
    page.locator("#suggest").tap()
    text = finished(page)[0]
    box = page.locator("#popover").bounding_box()
    assert box["x"] == 0
    assert box["width"] == 390
    page.locator("#more").tap()
    finished(page)
    page.locator("#earlier").tap()
    assert finished(page)[0] == text
    page.locator("#take").tap()
    assert text_of(page) == TEXT + text
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def own_link(page: Page, text: str) -> str:
    """A link to this text, as another writer would send it."""
    page.locator("#text").fill(text)
    page.get_by_role("button", name="Share").click()
    expect(page.locator("#sharing")).to_be_visible()
    link = page.locator("#link").input_value()
    page.locator("#sharing").get_by_role("button", name="Close").click()
    return link


def bring_back(page: Page) -> str:
    page.get_by_role("button", name="Restore previous text").click()
    return text_of(page)


def test_after_two_links_in_a_row_one_s_own_text_can_be_had_back(page):
    """Opened in the tab that has the page already, where the address alone changes; and going
    through all texts loses none."""
    first, second = own_link(page, "The first."), own_link(page, "The second.")
    page.locator("#text").fill("My own text.")
    page.goto(first)
    expect(page.locator("#text")).to_have_value("The first.")
    page.goto(second)
    expect(page.locator("#text")).to_have_value("The second.")
    texts = [bring_back(page) for _ in range(6)]
    assert texts == ["The first.", "My own text.", "The second."] * 2
    reload(page)
    assert bring_back(page) == "The first."


def test_new_twice_keeps_both_texts(page):
    for text in ("One.", "Two."):
        page.locator("#text").fill(text)
        page.get_by_role("button", name="New", exact=True).click()
        assert text_of(page) == ""
    page.get_by_role("button", name="New", exact=True).click()
    assert [bring_back(page) for _ in range(3)] == ["Two.", "One.", "Two."]


def test_of_many_texts_the_last_five_are_kept(page):
    """Also after one of them was brought back: what lies there longest goes, not what lies last."""
    for number in range(6):
        page.locator("#text").fill(f"Text {number}.")
        page.get_by_role("button", name="New", exact=True).click()
    page.locator("#text").fill("Text 6.")
    assert bring_back(page) == "Text 5."
    page.get_by_role("button", name="New", exact=True).click()
    texts = {bring_back(page) for _ in range(8)}
    assert texts == {f"Text {number}." for number in range(2, 7)}


@pytest.mark.parametrize("hash", ["#text=", "#text=AAAA", "#text=%20%20"])
def test_a_damaged_link_says_so_and_the_text_stays(page, hash):
    page.keyboard.type(TEXT)
    page.evaluate("given => (location.hash = given)", hash)
    expect(page.locator("#trouble")).to_contain_text("This link is damaged")
    expect(page.get_by_role("button", name="Try again")).to_be_hidden()
    assert text_of(page) == TEXT


def test_two_tabs_lose_nothing_of_each_other_s(page, writing):
    """The one that hears of the other's text says so once, and sets its own aside."""
    other = page.context.new_page()
    other.goto(writing.url)
    expect(other.locator("#status")).to_contain_text("Ready")
    page.keyboard.type("Here.")
    page.wait_for_timeout(500)
    expect(other.locator("#trouble")).to_contain_text("open in another tab")
    other.locator("#trouble-close").click()
    other.locator("#text").click()
    other.keyboard.type("There")
    other.wait_for_timeout(500)
    page.keyboard.type(" Still here.")
    page.wait_for_timeout(500)
    other.keyboard.type(", too.")
    other.wait_for_timeout(500)
    expect(other.locator("#trouble")).to_be_hidden()
    expect(page.locator("#trouble")).to_be_hidden()
    reload(page)
    assert text_of(page) == "Here. Still here."
    assert bring_back(page) == "There, too."
    assert bring_back(page) == "Here. Still here."


def test_suggestions_are_marked_with_the_model_that_was_asked(page):
    """Not with the one that is chosen when they are taken."""
    page.keyboard.type(TEXT)
    ask(page)
    page.evaluate(
        """() => {
          const select = document.querySelector("[name=model]");
          select.value = "sample";
          select.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.locator("[data-format=json]").click()
    parts = json.loads(download.value.path().read_text(encoding="utf-8"))["parts"]
    assert [part.get("model") for part in parts] == [None, "student"]


@pytest.mark.parametrize("taken", ["the sea was rough", "the old sea", "the sea"])
def test_what_a_machine_writes_over_a_selection_is_its_own_to_the_last_letter(page, taken):
    """Also where it begins or ends as what was there, which a person had written."""
    events = [{"index": 0, "text": taken}, {"index": 0, "text": "", "finish_reason": "length"}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    keep_settings(page, {**SETTINGS, "number": 1})
    page.route(
        "**/editor/suggestions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )
    page.locator("#text").fill("I saw the sea. It rose.")
    page.evaluate("document.getElementById('text').setSelectionRange(6, 13)")
    ask(page)
    page.keyboard.press("Enter")
    assert text_of(page) == f"I saw {taken}. It rose."
    assert marked(page) == [taken]
