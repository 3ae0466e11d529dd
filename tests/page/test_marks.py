"""Who wrote what is never said wrongly, however the text came to be: a machine's words stay its own
through line breaks, undo, cut and paste, reloads, links and exports."""

import json
from collections.abc import Sequence

import pytest
from playwright.sync_api import Page, expect
from tests.page.acts import keep_settings, marked, reload, text_of

pytestmark = pytest.mark.page

SETTINGS = {"fixedSeed": True, "seed": 5, "model": "student", "number": 1}
START = "It rose. "


@pytest.fixture
def page(open_page) -> Page:
    opened = open_page()
    keep_settings(opened, SETTINGS)
    return opened


def suggest(page: Page, texts: Sequence[str]) -> None:
    """Have the next suggestions come as these texts, piece by piece."""
    events = [{"index": 0, "text": text} for text in texts]
    events.append({"index": 0, "text": "", "finish_reason": "length"})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    page.route(
        "**/editor/suggestions",
        lambda route: route.fulfill(content_type="text/event-stream", body=body),
    )


def take(page: Page, *texts: str, by: str = "Enter") -> None:
    suggest(page, texts)
    page.keyboard.press("Tab")
    expect(page.locator("#suggestions")).to_have_attribute("aria-busy", "false")
    page.keyboard.press(by)


def exported(page: Page) -> tuple[str, list[tuple[str, str]]]:
    """What an export says of the text, and its parts with who wrote each."""
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.locator("[data-format=json]").click()
    page.locator("#exporting").get_by_role("button", name="Close").click()
    found = json.loads(download.value.path().read_text(encoding="utf-8"))
    return found["note"], [(part["written_by"], part["text"]) for part in found["parts"]]


def kept_marks(page: Page) -> list[dict]:
    page.wait_for_timeout(400)  # it is kept a moment after the last change
    return page.evaluate("JSON.parse(localStorage.getItem('stillhouse.manuscript')).marks")


@pytest.mark.parametrize(
    "pieces",
    [
        ["the sea\nand the wind\n\nwent down"],
        ["the sea\r", "\nand the wind\r\nwent down"],
        ["the sea\rwent down"],
        ["\n"],
        ["the sea\n"],
        ["\n\n\t🌊 \U0001f469\u200d\U0001f680\n"],
    ],
)
def test_a_suggestion_with_line_breaks_is_one_mark(page, pieces):
    """However many changes the browser tells of; also after a reload, in exports, and undone."""
    text = "".join(pieces).replace("\r\n", "\n").replace("\r", "\n")
    page.keyboard.type(START)
    take(page, *pieces)
    assert text_of(page) == START + text
    assert marked(page) == [text]
    expect(page.locator("#counts")).to_contain_text("% machine")
    share = int(page.locator("#counts").text_content().split(", ")[1].split()[0])
    length = len((START + text).encode("utf-16-le")) // 2
    machine = len(text.encode("utf-16-le")) // 2
    assert share == round(100 * machine / length)
    assert kept_marks(page) == [{"start": len(START), "end": length, "model": "student"}]
    page.keyboard.press("Control+z")
    assert (text_of(page), marked(page)) == (START, [])
    page.keyboard.press("Control+Shift+z")
    assert (text_of(page), marked(page)) == (START + text, [text])
    reload(page)
    assert marked(page) == [text]
    note, parts = exported(page)
    assert parts == [("person", START), ("machine", text)]
    assert note == f"{share} % of this text was written by a machine (student)."


def test_words_with_line_breaks_are_taken_one_at_a_time(page):
    page.keyboard.type(START)
    take(page, "the\r\n\r\nold\r\nsea", by="Control+ArrowRight")
    for _ in range(2):
        page.keyboard.press("Control+ArrowRight")
    assert text_of(page) == START + "the\n\nold\nsea"
    assert marked(page) == ["the\n\nold\nsea"]


def test_machine_text_that_is_moved_or_copied_stays_a_machine_s(page):
    """Cut and pasted over several lines, and over what begins as it does."""
    page.keyboard.type(START)
    take(page, "the sea\nwent down")
    page.keyboard.press("Control+a")
    page.keyboard.press("Control+x")
    assert (text_of(page), marked(page)) == ("", [])
    page.keyboard.type("the end")
    page.keyboard.press("Control+a")
    page.keyboard.press("Control+v")
    assert text_of(page) == START + "the sea\nwent down"
    assert marked(page) == ["the sea\nwent down"]
    page.evaluate("document.getElementById('text').setSelectionRange(9, 16)")
    page.keyboard.press("Control+c")
    page.keyboard.press("Control+Home")
    page.keyboard.type("the old")
    page.evaluate("document.getElementById('text').setSelectionRange(0, 7)")
    page.keyboard.press("Control+v")
    assert text_of(page).startswith("the sea" + START)
    assert marked(page) == ["the sea", "the sea\nwent down"]
    page.keyboard.press("Control+z")
    assert marked(page) == ["the sea\nwent down"]


def test_what_is_copied_from_another_view_is_a_machine_s(page):
    """What the student wrote beside its teacher."""
    suggest(page, ["the sea\nwent down"])
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-student").select_option("student")
    page.get_by_role("button", name="Continue with both").click()
    expect(page.locator("#student-text")).to_have_text("the sea\nwent down")
    page.evaluate("getSelection().selectAllChildren(document.getElementById('student-text'))")
    page.keyboard.press("Control+c")
    page.get_by_role("tab", name="Write").click()
    page.locator("#text").click()
    page.keyboard.type(START)
    page.keyboard.press("Control+v")
    assert text_of(page) == START + "the sea\nwent down"
    assert marked(page) == ["the sea\nwent down"]


def test_what_a_person_pastes_is_the_person_s(page):
    """Though a machine wrote something else before."""
    page.keyboard.type("one\ntwo ")
    page.keyboard.press("Control+a")
    page.keyboard.press("Control+c")
    page.keyboard.press("End")
    take(page, "three")
    page.keyboard.press("Control+v")
    assert text_of(page) == "one\ntwo threeone\ntwo "
    assert marked(page) == ["three"]


def test_a_character_is_never_split_between_two_writers(page):
    """Two that share half of their surrogate pairs."""
    page.keyboard.type("A ")
    take(page, "😀 wave")
    page.evaluate("document.getElementById('text').setSelectionRange(2, 4)")
    page.keyboard.insert_text("😁")
    assert text_of(page) == "A 😁 wave"
    assert marked(page) == [" wave"]
    assert exported(page)[1] == [("person", "A 😁"), ("machine", " wave")]


def test_a_state_that_is_forgotten_is_not_taken_for_a_person_s(page):
    """Undone after more than is remembered: who wrote what comes back is not known."""
    page.keyboard.type(START)
    take(page, "the sea went down")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.type("a" * 250)
    for _ in range(300):
        page.keyboard.press("Control+z")
        if text_of(page) == START + "the sea went down":
            break
    assert "".join(marked(page)).endswith("the sea went down")
    assert "is unknown" in exported(page)[0]


DAMAGED = [
    [{"start": 3, "end": 400, "model": "student"}],
    [{"start": 5, "end": 2, "model": "student"}],
    [{"start": 0, "end": 4, "model": "student"}, {"start": 2, "end": 6, "model": "student"}],
    [{"start": 0, "end": 4, "model": 7}],
    "none",
    None,
]


@pytest.mark.parametrize("marks", DAMAGED)
def test_damaged_marks_never_say_that_no_machine_wrote(page, marks):
    """All of the text is marked, and it is said; what is typed after that is a person's."""
    page.evaluate(
        "given => localStorage.setItem('stillhouse.manuscript', JSON.stringify(given))",
        {"text": "The sea rose.", "marks": marks},
    )
    reload(page)
    expect(page.locator("#trouble")).to_contain_text("were damaged")
    assert marked(page) == ["The sea rose."]
    expect(page.locator("#counts")).to_have_text("3 words, 100 % unknown")
    note, parts = exported(page)
    assert note == "The author of 100 % of this text is unknown: its marks were lost."
    assert parts == [("unknown", "The sea rose.")]
    page.locator("#text").focus()
    page.keyboard.press("Control+End")
    page.keyboard.type(" And fell.")
    assert marked(page) == ["The sea rose."]
    page.wait_for_timeout(400)
    reload(page)
    expect(page.locator("#trouble")).to_be_hidden()
    assert marked(page) == ["The sea rose."]


def test_a_link_with_damaged_marks_says_so(page, writing):
    link = page.evaluate(
        """async (text) => {
          const { linkTo } = await import("/web/persistence.js");
          return linkTo({ text, marks: [{ start: 0, end: 999, model: "student" }] });
        }""",
        "Another's text.",
    )
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#trouble")).to_contain_text("were damaged")
    assert marked(page) == ["Another's text."]


def test_marks_of_a_text_with_other_line_breaks_stay_in_their_places(page):
    """A textarea makes line feeds of them, so each moves what follows."""
    page.evaluate(
        "given => localStorage.setItem('stillhouse.manuscript', JSON.stringify(given))",
        {"text": "a\r\nb\r\nsea", "marks": [{"start": 6, "end": 9, "model": "student"}]},
    )
    reload(page)
    assert text_of(page) == "a\nb\nsea"
    assert marked(page) == ["sea"]


def test_a_long_text_is_not_cut_within_a_character(page):
    """What is read ends before the caret, and begins with a whole character."""
    page.unroute_all()
    page.locator("#text").fill("a" + "🌊" * 10_000)
    page.keyboard.press("Control+End")
    page.keyboard.press("Tab")
    expect(page.locator("#suggestions")).to_have_attribute("aria-busy", "false")
    expect(page.locator("#trouble")).to_be_hidden()
    assert page.locator("#suggestions li").count() == 1


def test_almost_all_is_not_all(page):
    """One letter of a person's among five hundred."""
    page.keyboard.type("A")
    take(page, " sea" * 125)
    expect(page.locator("#counts")).to_contain_text("99 % machine")


def test_what_is_said_of_one_view_does_not_stay_on_the_next(page):
    page.keyboard.type(START)
    take(page, "the sea")
    expect(page.locator("#status")).to_have_text("Taken.")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#status")).to_have_text("")


@pytest.mark.parametrize(
    ("tab", "place", "hint"),
    [
        ("Compare", "#student-text", "The student's text"),
        ("Compare", "#teacher-text", "The teacher's text"),
        ("Story", "#story-turns", "No story yet"),
        ("Heat map", "#heat-token", "Point at a token"),
    ],
)
def test_an_empty_view_says_what_will_stand_there(page, tab, place, hint):
    page.get_by_role("tab", name=tab).click()
    content = "place => getComputedStyle(document.querySelector(place), '::before').content"
    assert hint in page.evaluate(content, place)
    expect(page.locator(place)).to_be_visible()
