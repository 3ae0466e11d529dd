"""Embeddings with more rows than the tokenizer has tokens, whose rows are likelier than any token:
what no token has is never generated, listed or counted."""

import pytest
import torch
from tests.task_models import make_tokenizer
from tests.tiny_models import make_config
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

import stillhouse
from stillhouse.errors import DataError, RecipeError
from stillhouse.inference.causal_lm import CausalLM
from stillhouse.inference.engine.batcher import Ended, NewToken, PrefillDone, Request
from stillhouse.inference.engine.speculative import DraftedText
from stillhouse.inference.generation import Generation
from stillhouse.inference.masked_lm import MaskedLM
from stillhouse.models.load import save_model
from stillhouse.tokens.tokenizer_training import train_tokenizer

TEXT = "The still turns what is thin into what is strong, drop by drop, and then once more. "
TOKENS, PADDED = 300, 384
FIRST_GAP = TOKENS + 7  # where the added token of `gapped` ends


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer("byte_bpe", TOKENS, iter([TEXT * 3]), "causal")


@pytest.fixture(scope="module")
def padded(tokenizer) -> CausalLM:
    return padded_model(tokenizer)


def padded_model(tokenizer: PreTrainedTokenizerFast, vocabulary: int = PADDED) -> CausalLM:
    torch.manual_seed(0)
    config = make_config("gpt2", 2, vocabulary=vocabulary, positions=64)
    config.initializer_range = 0.5
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # wherever it goes, two rows of padding are far above all tokens
        model.lm_head.weight[TOKENS:] *= 20
    return CausalLM(model, tokenizer)


def events_of(loaded: CausalLM, settings: Generation, **more: object) -> list:
    events: list = []
    batcher = loaded.batcher(8)
    request = Request(tuple(loaded.encode(TEXT)[:6]), settings, 0, **more)  # pyright: ignore
    batcher.submit(request, events.append)
    batcher.run()
    return events


@pytest.mark.parametrize(
    "settings",
    [
        Generation(greedy=True, max_new_tokens=30),
        Generation(max_new_tokens=30, num_return_sequences=8),
        Generation(max_new_tokens=30, num_return_sequences=8, top_k=0, temperature=2.0),
        Generation(max_new_tokens=30, num_return_sequences=8, top_k=0, typical_p=0.5),
    ],
)
def test_only_tokens_are_generated_and_listed(padded, settings):
    """With log-probabilities that are those of the tokens alone: they sum to one."""
    events = events_of(padded, settings, num_top_logprobs=TOKENS)
    tokens = [event.token for event in events if isinstance(event, NewToken)]
    assert len(tokens) >= 30
    assert all(token.id < TOKENS for token in tokens)
    for token in tokens[:5]:
        assert {id for id, _ in token.top_logprobs} == set(range(TOKENS))
        total = torch.tensor([value for _, value in token.top_logprobs]).double().exp().sum()
        assert float(total) == pytest.approx(1, abs=1e-5)


def test_log_probabilities_of_a_prompt_are_normalized_over_tokens(padded):
    """As transformers' logits, cut at the tokenizer's length, give them in float64."""
    events = events_of(padded, Generation(max_new_tokens=0), echo=True, num_top_logprobs=0)
    (read,) = [event for event in events if isinstance(event, PrefillDone)]
    ids = torch.tensor([[token.id for token in read.tokens]])
    with torch.inference_mode():
        logits = padded.model(ids).logits[0, :-1, :TOKENS].double()
    expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    found = torch.tensor([token.log_probability for token in read.tokens[1:]])
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-4)


def test_a_gap_below_an_added_token_is_never_generated(tokenizer):
    """Ids without a token in the middle of the vocabulary."""

    class Gapped(PreTrainedTokenizerFast):
        def get_vocab(self) -> dict[str, int]:
            return super().get_vocab() | {"<|added|>": FIRST_GAP}

    loaded = padded_model(Gapped(tokenizer_object=tokenizer.backend_tokenizer))
    assert loaded.unused_ids == (*range(TOKENS, FIRST_GAP), *range(FIRST_GAP + 1, PADDED))
    settings = Generation(max_new_tokens=20, num_return_sequences=4, top_k=0)
    with torch.no_grad():
        loaded.model.lm_head.weight[FIRST_GAP] = 0  # pyright: ignore
    tokens = [
        e.token for e in events_of(loaded, settings, num_top_logprobs=20) if type(e) is NewToken
    ]
    assert len(tokens) == 80
    allowed = {*range(TOKENS), FIRST_GAP}
    assert {id for token in tokens for id, _ in token.top_logprobs} | {
        t.id for t in tokens
    } <= allowed


def without_padding(padded: CausalLM) -> CausalLM:
    """The same model, whose rows are those of the tokens."""
    config = make_config("gpt2", 2, vocabulary=TOKENS, positions=64)
    config.tie_word_embeddings = False
    model = AutoModelForCausalLM.from_config(config).eval()
    state = padded.model.state_dict()
    for name in ("lm_head.weight", "transformer.wte.weight"):
        state[name] = state[name][:TOKENS]
    model.load_state_dict(state)
    return CausalLM(model, padded.tokenizer)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}])
def test_text_equals_that_of_the_model_without_padding(padded, settings):
    asked = {"greedy": True, "max_new_tokens": 20, **settings}
    assert padded.generate(TEXT, **asked) == without_padding(padded).generate(TEXT, **asked)


def test_a_student_drafts_for_a_teacher_that_is_padded_to_another_size(padded):
    settings = Generation(greedy=True, max_new_tokens=20)
    drafted = DraftedText(padded, without_padding(padded), padded.prompt_ids(TEXT), settings)
    text = "".join(piece for piece, _ in drafted)
    assert [TEXT + text] == padded.generate(TEXT, greedy=True, max_new_tokens=20)
    assert drafted.speculation.acceptance_rate == 1


def test_a_prompt_of_padding_is_refused(padded):
    """It is no token, and has never been trained."""
    batcher = padded.batcher(1)
    with pytest.raises(DataError, match=r"\[300\]; they go from 0 to 299"):
        batcher.check(Request((1, TOKENS), Generation(max_new_tokens=1), 0))


def test_a_gap_is_filled_with_tokens_only():
    """Their probabilities are those of the tokens alone."""
    words = train_tokenizer("wordpiece", 60, iter([TEXT * 3]), "masked")
    torch.manual_seed(0)
    config = make_config("bert", 2, vocabulary=96, positions=64)
    loaded = MaskedLM(AutoModelForMaskedLM.from_config(config).eval(), words)
    with torch.no_grad():
        loaded.model.get_output_embeddings().bias[60:] += 50  # pyright: ignore
    found = loaded.fill_mask("the [MASK] turns", top_k=96)
    assert {each.id for each in found} == set(range(60))
    assert sum(each.probability for each in found) == pytest.approx(1, abs=1e-5)


def test_a_text_still_ends(padded):
    """By its length, with nothing that is no text in it."""
    *_, last = events_of(padded, Generation(greedy=True, max_new_tokens=5))
    assert isinstance(last, Ended)
    assert last.reason == "length"


@pytest.mark.parametrize("top_k", [1, 5, 10**6])
def test_a_mask_is_filled_by_tokens_alone(tmp_path, top_k):
    """A padded BERT from a folder, whose head is cut to its tokens (and was cut twice)."""
    tokenizer = make_tokenizer("bert")
    config = make_config("bert", 2, vocabulary=len(tokenizer) + 28, positions=64)
    torch.manual_seed(0)
    save_model(AutoModelForMaskedLM.from_config(config), tokenizer, tmp_path)
    loaded = stillhouse.load(tmp_path)
    found = loaded.fill_mask("the [MASK] turns", top_k=top_k)
    assert len(found) == min(top_k, len(tokenizer))
    assert max(each.id for each in found) < len(tokenizer)
    if top_k > len(tokenizer):
        assert sum(each.probability for each in found) == pytest.approx(1)


@pytest.mark.parametrize("top_k", [0, -1, None, 1.5, True])
def test_how_many_fill_a_mask_is_a_whole_number(tmp_path, top_k):
    tokenizer = make_tokenizer("bert")
    model = AutoModelForMaskedLM.from_config(make_config("bert", 1, vocabulary=len(tokenizer)))
    with pytest.raises(RecipeError, match=r"top_k is .*; it must be a whole number, 1 or more"):
        MaskedLM(model, tokenizer).fill_mask("[MASK]", top_k=top_k)
