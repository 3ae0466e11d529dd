"""Perplexity and masked loss: every token scored, equal to an independent computation."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from stillhouse.evaluation.perplexity import (
    MASK_SEED,
    ScoredText,
    blocks_of,
    masked_losses,
    score_text,
    windows_of,
)
from stillhouse.evaluation.quality import has_diverged
from stillhouse.families.registry import family_of
from stillhouse.tokens.batches import IGNORED
from stillhouse.tokens.packing import MaskedSequences
from stillhouse.tokens.settings import MaskingRecipe
from stillhouse.tokens.shards import TokenSplit
from stillhouse.tokens.tokenizer import SpecialTokens

VOCABULARY, POSITIONS, END = 40, 16, 0


def perplexity(family, model, text, **settings):
    """The figures alone."""
    return score_text(family, model, text, **settings)[0]


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
    result = perplexity(family_of(model.config), model, text, document_start=END)
    losses = []
    for document in text.documents:
        for start in range(0, len(document), POSITIONS - 1):
            block = document[start : start + POSITIONS - 1]
            losses += losses_by_hand(model, block, stride=1, context=10**6)
    assert len(losses) == result["tokens_scored"] == sum(map(len, text.documents))
    assert result["token"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_the_sliding_window_equals_an_independent_computation(model, text):
    """Each window scores its last tokens after all the context that fits."""
    result = perplexity(family_of(model.config), model, text, document_start=END)
    losses = [
        loss
        for document in text.documents
        for loss in losses_by_hand(model, document, stride=POSITIONS // 2, context=POSITIONS)
    ]
    assert result["token_sliding"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert result["token_sliding"] != pytest.approx(result["token"], rel=1e-3)


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
    result = perplexity(family_of(model.config), model, text, document_start=END)
    assert result["token"] is not None
    assert result["tokens_scored"] is not None
    total = math.log(result["token"]) * result["tokens_scored"]
    assert result["word"] == pytest.approx(math.exp(total / 100), rel=1e-6)
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / 456, rel=1e-6)


def test_uniform_model_has_the_perplexity_of_its_vocabulary(model, text):
    """All weights zero: every token is as likely as any other."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = perplexity(family_of(model.config), model, text, document_start=END)
    assert result["token"] == pytest.approx(VOCABULARY, rel=1e-6)
    assert result["token_sliding"] == pytest.approx(VOCABULARY, rel=1e-6)


def test_a_shorter_context_may_be_asked_for(model, text):
    """The recipe's sequence length bounds the blocks, never beyond the model's positions."""
    family = family_of(model.config)
    results = [
        perplexity(family, model, text, document_start=END, context=context)["token"]
        for context in (4, POSITIONS, 10**6)
    ]
    assert results[1] == results[2] != results[0]


PERPLEXITIES = ("token", "token_sliding", "word")


def test_weights_that_are_not_finite_give_none(model, text):
    """A damaged model has neither a perplexity nor a loss; what was read is counted all the
    same."""
    with torch.no_grad():
        model.transformer.wte.weight[3, 3] = math.nan
    figures, losses = score_text(family_of(model.config), model, text, document_start=END)
    assert [figures[key] for key in (*PERPLEXITIES, "bits_per_byte")] == [None] * 4
    assert figures["tokens_scored"] == losses.tokens.sum() == sum(map(len, text.documents))
    assert losses.mean is None


def test_a_perplexity_beyond_float64_is_none_and_its_loss_stays(model, text):
    """Weights after a training with a huge learning rate: exp(loss) overflows, the loss does
    not."""
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1e5)
    figures, losses = score_text(family_of(model.config), model, text, document_start=END)
    assert [figures[key] for key in PERPLEXITIES] == [None] * 3
    assert losses.mean is not None
    assert losses.mean > 709
    assert has_diverged(losses.mean, VOCABULARY)
    assert figures["tokens_scored"] is not None
    bits = losses.mean * figures["tokens_scored"] / math.log(2) / text.bytes
    assert figures["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize(
    ("loss", "diverged"),
    [(None, True), (math.log(VOCABULARY) + 1.01, True), (math.log(VOCABULARY) + 0.5, False)],
)
def test_a_model_diverged_when_a_guess_is_far_better(loss, diverged):
    """An untrained model is about as good as a guess, and did not diverge."""
    assert has_diverged(loss, VOCABULARY) == diverged


def test_few_documents_are_kept_block_by_block(model, text):
    """Each block's sum is that of its own tokens, in the order of the text."""
    _, losses = score_text(family_of(model.config), model, text, document_start=END)
    assert losses.unit == "blocks of 15 tokens"
    blocks = [
        document[start : start + POSITIONS - 1]
        for document in text.documents
        for start in range(0, len(document), POSITIONS - 1)
    ]
    assert losses.tokens.tolist() == [len(block) for block in blocks]
    by_hand = [sum(losses_by_hand(model, block, stride=1, context=10**6)) for block in blocks]
    assert losses.sums == pytest.approx(by_hand, rel=1e-5)


def test_many_documents_are_kept_one_by_one(model):
    """Each document's sum is that of all its blocks."""
    draw = np.random.default_rng(1)
    documents = [draw.integers(1, VOCABULARY, size) for size in (*range(1, 21), 40)]
    text = ScoredText(documents, 10, 10)
    _, losses = score_text(family_of(model.config), model, text, document_start=END)
    assert losses.unit == "documents"
    assert losses.tokens.tolist() == [len(document) for document in documents]
    alone = [
        score_text(family_of(model.config), model, ScoredText([each], 1, 1), document_start=END)[1]
        for each in documents
    ]
    assert losses.sums == pytest.approx([each.sums.sum() for each in alone], rel=1e-5)


def test_units_are_pooled_where_there_are_very_many(model):
    """The file stays small, and no token is lost."""
    documents = [np.array([1 + number % 9, 2]) for number in range(2_500)]
    figures, losses = score_text(
        family_of(model.config), model, ScoredText(documents, 1, 1), document_start=END
    )
    assert losses.unit == "groups of 3 documents"
    assert len(losses.tokens) == 834
    assert losses.tokens.sum() == figures["tokens_scored"] == 5_000
    assert losses.mean is not None
    assert math.exp(losses.mean) == pytest.approx(figures["token"])


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
    split = TokenSplit(VOCABULARY, (ids,), starts, counts, (Path("none"),))
    special = SpecialTokens(None, None, cls=2, sep=3, mask=4, pad=1, unk=0, all_ids=(0, 1, 2, 3, 4))
    return MaskedSequences(
        split, POSITIONS, special, MaskingRecipe(), vocabulary_size=VOCABULARY, counts=counts
    )


def test_the_masked_loss_is_the_mean_over_the_predicted_tokens(bert, masked):
    """Under the fixed mask, equal to transformers' own logits in float64, one sequence a time."""
    found = masked_losses(family_of(bert.config), bert, masked)
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
    assert found.tokens.sum() == len(losses)
    assert found.mean == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_the_masked_loss_is_the_same_at_every_call(bert, masked):
    """The mask is fixed, so that models can be compared with each other."""
    family = family_of(bert.config)
    torch.manual_seed(1)
    first = masked_losses(family, bert, masked)
    torch.manual_seed(2)
    assert masked_losses(family, bert, masked).mean == first.mean


def test_masked_model_with_damaged_weights_gives_none(bert, masked):
    """NaN is no result here either."""
    with torch.no_grad():
        bert.bert.embeddings.word_embeddings.weight[7] = math.nan
    assert masked_losses(family_of(bert.config), bert, masked).mean is None


def test_parts_of_a_text_are_scored_as_if_alone(model, text):
    """Their losses are those of their documents, and those of all parts are the whole."""
    family = family_of(model.config)
    parts = {"short": range(4), "long": range(4, 6)}
    named = ScoredText(text.documents, text.words, text.bytes, parts)
    _, losses = score_text(family, model, named, document_start=END)
    for name, own in parts.items():
        alone = ScoredText([text.documents[number] for number in own], 1, 1)
        _, expected = score_text(family, model, alone, document_start=END)
        assert losses.parts[name].tokens.sum() == sum(map(len, alone.documents))
        assert losses.parts[name].mean == pytest.approx(expected.mean, rel=1e-6)
    total = sum(own.sums.sum() for own in losses.parts.values())
    assert total == pytest.approx(losses.sums.sum(), rel=1e-9)


def test_masked_sequences_are_scored_by_part():
    """Each part has the losses of its own sequences."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    bert = BertForMaskedLM(config).eval()
    draw = np.random.default_rng(0)
    documents = [draw.integers(5, VOCABULARY, size) for size in (30, 25, 7)]
    whole = TokenSplit.in_memory(documents, VOCABULARY)
    split = replace(whole, parts={"en": 2, "fr": 1})
    special = SpecialTokens(None, None, 2, 3, 4, 0, 1, (0, 1, 2, 3, 4))
    source = MaskedSequences(
        split, POSITIONS, special, MaskingRecipe(), vocabulary_size=VOCABULARY, counts=split.counts
    )
    losses = masked_losses(family_of(config), bert, source)
    assert len(losses.parts["fr"].sums) == 1
    joined = np.concatenate([own.sums for own in losses.parts.values()])
    np.testing.assert_array_equal(joined, losses.sums)
    numbers = np.array([source.parts["fr"].start])
    batch = source.batch(numbers, np.zeros_like(numbers), MASK_SEED)
    output = bert(batch.input_ids, batch.attention_mask(), labels=batch.labels)
    assert losses.parts["fr"].mean == pytest.approx(output.loss.item(), rel=1e-4)
