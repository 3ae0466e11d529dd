"""Going on from the middle of a word, or after a space."""

import pytest

import stillhouse
from stillhouse.inference.engine.batcher import Ended, NewToken, Request
from stillhouse.inference.engine.token_healing import TokenHealer
from stillhouse.inference.generation import Generation
from stillhouse.inference.loaded import LoadedModel


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return stillhouse.load("sample")


@pytest.fixture(scope="module")
def resumer(loaded) -> TokenHealer:
    return TokenHealer(loaded.tokenizer)


def continued(loaded, resumer, text: str, settings: Generation, seed: int = 0) -> list[str]:
    """What follows the text, for each sequence."""
    ids, begins = resumer.resumed(loaded.prompt_ids(text))
    texts = [""] * settings.num_return_sequences

    def listen(event) -> None:
        if isinstance(event, NewToken | Ended):
            texts[event.sequence] += event.text

    batcher = loaded.batcher(settings.num_return_sequences)
    batcher.submit(Request(ids, settings, seed, begins=begins), listen)
    batcher.run()
    return texts


@pytest.mark.parametrize("text", ["The sea was ", "The old man went down to the har", 'He said, "'])
def test_all_that_may_follow_begins_as_the_text_ends(loaded, resumer, text):
    """The kept tokens and any of those that may follow are a tokenization of a text that begins
    with this one."""
    ids, begins = resumer.resumed(loaded.prompt_ids(text))
    assert begins is not None
    assert loaded.decode(ids) + begins.text == text
    assert len(begins.ids) > 1
    for token in begins.ids:
        assert loaded.decode([*ids, token]).startswith(text)


def test_a_space_that_was_typed_already_changes_nothing(loaded, resumer):
    """Greedy, the same words follow, with and without it."""
    settings = Generation(greedy=True, max_new_tokens=12)
    (without,) = continued(loaded, resumer, "The captain looked at the sea and", settings)
    assert without.startswith(" ")
    (after,) = continued(loaded, resumer, "The captain looked at the sea and ", settings)
    assert after == without[1:]


def test_a_word_is_completed(loaded, resumer):
    """A word that greedy text has is cut anywhere: what follows is the rest of that text."""
    settings = Generation(greedy=True, max_new_tokens=10)
    prompt = "The captain looked at the sea and"
    (text,) = loaded.continuations(prompt, settings)
    token = loaded.decode(loaded.encode(prompt + text)[len(loaded.encode(prompt)) :][:1])
    for cut in range(1, len(token)):
        ids = resumer.resumed(loaded.prompt_ids(prompt + text[:cut]))[0]
        if ids != loaded.prompt_ids(prompt):
            continue  # the beginning of this word is two tokens
        (rest,) = continued(loaded, resumer, prompt + text[:cut], settings)
        assert rest.startswith(text[cut : len(token)])


def test_every_sequence_begins_so_and_shows_only_what_is_new(loaded, resumer):
    settings = Generation(num_return_sequences=8, max_new_tokens=4, top_k=0)
    text = "It was a dark and sto"
    ids, begins = resumer.resumed(loaded.prompt_ids(text))
    for rest in continued(loaded, resumer, text, settings):
        tokens = loaded.encode(loaded.decode(ids) + begins.text + rest)
        assert loaded.decode(tokens) == text + rest


@pytest.mark.parametrize("text", ["Waves 🌊", "A"])
def test_half_a_character_and_a_lone_token_are_left_alone(loaded, resumer, text):
    """The last token of this character is some of its bytes; and there must be something before."""
    ids = loaded.prompt_ids(text)
    assert resumer.resumed(ids) == (ids, None)


def test_a_special_token_is_never_the_rest_of_a_text(loaded, resumer):
    """`<` does not become the end of the text."""
    _, begins = resumer.resumed(loaded.prompt_ids("a <"))
    assert begins is None or not set(begins.ids) & set(loaded.tokenizer.all_special_ids)
