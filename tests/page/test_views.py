"""The other views: how surprising a text is, student beside teacher, stories, encoders."""

import json
import re

import pytest
import torch
from playwright.sync_api import Page, expect
from tests.page.acts import TEXT, finished, keep_settings, reload, text_of

import stillhouse

pytestmark = pytest.mark.page


@pytest.fixture
def page(open_page) -> Page:
    opened = open_page()
    keep_settings(opened, {"fixedSeed": True, "seed": 5, "model": "sample", "tokens": 24})
    return opened


def number_in(page: Page, place: str, pattern: str) -> float:
    found = re.search(pattern, page.locator(place).text_content() or "")
    assert found
    return float(found[1])


def heat_of(page: Page, text: str) -> list[str]:
    """The tokens of the heat map of this text."""
    page.locator("#text").fill(text)
    page.get_by_role("tab", name="Heat map").click()
    page.locator("#heat-model").select_option("sample")
    expect(page.locator("#heat-stop")).to_be_hidden()
    expect(page.locator("#heat-summary")).to_contain_text("perplexity")
    return page.locator("#heat-text .token").all_text_contents()


def test_the_heat_map_has_every_token_with_the_model_s_own_probability(page):
    """A line break and a character of two units among them; against transformers' logits."""
    text = "The sea — 🌊 —\nwas rough that night."
    tokens = heat_of(page, text)
    assert "".join(tokens) == text
    loaded = stillhouse.load("sample")
    ids = loaded.encode(text)
    assert len(tokens) == len(ids)
    with_start = torch.tensor([[loaded.model.config.bos_token_id, *ids]])
    with torch.no_grad():
        logits = loaded.model(input_ids=with_start).logits[0, :-1].double().log_softmax(-1)
    own = logits[torch.arange(len(ids)), with_start[0, 1:]]
    perplexity = float((-own.mean()).exp())
    shown = number_in(page, "#heat-summary", r"perplexity ([\d.]+)")
    assert shown == pytest.approx(perplexity, abs=0.06)
    page.locator("#heat-text").focus()
    page.keyboard.press("End")
    last = int((logits[-1] > own[-1]).sum()) + 1
    expect(page.locator("#heat-token")).to_contain_text(f"rank {last:,}")
    best = loaded.token_text(int(logits[-1].argmax()))
    first = page.locator("#heat-token li").first
    expect(first).to_contain_text(best.strip())
    expect(first).to_contain_text(f"{100 * float(logits[-1].max().exp()):.1f} %")


def test_a_text_longer_than_the_context_is_read_to_its_end(page):
    text = "The wind rose and the sea with it. " * 120
    tokens = heat_of(page, text)
    assert "".join(tokens) == text


def test_by_rank_it_says_which_tokens_the_model_would_have_written(page):
    heat_of(page, TEXT)
    page.get_by_label("Rank").check()
    expect(page.locator("#heat-legend li").first).to_contain_text("top 1")
    share = page.locator("#heat-text .step-0").count() / page.locator("#heat-text .token").count()
    expect(page.locator("#heat-summary")).to_contain_text(f"{round(100 * share)} % are")


def test_writing_goes_on_from_a_token_of_the_heat_map(page):
    """What follows it is replaced when a suggestion is taken, and one undo brings it back."""
    tokens = heat_of(page, TEXT)
    page.locator("#heat-text").focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    kept = "".join(tokens[:4])
    texts = finished(page)
    page.keyboard.press("Enter")
    assert text_of(page) == kept + texts[0]
    page.keyboard.press("Control+z")
    assert text_of(page) == TEXT


def test_a_student_is_shown_beside_its_teacher(page):
    page.locator("#text").fill(TEXT)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-student").select_option("student")
    page.locator("#compare-teacher").select_option("sample")
    page.get_by_role("button", name="Continue with both").click()
    expect(page.locator("#agreement")).to_contain_text("are sample's top choice")
    for column in ("student", "teacher"):
        expect(page.locator(f"#{column}-text")).not_to_be_empty()
        expect(page.locator(f"#{column}-facts")).to_contain_text("tokens/s")
    assert text_of(page) == TEXT


def test_a_student_s_drafts_give_the_teacher_s_own_text(page):
    """Greedy, so that the text is known: the teacher's, whoever drafted it."""
    keep_settings(page, {"temperature": 0, "tokens": 40, "model": "sample"})
    page.locator("#text").fill(TEXT)
    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-student").select_option("student")
    page.locator("#compare-teacher").select_option("sample")
    page.get_by_role("button", name="Speculative decoding").click()
    expect(page.locator("#draft-facts")).to_contain_text("Speed-up")
    page.get_by_role("button", name="Continue with both").click()
    expect(page.locator("#agreement")).not_to_be_empty()
    drafted = page.locator("#draft-text").text_content()
    assert drafted == page.locator("#teacher-text").text_content()
    kept = number_in(page, "#draft-facts", r"(\d+) of")
    assert kept >= page.locator("#draft-text mark").count()


def test_a_story_is_told_in_turns(page):
    page.get_by_role("tab", name="Story").click()
    page.get_by_label("Always remember").fill("You are a lighthouse keeper.")
    field = page.get_by_label("What happens next")
    field.fill("light the lamp")
    field.press("Enter")
    turns = page.locator("#story-turns li")
    expect(page.locator("#story-stop")).to_be_hidden()
    expect(turns).to_have_count(2)
    expect(turns.first).to_have_text("> You light the lamp")
    told = turns.nth(1).text_content()
    assert told
    assert "\n>" not in told
    page.get_by_role("button", name="Retry").click()
    expect(turns.nth(1)).not_to_have_text(told)
    page.get_by_label("Say").check()
    field.fill("Who is there?")
    page.get_by_role("button", name="Go", exact=True).click()
    expect(page.locator("#story-stop")).to_be_hidden()
    expect(turns.nth(2)).to_have_text('> You say "Who is there?"')
    page.get_by_role("button", name="Undo").click()
    expect(turns).to_have_count(2)
    page.reload()
    page.get_by_role("tab", name="Story").click()
    expect(turns).to_have_count(2)
    page.get_by_role("button", name="Copy to editor").click()
    assert text_of(page).strip().startswith("> You light the lamp")
    expect(page.locator("#counts")).to_contain_text("% machine")


def tell(page: Page, words: str) -> None:
    """A turn of the story, and what follows from it."""
    page.get_by_role("tab", name="Story").click()
    page.get_by_label("What happens next").fill(words)
    page.get_by_label("What happens next").press("Enter")
    expect(page.locator("#story-turns .model").last).to_be_visible()
    expect(page.locator("#story-stop")).to_be_hidden()


def test_what_is_to_be_remembered_is_pinned_and_the_story_is_the_text(page):
    asked = []
    page.on("request", lambda request: asked.append(request))
    tell(page, "wait")
    page.get_by_label("Always remember").fill("You are a lighthouse keeper.")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#story-stop")).to_be_hidden()
    first, second = (each.post_data_json for each in asked if "suggestions" in each.url)
    assert "pinned" not in first
    assert second["pinned"] == "You are a lighthouse keeper.\n"
    assert first["text"] == second["text"] == "> You wait\n"


def test_a_new_story_does_not_cost_the_old_one(page):
    """Nor does a reload in between; bringing it back sets the new one aside."""
    tell(page, "light the lamp")
    turns = page.locator("#story-turns li")
    told = turns.all_text_contents()
    expect(page.get_by_role("button", name="Restore previous story")).to_be_hidden()
    page.get_by_role("button", name="New story").click()
    expect(turns).to_have_count(0)
    page.get_by_role("button", name="New story").click()
    reload(page)
    page.get_by_role("tab", name="Story").click()
    page.get_by_role("button", name="Restore previous story").click()
    assert turns.all_text_contents() == told


def test_each_turn_of_a_story_is_marked_with_the_model_that_told_it(page):
    tell(page, "light the lamp")
    keep_settings(page, {"model": "student"})
    tell(page, "wait")
    keep_settings(page, {"model": "sample"})
    page.get_by_role("tab", name="Story").click()
    page.get_by_role("button", name="Copy to editor").click()
    page.wait_for_timeout(500)  # it is kept a moment after the last change
    marks = page.evaluate("JSON.parse(localStorage.getItem('stillhouse.manuscript')).marks")
    assert [mark["model"] for mark in marks] == ["sample", "student"]


def talk(page: Page, words: str) -> None:
    """A message of a conversation, and its answer."""
    turns = page.locator("#chat-turns .model")
    number = turns.count()
    page.get_by_label("Your message").fill(words)
    page.get_by_label("Your message").press("Enter")
    expect(turns).to_have_count(number + 1)
    expect(page.locator("#chat-stop")).to_be_hidden()


def test_a_conversation_is_sent_whole_with_its_instructions(page):
    """Enter sends, Shift+Enter starts a line; the model's answers are the assistant's messages."""
    keep_settings(page, {"model": "student", "fixedSeed": True, "seed": 5})
    asked = []
    page.on("request", lambda request: asked.append(request))
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("Instructions").fill("Be brief.")
    page.get_by_label("Your message").fill("Who is")
    page.get_by_label("Your message").press("Shift+Enter")
    page.keyboard.type("there?")
    page.keyboard.press("Enter")
    answers = page.locator("#chat-turns .model")
    expect(answers).to_have_count(1)
    expect(page.locator("#chat-stop")).to_be_hidden()
    talk(page, "And who are you?")
    sent = [each.post_data_json for each in asked if "/editor/chat" in each.url]
    assert [message["role"] for message in sent[0]["messages"]] == ["system", "user"]
    assert sent[0]["messages"][1]["content"] == "Who is\nthere?"
    roles = ["system", "user", "assistant", "user"]
    assert [message["role"] for message in sent[1]["messages"]] == roles
    first = answers.first.text_content() or ""
    assert sent[1]["messages"][2]["content"].strip() == first.strip()
    assert "max_new_tokens" not in sent[0]  # an answer is longer than a suggestion


def test_a_conversation_is_retried_undone_and_survives_a_reload(page):
    keep_settings(page, {"model": "student", "fixedSeed": True, "seed": 5})
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("button", name="Retry").click()  # nothing to retry, and no error
    expect(page.locator("#trouble")).to_be_hidden()
    talk(page, "Who is there?")
    turns = page.locator("#chat-turns li")
    said = turns.nth(1).text_content() or ""
    page.get_by_role("button", name="Retry").click()
    expect(turns.nth(1)).not_to_have_text(said)
    expect(page.locator("#chat-stop")).to_be_hidden()
    talk(page, "Who else?")
    page.get_by_role("button", name="Undo").click()
    expect(turns).to_have_count(2)
    kept = turns.all_text_contents()
    reload(page)
    page.get_by_role("tab", name="Chat").click()
    assert turns.all_text_contents() == kept
    page.get_by_role("button", name="New chat").click()
    expect(turns).to_have_count(0)
    page.get_by_role("button", name="Restore previous chat").click()
    assert turns.all_text_contents() == kept


def test_a_model_without_a_chat_template_has_no_chat(page):
    """The tab comes and goes with the model of the settings."""
    tab = page.get_by_role("tab", name="Chat")
    expect(tab).to_be_hidden()  # it is the sample teacher
    page.get_by_role("button", name="Settings").click()
    page.locator("#settings select[name=model]").select_option("student")
    page.get_by_role("button", name="Done").click()
    tab.click()
    expect(page.locator("#chat")).to_be_visible()
    page.get_by_role("button", name="Settings").click()
    page.locator("#settings select[name=model]").select_option("sample")
    page.get_by_role("button", name="Done").click()
    expect(tab).to_be_hidden()
    expect(page.locator("#write")).to_be_visible()


@pytest.mark.parametrize("step", [1, -1])
def test_the_smallest_model_is_the_student_and_the_largest_the_teacher(page, writing, step):
    """In whatever order the server names them."""
    found = page.request.get(f"{writing.url}/editor/models").json()["models"][::step]
    page.route("**/editor/models", lambda route: route.fulfill(json={"models": found}))
    reload(page)
    expect(page.locator("#compare-student")).to_have_value("student")
    expect(page.locator("#compare-teacher")).to_have_value("sample")


def test_an_encoder_compares_sentences(page):
    page.get_by_role("tab", name="Tasks").click()
    card = page.locator("#tasks article").filter(has_text="minilm")
    card.get_by_label("Sentence").fill("A cat sleeps.")
    card.get_by_label("Others").fill("A kitten is asleep.\nTaxes are due in April.")
    card.get_by_role("button").click()
    expect(card.locator("li")).to_have_count(2)
    near, far = (float(each) for each in card.locator("li .quiet").all_text_contents())
    assert near > far + 0.3


def test_texts_and_settings_of_an_earlier_version_are_read(page):
    """As its storage names them; what is saved now has the same names."""
    saved = {
        "stillhouse.manuscript": {"text": "Mine.", "marks": []},
        "stillhouse.manuscript.aside": [{"text": "Older.", "marks": [], "name": None, "since": 1}],
        "stillhouse.story": {
            "memory": "A storm is coming.",
            "told": [
                {"by": "you", "text": "\n> You wait\n"},
                {"by": "model", "model": "sample", "text": "The wind rises."},
            ],
            "before": [{"by": "you", "text": "\n> You sleep\n"}],
        },
        "stillhouse.settings": {"model": "student", "number": 2, "tokens": 7, "theme": "dark"},
    }
    page.evaluate(
        """saved => {
          for (const name in saved) localStorage[name] = JSON.stringify(saved[name]);
        }""",
        saved,
    )
    reload(page)
    assert text_of(page) == "Mine."
    page.get_by_role("button", name="Restore previous text").click()
    assert text_of(page) == "Older."
    page.get_by_role("tab", name="Story").click()
    expect(page.locator("#story-turns li")).to_have_text(["> You wait", "The wind rises."])
    expect(page.get_by_label("Always remember")).to_have_value("A storm is coming.")
    page.get_by_role("button", name="Restore previous story").click()
    expect(page.locator("#story-turns li")).to_have_text(["> You sleep"])
    page.get_by_role("button", name="Settings").click()
    expect(page.locator("#set-number")).to_have_value("2")
    expect(page.locator("#set-tokens")).to_have_value("7")
    page.locator("#set-number").fill("4")
    stored = page.evaluate("() => Object.fromEntries(Object.entries(localStorage))")
    assert stored.keys() == saved.keys()
    for name, value in saved.items():
        if isinstance(value, dict):
            assert json.loads(stored[name]).keys() >= value.keys()
    assert json.loads(stored["stillhouse.settings"])["number"] == 4


def test_the_strongest_neuron_of_a_layer_is_shown(open_page):
    """Its contexts with their strongest token marked, and what it does to predictions; a neuron
    that the model lacks is an alert."""
    page = open_page()
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect-strongest button").first.click()
    expect(page.locator("#inspect-neuron")).to_contain_text("Neuron 0.")
    expect(page.locator("#inspect-contexts li")).to_have_count(10)
    expect(page.locator("#inspect-contexts .strongest")).to_have_count(10)
    expect(page.locator("#inspect-direct ol").first.locator("li")).to_have_count(10)
    page.get_by_label("Neuron", exact=True).fill("999999")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#trouble")).to_contain_text("There is no neuron 0.999999")


def test_the_layers_predict_each_token_of_the_text(open_page):
    """A row for each layer; a model without collected neurons has them too."""
    page = open_page()
    page.locator("#text").fill("def main():")
    page.get_by_role("tab", name="Inspect").click()
    page.locator("#inspect-model").select_option("sample")
    expect(page.locator("#inspect-strongest button")).to_have_count(0)
    page.get_by_role("button", name="Layers on my text").click()
    expect(page.locator("#inspect-layers tr")).to_have_count(7)
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#trouble")).to_contain_text("Collect them with `stillhouse inspect`")
