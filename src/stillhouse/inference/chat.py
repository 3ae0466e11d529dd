"""Conversations as prompts, in the chat template of a model or in a plain form.

A template is a program in the model's folder, run in a sandbox by transformers. It may fail, refuse
messages, or leave some out without a word: each is an error here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from stillhouse.errors import DataError
from stillhouse.inference.generation import Generation
from stillhouse.wording import first_line

Message = dict[str, str]
PLAIN_STOPS = ("\n\nUser:", "\n\nSystem:")  # where the answer to a plain conversation ends
ADVICE = "Continue plain text instead, or correct chat_template in the model's folder."
ANSWER_TOKENS = 256  # of an answer, where no number is given
SHOWN = 40  # characters of a message in an error
SHORT_CONVERSATION = (
    {"role": "user", "content": "One"},
    {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "Three"},
)


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, and the strings that end what follows, beside those of a request."""

    ids: tuple[int, ...]
    stops: tuple[str, ...]

    def with_stops(self, settings: Generation) -> Generation:
        """The settings, with these strings."""
        return replace(settings, stop=(*settings.stop, *self.stops))


def chat_template(tokenizer: PreTrainedTokenizerFast) -> str:
    """The template that conversations use, of several the one named `default`; empty if there is
    none."""
    template = tokenizer.chat_template
    return (template.get("default", "") if isinstance(template, dict) else template) or ""


def conversation_text(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]
) -> tuple[str, tuple[str, ...]]:
    """The text of a conversation up to where its answer starts, and the stop strings of the answer.

    A model without a template gets the messages as paragraphs, each after its role. `developer` is
    the newer name of `system`, and becomes it in templates that do not know the new one.

    Args:
        messages: Each with its role and content.

    Raises:
        DataError: The template fails, rejects the messages, or leaves one out.
    """
    template = tokenizer.chat_template
    if template is None:
        turns = [f"{each['role'].capitalize()}: {each['content']}" for each in messages]
        return "\n\n".join([*turns, "Assistant:"]), PLAIN_STOPS
    if "developer" not in str(template):
        roles = {"developer": "system"}
        messages = [each | {"role": roles.get(each["role"], each["role"])} for each in messages]
    text = _rendered(tokenizer, messages, add_generation_prompt=True)
    for number, each in enumerate(messages):
        # What an assistant said earlier may be shortened: templates drop its reasoning.
        if each["role"] != "assistant" and each["content"].strip() not in text:
            raise DataError(
                f"The model's chat template leaves out message {number} ({each['role']!r}: "
                f"{each['content'][:SHOWN]!r}). Send it as part of a message that the template "
                "keeps, such as the last one of the user."
            )
    return text, ()


def template_problem(tokenizer: PreTrainedTokenizerFast) -> str:
    """What a model's chat template does wrong with a short conversation, as a sentence; empty if
    nothing, or if there is no template."""
    try:
        conversation_text(tokenizer, SHORT_CONVERSATION)
    except DataError as error:
        return str(error)
    return ""


def _rendered(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], **settings: Any
) -> str:
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **settings)
    except Exception as error:  # the template is a program of the model's folder
        if type(error) is TemplateError:  # raised by the template itself, in its own words
            raise DataError(
                f"The model's chat template rejects the messages: {first_line(error)}."
            ) from error
        raise DataError(
            f"The model's chat template fails ({type(error).__name__}: {first_line(error)}). "
            f"{ADVICE}"
        ) from error
    assert isinstance(text, str)
    return text
