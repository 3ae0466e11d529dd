"""What a writer does on the page, and what is to be seen there."""

from playwright.sync_api import Page, expect

TEXT = "The old man went down to the har"


def keep_settings(page: Page, settings: dict) -> None:
    page.evaluate(
        "given => localStorage.setItem('stillhouse.settings', JSON.stringify(given))", settings
    )
    reload(page)


def reload(page: Page) -> None:
    page.reload()
    expect(page.locator("#status")).to_contain_text("Ready")


def text_of(page: Page) -> str:
    return page.locator("#text").input_value()


def ask(page: Page) -> list[str]:
    """Press Tab, wait until all is there: the suggestions."""
    page.keyboard.press("Tab")
    return finished(page)


def finished(page: Page) -> list[str]:
    expect(page.locator("#suggestions")).to_have_attribute("aria-busy", "false")
    return page.locator("#suggestions li span").all_text_contents()


def marked(page: Page) -> list[str]:
    return page.locator("#marks mark").all_text_contents()
