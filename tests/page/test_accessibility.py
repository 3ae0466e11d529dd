"""For everyone: no violation that axe finds, in any view, light or dark; names and states for who
cannot see the page."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect
from tests.page.acts import TEXT, ask, finished

pytestmark = pytest.mark.page

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


def check(page: Page) -> None:
    found = Axe().run(page, options=RULES)
    assert found.violations_count == 0, found.generate_report()


def prepared(page: Page, view: str) -> None:
    page.locator("#text").click()
    page.keyboard.type(TEXT)
    match view:
        case "suggestions":
            ask(page)
        case "taken":
            ask(page)
            page.keyboard.press("Enter")
        case "settings" | "export" | "share":
            page.get_by_role("button", name=view.capitalize()).click()
        case "heat":
            page.get_by_role("tab", name="Heat map").click()
            expect(page.locator("#heat-stop")).to_be_hidden()
            page.locator("#heat-text").focus()
        case "compare":
            page.get_by_role("tab", name="Compare").click()
            page.get_by_role("button", name="Speculative decoding").click()
            expect(page.locator("#draft-facts")).to_contain_text("Speed-up")
        case "chat":
            page.get_by_role("tab", name="Chat").click()
            page.get_by_label("Your message").fill("Who are you?")
            page.get_by_label("Your message").press("Enter")
            expect(page.locator("#chat-turns li")).to_have_count(2)
        case "story":
            page.get_by_role("tab", name="Story").click()
            page.get_by_label("What happens next").fill("wait")
            page.get_by_label("What happens next").press("Enter")
            expect(page.locator("#story-turns li")).to_have_count(2)
        case "inspect":
            page.get_by_role("tab", name="Inspect").click()
            page.locator("#inspect-strongest button").last.click()
            expect(page.locator("#inspect-contexts li")).to_have_count(10)
            page.get_by_role("button", name="Layers on my text").click()
            expect(page.locator("#inspect-layers tr")).to_have_count(4)
        case "tasks":
            page.get_by_role("tab", name="Tasks").click()
            page.locator("#tasks button").first.click()
            expect(page.locator("#tasks li").first).to_be_visible()
        case "trouble":
            page.context.set_offline(True)
            page.keyboard.press("Tab")
            expect(page.locator("#trouble")).to_be_visible()


VIEWS = (
    "suggestions",
    "taken",
    "settings",
    "export",
    "share",
    "heat",
    "compare",
    "chat",
    "story",
    "inspect",
    "tasks",
    "trouble",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(open_page, view, scheme):
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    prepared(page, view)
    check(page)


def test_axe_finds_nothing_on_a_phone(open_page):
    page = open_page(width=390, height=844, is_mobile=True, has_touch=True)
    page.locator("#text").fill(TEXT)
    page.locator("#suggest").tap()
    finished(page)
    check(page)


def test_a_screen_reader_hears_the_suggestions_and_which_one_is_active(open_page):
    """The list is announced when it is whole, not at every word; the active one is the text's."""
    page = open_page()
    page.locator("#text").click()
    page.keyboard.type(TEXT)
    texts = ask(page)
    aloud = page.locator("#aloud")
    expect(aloud).to_have_attribute("role", "status")
    expect(aloud).to_contain_text(f"3 suggestions. 1: {texts[0].strip()}")
    page.keyboard.press("ArrowDown")
    active = page.locator("#text").get_attribute("aria-activedescendant")
    option = page.locator(f"#{active}")
    expect(option).to_have_attribute("aria-selected", "true")
    expect(option).to_contain_text(texts[1])
    tree = page.locator("#popover").aria_snapshot()
    assert tree.count("option") == 3
    assert 'listbox "Suggestions"' in tree


def test_everything_is_reached_with_keys_alone(open_page):
    """From the tabs through the heat map to a token, back to the text, and out of it."""
    page = open_page()
    page.keyboard.type(TEXT)
    page.keyboard.press("Escape")
    page.keyboard.press("Shift+Tab")
    for _ in range(20):
        if page.evaluate("document.activeElement.role") == "tab":
            break
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Heat map")).to_be_focused()
    expect(page.locator("#heat-stop")).to_be_hidden()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "heat-text":
            break
    page.keyboard.press("ArrowRight")
    expect(page.locator("#heat-token h2")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("#text")).to_be_focused()
    finished(page)
    page.keyboard.press("1")
    expect(page.locator("#marks mark")).to_have_count(1)
