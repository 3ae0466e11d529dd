"""Token healing: continuing from the middle of a word, or after a space."""

from typing import Any

import pytest

import stillhouse
from stillhouse.inference.engine.batcher import Ended, NewToken, Request
from stillhouse.inference.engine.text_stream import TokenHealer
from stillhouse.inference.generation import Generation


@pytest.fixture(scope="module")
def loaded() -> Any:
    return stillhouse.load("sample")


@pytest.fixture(scope="module")
def healer(loaded) -> TokenHealer:
    return TokenHealer(loaded.tokenizer)


def continued(loaded, healer, text: str, settings: Generation, seed: int = 0) -> list[str]:
    """What follows the text, for each sequence."""
    ids, prefix = healer.heal(loaded.prompt_ids(text))
    texts = [""] * settings.num_return_sequences

    def listen(event) -> None:
        if isinstance(event, NewToken | Ended):
            texts[event.sequence] += event.text

    batcher = loaded.batcher(settings.num_return_sequences)
    batcher.submit(Request(ids, settings, seed, prefix=prefix), listen)
    batcher.run()
    return texts


@pytest.mark.parametrize("text", ["The sea was ", "The old man went down to the har", 'He said, "'])
def test_all_allowed_tokens_continue_the_text(loaded, healer, text):
    """The kept tokens and any of those that may follow are a tokenization of a text that starts
    with this one."""
    ids, prefix = healer.heal(loaded.prompt_ids(text))
    assert prefix is not None
    assert loaded.decode(ids) + prefix.text == text
    assert len(prefix.ids) > 1
    for token in prefix.ids:
        assert loaded.decode([*ids, token]).startswith(text)


def test_a_trailing_space_does_not_change_the_words(loaded, healer):
    """Greedy, the same words follow, with and without it."""
    settings = Generation(greedy=True, max_new_tokens=12)
    (without,) = continued(loaded, healer, "The captain looked at the sea and", settings)
    assert without.startswith(" ")
    (after,) = continued(loaded, healer, "The captain looked at the sea and ", settings)
    assert after == without[1:]


def test_a_partial_word_is_completed(loaded, healer):
    """A word that greedy text has is cut anywhere: what follows is the rest of that text."""
    settings = Generation(greedy=True, max_new_tokens=10)
    prompt = "The captain looked at the sea and"
    (text,) = loaded.continuations(prompt, settings)
    token = loaded.decode(loaded.encode(prompt + text)[len(loaded.encode(prompt)) :][:1])
    for cut in range(1, len(token)):
        ids = healer.heal(loaded.prompt_ids(prompt + text[:cut]))[0]
        if ids != loaded.prompt_ids(prompt):
            continue  # the beginning of this word is two tokens
        (rest,) = continued(loaded, healer, prompt + text[:cut], settings)
        assert rest.startswith(text[cut : len(token)])


def test_every_sequence_has_the_prefix_and_returns_only_new_text(loaded, healer):
    settings = Generation(num_return_sequences=8, max_new_tokens=4, top_k=0)
    text = "It was a dark and sto"
    ids, prefix = healer.heal(loaded.prompt_ids(text))
    for rest in continued(loaded, healer, text, settings):
        tokens = loaded.encode(loaded.decode(ids) + prefix.text + rest)
        assert loaded.decode(tokens) == text + rest


@pytest.mark.parametrize("text", ["Waves 🌊", "A"])
def test_partial_characters_and_single_tokens_are_not_healed(loaded, healer, text):
    """The last token of this character is some of its bytes; and there must be something before."""
    ids = loaded.prompt_ids(text)
    assert healer.heal(ids) == (ids, None)


def test_a_special_token_never_completes_a_text(loaded, healer):
    """`<` does not become the end of the text."""
    _, prefix = healer.heal(loaded.prompt_ids("a <"))
    assert prefix is None or not set(prefix.ids) & set(loaded.tokenizer.all_special_ids)
