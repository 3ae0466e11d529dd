"""Perplexity and masked loss: every token scored, equal to an independent computation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from stillhouse.errors import DataError
from stillhouse.evaluation.perplexity import (
    MASK_SEED,
    ScoredText,
    blocks_of,
    mean_loss,
    perplexity,
    windows_of,
)
from stillhouse.families import family_of
from stillhouse.recipe import MaskingRecipe
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.packing import MaskedSequences
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import SpecialTokens

VOCABULARY, POSITIONS, END = 40, 16, 0


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=END,
        eos_token_id=END,
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def text():
    """Documents shorter, as long as, and longer than a block; 100 words and 456 bytes."""
    draw = np.random.default_rng(0)
    lengths = (1, 14, 15, 16, 30, 47)
    return ScoredText([draw.integers(1, VOCABULARY, size) for size in lengths], 100, 456)


def losses_by_hand(model, document, stride, context) -> list[float]:
    """-log p of each token in float64: one forward pass of transformers a token.

    A token at place i is scored in the window that ends with the last token of its step.
    """
    whole = [END, *document.tolist()]
    found = []
    for place in range(1, len(whole)):
        if place < context:
            stop = min(len(whole), context)
        else:
            steps = (place - context) // stride + 1
            stop = min(len(whole), context + steps * stride)
        start = max(0, stop - context)
        ids = torch.tensor([whole[start:place]])
        with torch.no_grad():
            logits = model.double()(input_ids=ids).logits[0, -1]
        found.append(-float(torch.log_softmax(logits, -1)[whole[place]]))
    model.float()
    return found


def test_blocks_equal_an_independent_computation(model, text):
    """Each block is a text of its own that begins with end-of-text; mean over all tokens."""
    result = perplexity(family_of(model.config), model, text, end_of_text=END)
    losses = []
    for document in text.documents:
        for start in range(0, len(document), POSITIONS - 1):
            block = document[start : start + POSITIONS - 1]
            losses += losses_by_hand(model, block, stride=1, context=10**6)
    assert len(losses) == result["tokens_scored"] == sum(map(len, text.documents))
    assert result["token"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_the_sliding_window_equals_an_independent_computation(model, text):
    """Each window scores its last tokens after all the context that fits."""
    result = perplexity(family_of(model.config), model, text, end_of_text=END)
    losses = [
        loss
        for document in text.documents
        for loss in losses_by_hand(model, document, stride=POSITIONS // 2, context=POSITIONS)
    ]
    assert result["token_s512"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert result["token_s512"] != pytest.approx(result["token"], rel=1e-3)


@pytest.mark.parametrize("context", [2, 5, 16, 100])
def test_blocks_and_windows_score_every_token_once(text, context):
    """Put together, the scored ends are the documents, whatever the context."""
    stride = max(1, context // 2)
    for cut in (
        blocks_of(text.documents, context, END),
        windows_of(text.documents, context, stride, END),
    ):
        scored = np.concatenate([ids[len(ids) - count :] for ids, count in cut])
        assert np.array_equal(scored, np.concatenate(text.documents))


def test_no_window_is_longer_than_the_context(text):
    """A model is never asked for a position that it does not have."""
    assert max(len(ids) for ids, _ in windows_of(text.documents, 16, 8, END)) == 16
    assert max(len(ids) for ids, _ in blocks_of(text.documents, 16, END)) == 16


def test_words_and_bytes_divide_the_same_sum(model, text):
    """Word perplexity and bits per byte follow from the mean loss a token by arithmetic."""
    result = perplexity(family_of(model.config), model, text, end_of_text=END)
    total = math.log(result["token"]) * result["tokens_scored"]
    assert result["word"] == pytest.approx(math.exp(total / 100), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / 456, rel=1e-6)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(model, text):
    """All weights zero: every token is as likely as any other."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = perplexity(family_of(model.config), model, text, end_of_text=END)
    assert result["token"] == pytest.approx(VOCABULARY, rel=1e-6)
    assert result["token_s512"] == pytest.approx(VOCABULARY, rel=1e-6)


def test_a_shorter_context_may_be_asked_for(model, text):
    """The recipe's sequence length bounds the blocks, never beyond the model's positions."""
    family = family_of(model.config)
    results = [
        perplexity(family, model, text, end_of_text=END, context=context)["token"]
        for context in (4, POSITIONS, 10**6)
    ]
    assert results[1] == results[2] != results[0]


def test_weights_that_are_not_finite_are_an_error(model, text):
    """A damaged model gets no number."""
    with torch.no_grad():
        model.transformer.wte.weight[3, 3] = math.nan
    with pytest.raises(DataError, match="not finite"):
        perplexity(family_of(model.config), model, text, end_of_text=END)


@pytest.fixture
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=1,
    )
    return BertForMaskedLM(config).eval()


@pytest.fixture
def masked(text):
    ids = np.concatenate([np.where(d < 5, 5, d) for d in text.documents])
    starts = np.cumsum([0, *map(len, text.documents)]).astype(np.uint64)
    counts = np.bincount(ids, minlength=VOCABULARY).astype(np.uint64)
    split = TokenSplit("validation", VOCABULARY, (ids,), starts, counts, (Path("none"),))
    special = SpecialTokens(None, cls=2, sep=3, mask=4, pad=1, unk=0, all_ids=(0, 1, 2, 3, 4))
    return MaskedSequences(
        split, POSITIONS, special, MaskingRecipe(), vocabulary_size=VOCABULARY, counts=counts
    )


def test_the_masked_loss_is_the_mean_over_the_predicted_tokens(bert, masked):
    """Under the fixed mask, equal to transformers' own logits in float64, one sequence a time."""
    loss, count = mean_loss(family_of(bert.config), bert, masked)
    losses = []
    for number in range(masked.num_sequences):
        batch = masked.batch(np.array([number]), np.array([0]), MASK_SEED)
        for segment in range(1, int(batch.segment_ids.max()) + 1):
            where = batch.segment_ids[0] == segment
            with torch.no_grad():
                logits = bert.double()(input_ids=batch.input_ids[:, where]).logits[0]
            labels = batch.labels[0, where]
            kept = labels != IGNORED
            losses += (-torch.log_softmax(logits, -1)[kept, labels[kept]]).tolist()
    bert.float()
    assert count == len(losses)
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_masked_loss_is_the_same_at_every_call(bert, masked):
    """The mask is fixed, so that models can be compared with each other."""
    family = family_of(bert.config)
    torch.manual_seed(1)
    first = mean_loss(family, bert, masked)
    torch.manual_seed(2)
    assert mean_loss(family, bert, masked) == first


def test_a_masked_model_with_damaged_weights_gets_no_number(bert, masked):
    """NaN is an error here too, not a result."""
    with torch.no_grad():
        bert.bert.embeddings.word_embeddings.weight[7] = math.nan
    with pytest.raises(DataError, match="not finite"):
        mean_loss(family_of(bert.config), bert, masked)
