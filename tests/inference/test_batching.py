"""Requests that share a model's steps: each gets what it would get alone, as transformers gives it,
whenever it comes and whatever happens to the others."""

import random

import pytest
import torch
from tests.task_models import make_tokenizer
from tests.tiny_models import EVERY_CAUSAL_FAMILY, make_config
from transformers import AutoModelForCausalLM

from stillhouse.errors import DataError, ModelError
from stillhouse.families.registry import family_of
from stillhouse.inference.engine.batcher import (
    PREFILL_TOKENS,
    Batcher,
    Ended,
    Failed,
    NewToken,
    PrefillDone,
    Request,
)
from stillhouse.inference.engine.kv_cache import Chunk, SlottedModel
from stillhouse.inference.generation import Generation

VOCABULARY = 60
GREEDY = Generation(greedy=True, max_new_tokens=12)
SAMPLED = Generation(max_new_tokens=12, top_k=0, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("gpt2")


@pytest.fixture
def make_batcher(tokenizer):
    """make_batcher(num_slots, positions=..., family=...): a batcher of a random model."""

    def make(num_slots=4, positions=64, end_ids=frozenset(), family="gpt2"):
        torch.manual_seed(0)
        config = make_config(family, 3, vocabulary=VOCABULARY, positions=positions)
        config.initializer_range = 0.4
        model = AutoModelForCausalLM.from_config(config).eval()
        model.generation_config.eos_token_id = None  # transformers would suppress it
        slots = SlottedModel(family_of(config), model, num_slots)
        return Batcher(slots, tokenizer, frozenset(end_ids))

    return make


def prompt(seed: int, length: int) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(1, VOCABULARY), k=length))


def submit(batcher, prompt_ids, settings=GREEDY, **more):
    """The list that this request's events will be in."""
    events = []
    ticket = batcher.submit(
        Request(prompt_ids, settings, settings.seed or 0, **more), events.append
    )
    return events, ticket


def tokens(events, sequence=0):
    return [e.token.id for e in events if isinstance(e, NewToken) and e.sequence == sequence]


def by_transformers(batcher, prompt_ids, number=12):
    inputs = torch.tensor([prompt_ids])
    output = batcher.model.model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=number,
        min_new_tokens=number,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, len(prompt_ids) :].tolist()


@pytest.mark.parametrize("family", EVERY_CAUSAL_FAMILY)
def test_greedy_tokens_are_those_of_transformers(make_batcher, family):
    """Prompts of many lengths, more of them than there is room for, arriving while others run."""
    batcher = make_batcher(num_slots=4, family=family)
    prompts = [prompt(seed, 1 + 5 * seed % 37) for seed in range(15)]
    answers = []
    for each in prompts:
        answers.append(submit(batcher, each)[0])
        batcher.step()
        batcher.step()
    batcher.run()
    for each, events in zip(prompts, answers, strict=True):
        assert tokens(events) == by_transformers(batcher, each)
        assert isinstance(events[-1], Ended)
        assert events[-1].reason == "length"


def test_shared_tokens_are_computed_once(make_batcher, monkeypatch):
    """Prompts that begin with them, and others beside, get the tokens that they get alone."""
    batcher, shared = make_batcher(num_slots=4), prompt(0, 20)
    prompts = [shared + prompt(seed, seed) for seed in range(1, 6)]
    prompts += [shared, prompt(7, 9), (*shared[:-1], 1, *prompt(8, 3))]
    computed = []
    forward = batcher.model.forward
    monkeypatch.setattr(
        batcher.model,
        "forward",
        lambda chunks: computed.append(sum(len(each.ids) for each in chunks)) or forward(chunks),
    )
    batcher.share(shared)
    answers = [submit(batcher, each)[0] for each in prompts]
    batcher.run()
    for each, events in zip(prompts, answers, strict=True):
        assert tokens(events) == by_transformers(batcher, each)
    new = len(prompts) * (12 - 1)  # the last is not read
    assert sum(computed) == len(shared) + sum(map(len, prompts)) - 5 * len(shared) + new


def test_scored_prompts_are_computed_whole(make_batcher):
    """Their tokens' log-probabilities are asked for, among them those of shared tokens."""
    batcher, shared = make_batcher(), prompt(0, 20)
    batcher.share(shared)
    events, _ = submit(batcher, (*shared, 1, 2), echo=True, num_top_logprobs=0)
    batcher.run()
    (done,) = [each for each in events if isinstance(each, PrefillDone)]
    assert len(done.tokens) == 22


def test_a_seed_gives_the_same_text_in_any_company(make_batcher):
    """Alone, and as one of several sequences beside other requests of other lengths."""
    alone, company = make_batcher(), make_batcher(num_slots=8)
    settings = Generation(max_new_tokens=12, top_k=0, top_p=0.95, num_return_sequences=2, seed=9)
    expected, _ = submit(alone, prompt(0, 7), settings)
    alone.run()
    for seed in range(1, 4):
        submit(company, prompt(seed, 3 * seed), SAMPLED)
        company.step()
    found, _ = submit(company, prompt(0, 7), settings)
    company.run()
    for sequence in range(2):
        assert tokens(found, sequence) == tokens(expected, sequence)
    assert tokens(found, 0) != tokens(found, 1)


def test_a_long_prompt_is_read_in_pieces_and_holds_nobody_up(make_batcher):
    """One under way gets a token in every step; the long one the right tokens."""
    batcher = make_batcher(positions=3 * PREFILL_TOKENS)
    running, _ = submit(batcher, prompt(1, 4))
    batcher.step()
    long_prompt = prompt(2, 2 * PREFILL_TOKENS + 20)
    events, _ = submit(batcher, long_prompt)
    for _ in range(2):
        before = len(tokens(running))
        batcher.step()
        assert len(tokens(running)) == before + 1
        assert not events
    batcher.run()
    assert tokens(events) == by_transformers(batcher, long_prompt)
    assert tokens(running) == by_transformers(batcher, prompt(1, 4))


def test_a_long_prompt_alone_is_read_in_pieces(make_batcher):
    """Of a step that reads only its beginning no logits are requested."""
    batcher, long_prompt = make_batcher(positions=2 * PREFILL_TOKENS), prompt(2, PREFILL_TOKENS + 9)
    events, _ = submit(batcher, long_prompt)
    batcher.run()
    assert tokens(events) == by_transformers(batcher, long_prompt)


def test_log_probabilities_are_the_model_s_own(make_batcher):
    """Those of the prompt and of new tokens equal a plain forward pass, whatever the settings; the
    chosen token's is the same number among the most likely; the first of all has none."""
    batcher = make_batcher(positions=2 * PREFILL_TOKENS)
    ids = prompt(5, PREFILL_TOKENS + 9)  # in two pieces
    settings = Generation(max_new_tokens=3, top_k=2, temperature=0.5, seed=1)
    events, _ = submit(batcher, ids, settings, num_top_logprobs=4, echo=True)
    submit(batcher, prompt(6, 5))
    batcher.run()
    [read] = [event for event in events if isinstance(event, PrefillDone)]
    scored = [*read.tokens, *(event.token for event in events if isinstance(event, NewToken))]
    assert [token.id for token in scored[: len(ids)]] == list(ids)
    assert scored[0].log_probability is None
    with torch.no_grad():
        logits = batcher.model.model(torch.tensor([[token.id for token in scored]])).logits[0]
    expected = logits.log_softmax(-1)
    for place, token in enumerate(scored[1:]):
        assert token.log_probability == pytest.approx(float(expected[place, token.id]), abs=1e-4)
        assert len(token.top_logprobs) == 4
        top_logprobs = dict(token.top_logprobs)
        assert top_logprobs == dict(sorted(token.top_logprobs, key=lambda pair: -pair[1]))
        assert max(top_logprobs.values()) == pytest.approx(float(expected[place].max()), abs=1e-4)
        if token.id in top_logprobs:
            assert top_logprobs[token.id] == token.log_probability


def test_a_prompt_can_be_scored_alone(make_batcher):
    """No new tokens: what the prompt's own are, and the end."""
    batcher = make_batcher()
    events, _ = submit(
        batcher, prompt(0, 6), Generation(max_new_tokens=0), num_top_logprobs=1, echo=True
    )
    batcher.run()
    read, ended = events
    assert len(read.tokens) == 6
    assert ended == Ended(0, "", "length")
    assert batcher.model.num_free == 4


def test_an_end_token_ends_a_text(make_batcher):
    """It is the last token, and no part of the text."""
    plain = make_batcher()
    free, _ = submit(plain, prompt(0, 6))
    plain.run()
    third = tokens(free)[2]
    batcher = make_batcher(end_ids={third})
    events, _ = submit(batcher, prompt(0, 6))
    batcher.run()
    until = tokens(free)[: tokens(free).index(third) + 1]
    assert tokens(events) == until
    assert events[-1].reason == "stop"
    assert [event.text for event in events if isinstance(event, NewToken)][-1] == ""


def test_a_text_that_stops_a_text_frees_its_room(make_batcher, tokenizer):
    """At the token that completes it; the text before it is the answer."""
    plain = make_batcher()
    free, _ = submit(plain, prompt(0, 6))
    plain.run()
    whole = "".join(event.text for event in free[1:])
    stop = whole[5:8]
    batcher = make_batcher()
    events, _ = submit(
        batcher, prompt(0, 6), Generation(greedy=True, max_new_tokens=12, stop=(stop,))
    )
    batcher.run()
    assert "".join(event.text for event in events[1:]) == whole[: whole.index(stop)]
    assert events[-1].reason == "stop"
    assert batcher.model.num_free == 4


def test_time_that_is_up_ends_a_text(make_batcher):
    """With what there is by then: at least one token."""
    batcher = make_batcher()
    events, _ = submit(batcher, prompt(0, 6), max_seconds=0.0)
    batcher.run()
    assert len(tokens(events)) == 1
    assert events[-1].reason == "time"


def test_a_request_that_is_cancelled_makes_room(make_batcher):
    """Waiting, being read, or under way; the others get what they would have got."""
    batcher = make_batcher(num_slots=3)
    answers = [submit(batcher, prompt(seed, 5 + seed)) for seed in range(6)]
    batcher.step()
    batcher.step()
    for number in (0, 1, 4):
        answers[number][1].cancel()
    seen = len(answers[0][0])
    batcher.run()
    assert len(answers[0][0]) == seen
    assert not answers[4][0]
    for number in (2, 3, 5):
        assert tokens(answers[number][0]) == by_transformers(batcher, prompt(number, 5 + number))
    assert batcher.model.num_free == 3


def test_numbers_that_are_not_finite_hurt_nobody_else(make_batcher):
    """The request that meets them fails and says why; those beside it and after it do not."""
    batcher = make_batcher(num_slots=2)
    expected = by_transformers(batcher, prompt(1, 3))
    with torch.no_grad():
        batcher.model.model.transformer.wpe.weight[20] = torch.nan
    beside, _ = submit(batcher, prompt(1, 3), Generation(greedy=True, max_new_tokens=12))
    bad, _ = submit(batcher, prompt(2, 25))
    batcher.run()
    assert isinstance(bad[-1], Failed)
    assert isinstance(bad[-1].error, ModelError)
    assert "not finite" in str(bad[-1].error)
    later = [submit(batcher, prompt(1, 3))[0], submit(batcher, prompt(1, 3))[0]]
    batcher.run()
    for events in (beside, *later):
        assert tokens(events) == expected


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ((), GREEDY, "prompt has no tokens"),
        ((1, 60), GREEDY, r"token ids the model does not know: \[60\]; they go from 0 to 59"),
        ((1, -1), GREEDY, r"does not know: \[-1\]"),
        ((1,) * 60, GREEDY, "prompt has 60 tokens and 12 new ones are requested, .* takes 64"),
        ((1,), Generation(num_return_sequences=5), "5 sequences .* at most 4 fit"),
    ],
)
def test_an_invalid_request_is_rejected_at_once(make_batcher, ids, settings, message):
    """Before any step; the error names the number and the limit."""
    with pytest.raises(DataError, match=message):
        submit(make_batcher(), ids, settings)


def test_lowering_a_slot_length_rewinds_the_sequence(make_batcher):
    """Tokens after the new length are forgotten."""
    model = make_batcher().model
    slot, other = model.open(), model.open()
    model.forward([Chunk(slot, prompt(0, 9)), Chunk(other, prompt(1, 4))])
    slot.length = 5
    again = model.forward([Chunk(slot, (7, 8, 9), 3)])
    expected = model.forward([Chunk(model.open(), (*prompt(0, 9)[:5], 7, 8, 9), 3)])
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("family", EVERY_CAUSAL_FAMILY)
def test_the_cache_grows_without_changing_logits(make_batcher, monkeypatch, family):
    """Two sequences that outgrow their first room give the bits of a cache that never grows."""
    found = []
    for capacity in (4, 64):
        monkeypatch.setattr("stillhouse.inference.engine.kv_cache.FIRST_CAPACITY", capacity)
        model = make_batcher(family=family).model
        slots = [model.open(), model.open()]
        logits = [model.forward([Chunk(slots[0], prompt(0, 7)), Chunk(slots[1], prompt(1, 3))])]
        logits += [model.forward([Chunk(slot, (5,)) for slot in slots]) for _ in range(20)]
        assert model.capacity == (32 if capacity == 4 else 64)
        model.close(slots[0])
        logits.append(model.forward([Chunk(slots[1], (8, 9), 2)]))
        found.append(torch.cat(logits))
    assert torch.equal(*found)


def test_max_length_limits_a_sequence(tiny_model):
    """The cache never has more room than that."""
    model = tiny_model("gpt2")
    slotted = SlottedModel(family_of(model.config), model, 1, max_length=10)
    assert (slotted.context, slotted.capacity) == (10, 10)


def test_a_masked_model_has_no_slots(tiny_model):
    """The error says what such a model does."""
    model = tiny_model("bert")
    with pytest.raises(ModelError, match="bert model fills masks; it does not generate text"):
        SlottedModel(family_of(model.config), model, 1)


def test_shared_tokens_keep_a_slot(make_batcher):
    """So that one sequence less fits; without counting it the request would wait for ever."""
    batcher = make_batcher(num_slots=3)
    batcher.share(prompt(0, 4))
    two, three = (Generation(max_new_tokens=2, num_return_sequences=n) for n in (2, 3))
    events, _ = submit(batcher, prompt(1, 6), two)
    batcher.run()
    assert sum(isinstance(event, Ended) for event in events) == 2
    with pytest.raises(DataError, match="at most 2 fit"):
        submit(batcher, prompt(1, 6), three)
