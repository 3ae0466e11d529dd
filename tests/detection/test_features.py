"""Features of a text: the formulas in float64, token by token, whatever the windows and batches."""

import math

import numpy as np
import pytest
import torch
from tests.tiny_models import VOCABULARY

from stillhouse.detection.features import (
    FEATURES,
    TokenStatistics,
    features_at,
    features_of,
    token_statistics,
)
from stillhouse.errors import ModelError
from stillhouse.inference.load import language_model
from stillhouse.inference.token_scores import expected_log_probability, score_tokens


@pytest.fixture
def model(tiny_model, tiny_tokenizer):
    tiny_tokenizer.eos_token = "[SEP]"
    return language_model(tiny_model("gpt2"), tiny_tokenizer)


def text_of(words, number, seed=0):
    return " ".join(f"w{word}" for word in words(number, seed))


def naive(model, text):
    """The features by their formulas, a token at a time, from the whole vocabulary in float64."""
    ids = model.encode(text)
    whole = torch.tensor([[model.tokenizer.eos_token_id, *ids]])
    with torch.inference_mode():
        logits = model.model(whole).logits[0, :-1].double()
    own, ranks, means, variances = [], [], [], []
    for row, token in zip(logits.tolist(), ids, strict=True):
        total = math.log(math.fsum(map(math.exp, row)))
        values = [each - total for each in row]
        own.append(values[token])
        ranks.append(1 + sum(each > values[token] for each in values))
        means.append(math.fsum(math.exp(each) * each for each in values))
        squares = math.fsum(math.exp(each) * each**2 for each in values)
        variances.append(squares - means[-1] ** 2)
    number = len(ids)
    log_ranks = math.fsum(map(math.log, ranks))
    return {
        "log_probability": math.fsum(own) / number,
        "log_rank": log_ranks / number,
        "top_1": sum(rank == 1 for rank in ranks) / number,
        "top_10": sum(rank <= 10 for rank in ranks) / number,
        "top_100": sum(rank <= 100 for rank in ranks) / number,
        "lrr": -math.fsum(own) / log_ranks,
        "entropy": -math.fsum(means) / number,
        "curvature": (math.fsum(own) - math.fsum(means))
        / math.sqrt(math.fsum(variances))
        / math.sqrt(number),
    }


def test_features_are_those_of_the_formulas(model, words):
    """Of texts of different lengths in one batch."""
    texts = [text_of(words, number, seed) for seed, number in enumerate((3, 20, 11))]
    for text, tokens in zip(texts, token_statistics(model, texts), strict=True):
        found = dict(zip(FEATURES, features_of(tokens), strict=True))
        assert found == pytest.approx(naive(model, text), rel=1e-4, abs=1e-5)


def test_windows_score_each_token_once_after_what_fits_before_it(model, words):
    """A text of three times the context: its first tokens are those of a short text, and each later
    token is scored after at least half a context."""
    text = text_of(words, 70)
    context = model.context
    (tokens,) = token_statistics(model, [text])
    assert len(tokens) == 70
    (short,) = token_statistics(model, [" ".join(text.split()[: context - 1])])
    np.testing.assert_allclose(
        tokens.log_probability[: context - 1], short.log_probability, atol=1e-5
    )
    ids = model.encode(text)
    with torch.inference_mode():
        logits = model.model(torch.tensor([ids[-context:]])).logits[0, -2].double()
    assert tokens.log_probability[-1] == pytest.approx(
        float(logits.log_softmax(-1)[ids[-1]]), abs=1e-4
    )


def test_first_tokens_do_not_depend_on_the_later_ones(model, words):
    text = text_of(words, 20)
    whole, start = token_statistics(model, [text, " ".join(text.split()[:8])])
    np.testing.assert_allclose(
        features_of(whole.first(8)), features_of(start), rtol=1e-4, atol=1e-5
    )


def test_layout_changes_nothing(model, words):
    text = text_of(words, 12)
    plain, lines = token_statistics(model, [text, text.replace(" ", "\n\n  ")])
    np.testing.assert_array_equal(features_of(plain), features_of(lines))


def test_texts_without_the_length_are_left_out(model, words):
    texts = token_statistics(model, [text_of(words, 5), text_of(words, 9), ""])
    assert [len(each) for each in texts] == [5, 9, 0]
    assert features_at(texts, 6).shape == (1, len(FEATURES))
    assert features_at(texts, 10).shape == (0, len(FEATURES))


def test_a_text_of_top_choices_has_finite_features():
    """All ranks are 1, and the model was certain: the divisors are 0."""
    zeros = np.zeros(4)
    found = features_of(TokenStatistics(zeros, zeros + 1, zeros, zeros))
    assert np.isfinite(found).all()


def test_text_sampled_from_the_model_has_no_curvature():
    """Its log-probability is the expected one: over 20,000 tokens the discrepancy, in standard
    deviations of the sum, is that of chance; for the most likely tokens it is far above."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, VOCABULARY, generator=generator) * 2
    sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    for ids, low, high in ((sampled, -3, 3), (logits.argmax(-1), 50, math.inf)):
        value, rank, every = score_tokens(logits, ids)
        mean, variance = expected_log_probability(every)
        columns = (value, rank + 1.0, mean, variance)
        tokens = TokenStatistics(*(each.double().numpy() for each in columns))
        curvature = features_of(tokens)[FEATURES.index("curvature")]
        assert low < curvature * math.sqrt(len(tokens)) < high


def test_impossible_tokens_add_nothing_to_what_is_expected():
    """A logit of minus infinity."""
    logits = torch.tensor([[0.0, -math.inf, 1.0]]).log_softmax(-1)
    for whole, rest in zip(
        expected_log_probability(logits),
        expected_log_probability(logits[:, [0, 2]]),
        strict=True,
    ):
        torch.testing.assert_close(whole, rest)


def test_masked_model_is_refused(tiny_model, tiny_tokenizer):
    from stillhouse.detection.features import check_scoring_model

    with pytest.raises(ModelError, match="must be a causal language model"):
        check_scoring_model(language_model(tiny_model("bert"), tiny_tokenizer), "minilm")
