"""Conversations in chat templates: what a template does wrong is one clear message."""

import pytest

import stillhouse
from stillhouse.errors import DataError, RecipeError
from stillhouse.inference.chat import conversation_text, template_problem
from stillhouse.models.hub import resolve_folder
from stillhouse.tokens.tokenizer import load_tokenizer

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "<think>Who?</think>Hello"}
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
START = "{% if add_generation_prompt %}<assistant>{% endif %}"
CHATML = TURNS + START
LAST_ONLY = "{{ messages[-1].content }}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)
WITHOUT_REASONING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}" + START
)
REWRITES = (  # the answer before the last message is shortened
    "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last or m.role == 'user' else '-' }}"
    "{% endfor %}" + START
)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_folder("sample", offline=True))


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


def test_a_conversation_is_rendered_up_to_its_answer(tokenizer):
    text, stops = conversation_text(with_template(tokenizer, CHATML), [SYSTEM, USER, ANSWER, USER])
    assert text == (
        "<system>Be brief.</s><user>Hi</s><assistant><think>Who?</think>Hello</s><user>Hi</s>"
        "<assistant>"
    )
    assert stops == ()


def test_without_a_template_the_answer_ends_before_the_next_role(tokenizer):
    text, stops = conversation_text(with_template(tokenizer, None), [SYSTEM, USER])
    assert text == "System: Be brief.\n\nUser: Hi\n\nAssistant:"
    assert stops == ("\n\nUser:", "\n\nSystem:")


@pytest.mark.parametrize(
    ("template", "role"),
    [(CHATML, "system"), (CHATML + "{# knows developer #}", "developer")],
    ids=["unknown", "known"],
)
def test_a_developer_is_the_system_where_the_template_does_not_know_one(tokenizer, template, role):
    message = SYSTEM | {"role": "developer"}
    text, _ = conversation_text(with_template(tokenizer, template), [message, USER])
    assert text.startswith(f"<{role}>Be brief.")


@pytest.mark.parametrize(
    ("template", "messages", "message"),
    [
        (NO_SYSTEM + CHATML, [SYSTEM, USER], "rejects the messages: no system role"),
        (LAST_ONLY, [SYSTEM, USER], r"leaves out message 0 \('system': 'Be brief.'\)"),
        ("{{ messages[0].content + 3 }}", [USER], r"fails \(TypeError: .*Continue plain text"),
        ("{% if %}", [USER], r"fails \(TemplateSyntaxError: Expected an expression"),
        ("{{ messages[0].no.attribute }}", [USER], r"fails \(UndefinedError: .* 'no'"),
        ({"tool_use": "X", "rag": "Y"}, [USER], r"fails \(ValueError"),
    ],
    ids=["rejects", "leaves out", "fails", "syntax", "undefined", "no default"],
)
def test_a_template_that_cannot_be_used_is_named(tokenizer, template, messages, message):
    with pytest.raises(DataError, match=f"^The model's chat template {message}"):
        conversation_text(with_template(tokenizer, template), messages)


def test_reasoning_of_earlier_answers_may_be_left_out(tokenizer):
    found = conversation_text(with_template(tokenizer, WITHOUT_REASONING), [USER, ANSWER, USER])
    assert found[0] == "<user>Hi<assistant>Hello<user>Hi<assistant>"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (None, ""),
        (CHATML, ""),
        (NO_SYSTEM + CHATML, ""),
        (WITHOUT_REASONING, ""),
        (REWRITES, ""),
        (LAST_ONLY, "leaves out message 0 ('user': 'One')"),
        ("{% if %}", "Expected an expression"),
        ("nothing", r"leaves out message 0 ('user': 'One')"),
    ],
)
def test_the_problem_of_a_template_is_known_before_the_first_request(tokenizer, template, problem):
    found = template_problem(with_template(tokenizer, template))
    assert problem in found
    assert bool(found) == bool(problem)


def test_an_answer_is_the_continuation_of_the_rendered_conversation():
    model = stillhouse.load("sample")
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    (text,) = model.generate("def main():", greedy=True, max_new_tokens=12)
    (answer,) = model.chat("def main():", greedy=True, max_new_tokens=12)
    assert answer == text.removeprefix("def main():").strip()
    same = model.chat([{"role": "user", "content": "def main():"}], greedy=True, max_new_tokens=12)
    assert same == [answer]


@pytest.mark.parametrize("messages", [3, [], ["Hi"], [{"role": "user"}], [USER | {"content": 3}]])
def test_what_is_no_conversation_is_refused(messages):
    model = stillhouse.load("sample")
    with pytest.raises(RecipeError, match=r"messages must be a text or a list of \{"):
        model.chat(messages)
